"""``msa train``: run a training configuration from its last checkpoint to its end."""

from __future__ import annotations

import argparse
import math
import os

from msa.cli.console import write_line, write_note
from msa.cli.options import ArgumentParser, Subparsers, add_command, add_device_option, add_model_option


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train routers, LoRA or all weights as a YAML configuration says; goes on from the last checkpoint",
        examples=["msa train warm-up.yaml", "torchrun --nproc-per-node 2 -m msa.cli.main train warm-up.yaml"],
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="the configuration; its keys are in docs/training.md")
    parser.add_argument("--out", metavar="DIR", help="write to this folder instead of the configuration's")
    parser.add_argument(
        "--stop-after", type=_minutes, metavar="MINUTES", help="save and stop after so long; run it again to go on"
    )
    add_model_option(parser, "train this model instead of the configuration's")
    add_device_option(parser)


def _minutes(text: str) -> float:
    """A number of minutes, 0 or more."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"must be minutes, 0 or more (0: no limit), got {text!r}")
    return minutes


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import dataclasses
    import logging

    from msa import zoo
    from msa.training.config import TrainConfig
    from msa.training.run import train

    config = TrainConfig.from_yaml(args.config)
    changes = {"out": args.out, "stop_after_minutes": args.stop_after, "model": args.model}
    config = dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})
    logging.getLogger("msa").setLevel(logging.INFO)
    model = zoo.load(config.model, device=_device_of_process(args.device), dtype="float32")
    finished = train(model, config)
    if finished is None:
        write_note(f"stopped before the end; run the same command again to go on from {config.out}/checkpoints")
    else:
        write_line(f"trained: {finished}")
    return 0


def _device_of_process(asked: str) -> str:
    """Under torchrun each process has a GPU of its own; without a number, all would load their network on the first."""
    import torch

    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if number and asked in ("auto", "cuda") and torch.cuda.is_available() else asked
