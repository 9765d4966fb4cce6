"""``msa convert``: make an MSA checkpoint of a plain language model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msa.cli.console import console, is_terminal, write_line
from msa.cli.opening import quiet_libraries
from msa.cli.options import ArgumentParser, Subparsers, add_command, add_device_option, layers, positive


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "convert",
        run,
        summary="turn a Llama, Mistral, Qwen2, Qwen3 or SmolLM3 checkpoint into an MSA one with fresh routers",
        examples=[
            "msa convert HuggingFaceTB/SmolLM2-135M-Instruct smol-msa/",
            "msa convert model.gguf model-msa/ --calibrate corpus/ --router-layers 15-29",
        ],
    )
    parser.add_argument("source", metavar="SOURCE", help="a Hugging Face folder, a hub id or a .gguf file")
    parser.add_argument("dest", metavar="DEST", help="the folder to write; appears only when complete")
    parser.add_argument(
        "--init",
        choices=("whitened", "tied"),
        default="whitened",
        help="how routers begin: by the statistics of a calibration text (default), or as copies of each other",
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar="PATH",
        help="files or folders of your own to calibrate by (default: a text that comes with the package)",
    )
    parser.add_argument(
        "--router-layers", type=layers, metavar="LAYERS", help="such as 15-29, 15,16 or all (default: the upper half)"
    )
    parser.add_argument("--chunk-size", type=positive, default=64, metavar="N", help="tokens per chunk (default: 64)")
    parser.add_argument(
        "--top-k-docs", type=positive, default=16, metavar="N", help="documents a router selects (default: 16)"
    )
    add_device_option(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="dtype of the weights written (auto: bfloat16)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that DEST holds")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from msa.conversion import convert

    quiet_libraries(args)
    with _bar() as progress:
        dest = convert(
            args.source,
            args.dest,
            init=args.init,
            calibrate=args.calibrate,
            router_layers=args.router_layers,
            chunk_size=args.chunk_size,
            top_k_docs=args.top_k_docs,
            dtype=torch.float32 if args.dtype == "float32" else torch.bfloat16,
            device=args.device,
            overwrite=args.overwrite,
            progress=progress,
        )
    write_line(f"wrote {dest}; use it with --model {dest}")
    return 0


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; what it yields is called with tokens read and tokens in all."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console(error=True), refresh_per_second=4) as bar:
        task = bar.add_task("reading the model", total=None)

        def progress(done: int, total: int) -> None:
            last = done >= total
            bar.update(task, description="writing" if last else "calibrating", completed=done, total=total)

        yield progress
