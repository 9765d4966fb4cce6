"""``msa mcp``: one memory as tools for other programs' models (Model Context Protocol)."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from msa.cli.console import is_terminal, write_note
from msa.cli.opening import memory_folder, quiet_libraries
from msa.cli.options import (
    MODEL_THAT_MADE_OR_MAKES_IT,
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_hybrid_option,
    add_memory_argument,
    add_tier_options,
    non_negative,
    port,
    positive,
    tiers_of,
)

if TYPE_CHECKING:
    from msa.serving.mcp import McpSettings

_HOST, _PORT = "127.0.0.1", 8000


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "mcp",
        run,
        summary="offer a memory to other programs' models as MCP tools: search, fetch, ask, add",
        details="Over standard input and output a program starts this command itself; with --http any number of\n"
        "clients connect to http://HOST:PORT/mcp. MEMORY is made if there is none, unless --read-only.",
        examples=[
            "msa mcp mem/",
            "msa mcp mem/ --read-only",
            "MSA_API_KEYS=sk-4cf1a97be2 msa mcp mem/ --http --port 8001",
        ],
        model=MODEL_THAT_MADE_OR_MAKES_IT,
    )
    add_memory_argument(parser)
    parser.add_argument("--read-only", action="store_true", help="leave out the tool that changes the memory")
    group = parser.add_argument_group("HTTP")
    group.add_argument("--http", action="store_true", help="serve streamable HTTP instead of one client on stdin")
    group.add_argument("--host", metavar="HOST", help="address to listen on (default: this machine only)")
    group.add_argument("--port", type=port, metavar="PORT", help=f"port to listen on (default: {_PORT})")
    group.add_argument("--keys", metavar="FILE", help="API keys, one a line; those of $MSA_API_KEYS count too")
    group = parser.add_argument_group("tools")
    group.add_argument("--top-k", type=positive, default=10, metavar="N", help="documents of a search (default: 10)")
    group.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="N", help="tokens of an answer, at most (default: 256)"
    )
    add_hybrid_option(group)
    group.add_argument("--timeout", type=positive, default=300, metavar="S", help="seconds of a call (default: 300)")
    group.add_argument(
        "--max-waiting", type=non_negative, default=32, metavar="N", help="calls that may wait (default: 32)"
    )
    add_tier_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from msa.serving.mcp import serve_http, serve_stdio

    settings = settings_of(args)
    quiet_libraries(args)
    if args.http:
        logging.getLogger("msa.serving").setLevel(logging.INFO)
        serve_http(settings)
        return 0
    if is_terminal(sys.stdin):
        write_note("waiting for an MCP client on standard input: programs start this command themselves; see --help")
    serve_stdio(settings)
    return 0


def settings_of(args: argparse.Namespace) -> McpSettings:
    """The server's settings as the arguments and the environment say.

    Raises:
        UsageError: an option of HTTP without ``--http``, or the folder's name is empty.
        ServingError: keys that cannot be used.
    """
    from msa.serving.keys import keys_from_environment, read_keys
    from msa.serving.mcp import McpSettings

    folder = memory_folder(args)
    for option in ("host", "port", "keys"):
        if not args.http and getattr(args, option) is not None:
            raise UsageError(f"--{option} is for clients that come over HTTP; add --http")
    keys = keys_from_environment() + (read_keys(args.keys) if args.keys else ()) if args.http else ()
    return McpSettings(
        memory=folder,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        tiers=tiers_of(args),
        read_only=args.read_only,
        host=_HOST if args.host is None else args.host,
        port=_PORT if args.port is None else args.port,
        keys=keys,
        top_k=args.top_k,
        hybrid=args.hybrid,
        max_new_tokens=args.max_new_tokens,
        max_waiting=args.max_waiting,
        call_timeout_s=args.timeout,
    )
