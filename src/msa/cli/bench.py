"""``msa bench``: how fast this machine routes, encodes and answers, beside baselines and floors."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa.cli.console import working, write_line, write_table
from msa.cli.evaluate import tokens
from msa.cli.options import (
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_device_option,
    add_dtype_option,
    add_model_option,
)

if TYPE_CHECKING:
    from msa.bench import Figure
    from msa.model.bundle import MSAModel

PARTS = ("routing", "encoding", "answering")
DEFAULT_TOKENS, QUICK_TOKENS = 65536 * 64, 4096 * 64


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "bench",
        run,
        summary="measure routing, encoding and answering on this machine, beside baselines and floors",
        details="Times are the best of several rounds. A floor is what the machine needs at least: reading the keys\n"
        "or weights once, the multiplications at full speed, the layers alone. Routing keys are synthetic, documents\n"
        "and questions made up. Let nothing else run meanwhile.",
        examples=["msa bench", "msa bench routing --published --tokens 10M", "msa bench answering --out speed.json"],
    )
    parser.add_argument(
        "what", nargs="?", choices=(*PARTS, "all"), default="all", help="what to measure (default: all)"
    )
    add_model_option(
        parser,
        "encodes and answers, and gives routing its shape (default: msa-tiny, which comes with the package)",
        default="msa-tiny",
    )
    add_device_option(parser)
    add_dtype_option(parser)
    parser.add_argument(
        "--tokens", type=tokens, metavar="N", help="size of the memory that is routed over, such as 10M (default: 4.2M)"
    )
    parser.add_argument(
        "--published", action="store_true", help="route in the published 4B model's shape: 8 key/value heads x 4 x 128"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds over less: a look, not a measurement")
    parser.add_argument("--out", metavar="FILE", help="write all numbers as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from msa.cli.opening import quiet_libraries
    from msa.zoo import load

    if args.what in ("encoding", "answering") and (args.tokens or args.published):
        raise UsageError(f"--tokens and --published say what is routed over; {args.what} does without them")
    out = Path(args.out) if args.out else None
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out must be a file in a folder that exists, got {args.out!r}")
    quiet_libraries(args)
    model = load(args.model, device=args.device, dtype=args.dtype)
    parts = PARTS if args.what == "all" else (args.what,)
    figures = {}
    for part in parts:
        with working(f"measuring {part}"):
            figures[part] = _measure(part, args, model)
    _show(figures)
    if out:
        out.write_text(json.dumps(_result(args, model, figures), indent=2) + "\n", encoding="utf-8")
        write_line(f"\nwritten to {out}")
    return 0


def _measure(part: str, args: argparse.Namespace, model: MSAModel) -> list[Figure]:
    from msa.bench import SHAPES, Shape, bench_answering, bench_encoding, bench_routing

    if part == "encoding":
        return bench_encoding(model, *((0.1, 1) if args.quick else (3.0, 3)))
    if part == "answering":
        concurrent, questions, repeats = ((1, 4), 4, 1) if args.quick else ((1, 4, 16, 64), 64, 3)
        return bench_answering(model, concurrent, questions, repeats)
    shape = SHAPES["published"] if args.published else Shape.of(model.lm.config)
    lengths, repeats = ((32,), 2) if args.quick else ((8, 32, 64), 7)
    return bench_routing(shape, _num_chunks(args), lengths, repeats, model.device)


def _num_chunks(args: argparse.Namespace) -> int:
    from msa.bench.routing import CHUNK_TOKENS

    num_tokens = args.tokens or (QUICK_TOKENS if args.quick else DEFAULT_TOKENS)
    return max(1, num_tokens // CHUNK_TOKENS)


def _show(figures: dict[str, list[Figure]]) -> None:
    from msa.bench import table_rows

    write_table(table_rows(figure for part in figures.values() for figure in part), right=(1, 3, 4, 6))


def _command(args: argparse.Namespace) -> str:
    """What was asked for, as it would be typed."""
    words = ["msa", "bench", args.what, "--model", args.model, "--device", args.device]
    words += ["--dtype", args.dtype] if args.dtype != "auto" else []
    words += ["--tokens", str(args.tokens)] if args.tokens else []
    words += [f"--{name}" for name in ("published", "quick") if getattr(args, name)]
    return shlex.join(words)


def _result(args: argparse.Namespace, model: MSAModel, figures: dict[str, list[Figure]]) -> dict[str, Any]:
    from msa.evaluation.environment import environment

    return {
        "what": "seconds, best and median of some rounds; every ratio is one of best times",
        **environment(model.device.type),
        "command": _command(args),
        "model": repr(model),
        "settings": {name: getattr(args, name) for name in ("what", "tokens", "published", "quick")},
        **{part: [figure.to_json() for figure in found] for part, found in figures.items()},
    }
