"""The tiny recipe with one thing left out at a time, from equal budgets: which of them does the training need?

    python benchmarks/tiny_ablations.py --out runs/ablations [--scale 0.35] [--phases 5] [--jobs 2] [--results FILE]

Every variant trains for the same steps on the same data (the first phases of recipes/tiny.py, shortened), then answers
the same held-out batches: recall@1 of the mean over layers, ids and answers exact (teacher forced), as rates.
A variant whose folder holds a finished model is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from storing import made_by

RECIPES = Path(__file__).parents[1] / "recipes"
sys.path.insert(0, str(RECIPES))

import tiny  # noqa: E402

import msa  # noqa: E402
from msa.training.batches import Batches  # noqa: E402
from msa.training.metrics import evaluate  # noqa: E402
from msa.training.run import sources_of  # noqa: E402

SHOWN = ("recall@1/mean", "ids_exact", "answer_exact", "copied")


def train(name: str, folder: Path, args: argparse.Namespace) -> None:
    """One variant in a process of its own, with one thread where several run side by side."""
    if (folder / "model" / "config.json").exists():
        return
    command = [sys.executable, str(RECIPES / "tiny.py"), "--out", str(folder), "--ablation", name]
    command += ["--scale", str(args.scale), "--phases", str(args.phases)]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def measure(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Metrics on held-out batches of the last phase."""
    model = msa.load(folder / "model", dtype="float32")
    whole = tiny.config("unused", args.scale)
    # no copies of earlier steps here: every variant sees the same small memories
    phase = replace(whole.phases[args.phases - 1], past_documents=0)
    config = replace(whole, phases=(phase,))
    _, held_out = sources_of(model, config)
    batches = Batches(config, model.protocol, held_out)
    drawn = [batches.held_out(held_out[0], phase, number) for number in range(args.batches)]
    return evaluate(model.lm, drawn, torch.tensor(model.protocol.prefix_ids))


def main() -> None:
    """Train all, measure all, write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--scale", type=float, default=0.35)
    parser.add_argument("--phases", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=tiny.ABLATIONS, default=list(tiny.ABLATIONS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folders = {name: args.out / name for name in args.only}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda item: train(*item, args), folders.items()))
    whole = tiny.config("unused", args.scale)
    results: dict[str, Any] = {
        "what": "recipes/tiny.py with one thing left out, held-out rates",
        "steps": sum(phase.steps for phase in whole.phases[: args.phases]),
        "scale": args.scale,
        "phases": args.phases,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **made_by(),
        "variants": {name: measure(folder, args) for name, folder in folders.items()},
    }
    lines = [
        f"| {name} | " + " | ".join(f"{metrics.get(key, float('nan')):.2f}" for key in SHOWN) + " |"
        for name, metrics in results["variants"].items()
    ]
    print("\n".join([f"| left out | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|", *lines]))
    if args.results:
        args.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
