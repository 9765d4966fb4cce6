"""``msa serve``: memories over HTTP."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from msa.cli.opening import is_shared, quiet_libraries, ranks_of_torchrun
from msa.cli.options import (
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_tier_options,
    byte_size,
    non_negative,
    port,
    positive,
    tiers_of,
)

if TYPE_CHECKING:
    from msa.serving import ServerSettings


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        run,
        summary="serve memories over HTTP: OpenAI-compatible chat, and an API for the memories themselves",
        details="Every folder in ROOT that is a memory is served under its name. One process writes to ROOT; others\n"
        "may serve it with --read-only. Ctrl-C or SIGTERM lets running requests end. Started by torchrun, the\n"
        "processes share the memories: each holds a part, and the first one is the server.",
        examples=[
            "msa serve memories/",
            "msa serve memories/ --host 0.0.0.0 --port 8080 --keys keys.txt",
            "MSA_API_KEYS=sk-4cf1a97be2 msa serve memories/ --read-only",
            "torchrun --nproc-per-node 4 --no-python msa serve memories/ --drain 20",
        ],
        model="the model; by default the one that made the memories; where there are none, or several made them, "
        "$MSA_MODEL or the shipped one",
    )
    parser.add_argument("root", metavar="ROOT", help="the folder with the memories; made if there is none")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--public-url",
        type=_public_url,
        metavar="URL",
        help="where clients reach the server, if that is a proxy; citations' addresses begin with it",
    )
    parser.add_argument("--read-only", action="store_true", help="refuse changes; another process may write")
    group = parser.add_argument_group("access")
    group.add_argument("--keys", metavar="FILE", help="API keys, one a line; those of $MSA_API_KEYS count too")
    group.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call the server"
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this host name too, such as a proxy's (needed without keys, where only this machine's are)",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="requests and failures are JSON lines on standard error; json: everything else too (default: text)",
    )
    _add_limits(parser)
    add_tier_options(parser)


def _public_url(text: str) -> str:
    from msa.serving.settings import check_public_url

    try:
        return check_public_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_limits(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-waiting", type=non_negative, default=32, metavar="N", help="questions that may wait (default: 32)"
    )
    group.add_argument(
        "--timeout", type=positive, default=300, metavar="S", help="seconds a request may take (default: 300)"
    )
    group.add_argument(
        "--drain", type=non_negative, default=30, metavar="S", help="seconds to end requests when stopped (default: 30)"
    )
    group.add_argument(
        "--rank-timeout",
        type=positive,
        default=60,
        metavar="S",
        help="seconds until a silent process of torchrun's is lost (default: 60)",
    )
    group.add_argument(
        "--max-concurrent", type=positive, metavar="N", help="questions answered side by side (default: 8)"
    )
    group.add_argument(
        "--history",
        type=non_negative,
        metavar="N",
        help="tokens of a conversation given with a question (default: 512)",
    )
    group.add_argument(
        "--routed-history",
        type=non_negative,
        metavar="N",
        help="of these, the last ones that choose documents with the question (default: 64)",
    )
    group.add_argument(
        "--upload-timeout", type=positive, metavar="S", help="seconds an upload may take (default: 3600)"
    )
    group.add_argument("--max-upload", type=byte_size, metavar="SIZE", help="one upload (default: 4GiB)")
    group.add_argument("--max-size", type=byte_size, metavar="SIZE", help="a memory's folder (default: no limit)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from msa.parallel import Leader, follow_memories
    from msa.serving import serve

    ranks = ranks_of_torchrun(args.rank_timeout, device_of_ranks(args.device))
    if ranks is None:
        _prepare(args)
        serve(settings_of(args))
        return 0
    with ranks:
        if ranks.rank:
            follow_memories(ranks, Path(args.root).absolute(), args.rank_timeout)
        else:
            with Leader(ranks, args.rank_timeout) as leader:
                _prepare(args)
                serve(settings_of(args), leader=leader)
    return 0


def _prepare(args: argparse.Namespace) -> None:
    quiet_libraries(args)
    logging.getLogger("msa.serving").setLevel(logging.DEBUG if args.debug else logging.INFO)
    if args.log_format == "json":
        from msa.serving.log_lines import JsonLines

        logging.getLogger("msa").handlers[:] = [JsonLines()]


def device_of_ranks(device: str) -> str | None:
    """Where a process's share lies, by ``--device``; None: on the GPU that is its own, if there are GPUs.

    Raises:
        UsageError: one GPU is named for all of them.
    """
    if not is_shared() or device in ("auto", "cuda"):
        return None
    if device.startswith("cuda"):
        raise UsageError(
            f"--device {device} is one GPU, and each process of torchrun's has its own; give --device cuda"
        )
    return device


def settings_of(args: argparse.Namespace) -> ServerSettings:
    """The server's settings as the arguments and the environment say.

    Raises:
        UsageError: the folder's name is empty.
        ServingError: keys that cannot be used.
    """
    from msa.serving import ServerSettings
    from msa.serving.keys import keys_from_environment, read_keys
    from msa.serving.settings import LOOPBACK

    if not args.root:
        raise UsageError("the folder to serve is empty; name a folder, '.' for the current one")
    keys = keys_from_environment() + (read_keys(args.keys) if args.keys else ())
    # without keys, a foreign page whose name leads to this machine must not get in
    names_matter = bool(args.allowed_host) or (args.host in LOOPBACK and not keys)
    given = {
        "max_concurrent": args.max_concurrent,
        "history_tokens": args.history,
        "routed_history_tokens": args.routed_history,
        "upload_timeout_s": args.upload_timeout,
        "max_upload_bytes": args.max_upload,
        "max_memory_bytes": args.max_size,
    }
    return ServerSettings(
        root=args.root,
        host=args.host,
        port=args.port,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        tiers=tiers_of(args),
        read_only=args.read_only,
        keys=keys,
        public_url=args.public_url,
        cors_origins=tuple(args.cors_origin),
        allowed_hosts=(*LOOPBACK, *args.allowed_host) if names_matter else (),
        max_waiting=args.max_waiting,
        request_timeout_s=args.timeout,
        drain_s=args.drain,
        **{name: value for name, value in given.items() if value is not None},
    )
