"""A training step of LoRA, merged once a step and as PEFT does it, in one run.

    python benchmarks/lora_step.py [--model smollm2-135m] [--documents 160] [--questions 96] [--filler 90]
        [--steps 8] [--rounds 2] [--out benchmarks/results/FILE.json]

Made-up memories, the same for both: a step encodes the documents, routes the questions over them and learns to write
ids. Each way trains ``--steps`` steps to warm up and as many that are timed, in turn, ``--rounds`` times; the best time
counts. On a GPU in bfloat16, on a CPU in float32. ``difference`` compares the losses of both at their last step, which
bfloat16 rounds differently.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from storing import show_and_store

import msa
from msa.evaluation.environment import environment
from msa.training.batches import Batches, NeedleSource
from msa.training.config import LoraConfig, Phase, TrainConfig
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.log import read_log
from msa.training.objective import LossWeights
from msa.training.prefetch import Prefetched
from msa.training.trainer import Trainer

NEVER = 10**6  # steps


def trained(args: argparse.Namespace, worlds: NeedleWorlds, folder: Path, *, merged: bool) -> dict[str, Any]:
    """Seconds of a step, and the losses of the last ones."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the first trainer
    on_gpu = torch.cuda.is_available()
    needles = NeedleConfig(documents=args.documents, questions=args.questions, max_filler=args.filler)
    weights = LossWeights(closing_id=0.2, id_probe=1.0)
    settings = TrainConfig(
        out=str(folder),
        phases=(Phase(name="timed", steps=2 * args.steps, learning_rate=1e-3, needles=needles, weights=weights),),
        precision="bf16" if on_gpu else "no",
        trainable="lora",
        lora=LoraConfig(rank=24, alpha=48, merged=merged),
        bucket_tokens=args.bucket_tokens,
        log_every=args.steps,
        checkpoint_every=NEVER,
        evaluate_every=NEVER,
    )
    model = msa.load(args.model, dtype="float32")
    source = NeedleSource(worlds, needles)
    batches = Prefetched(Batches(settings, model.protocol, [source]), settings, workers=args.workers)
    trainer = Trainer(model, settings, batches)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        for parameter in model.lm.parameters():
            if not parameter.requires_grad and parameter.ndim:
                parameter.data = parameter.data.bfloat16()
    try:
        trainer.run()
    finally:
        batches.close()
    last = read_log(folder / "log.jsonl")[-1]
    return {
        "seconds": last["seconds_per_step"],
        "tokens_per_second": last["tokens_per_second"],
        "losses": {name: value for name, value in last.items() if name.startswith("loss")},
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }


def main() -> None:
    """Measure both, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--filler", type=int, default=90, help="words around a needle, at most")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bucket-tokens", type=int, default=49152)
    parser.add_argument("--workers", type=int, default=4 if torch.cuda.is_available() else 0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    worlds = NeedleWorlds(*needle_words(held_out=False), haystack_sentences((), held_out=False))
    measured: dict[str, list[dict[str, Any]]] = {"peft": [], "merged": []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(args.rounds):
            for name, of_name in measured.items():
                of_name.append(trained(args, worlds, Path(scratch) / f"{name}-{turn}", merged=name == "merged"))
    best = {name: min(runs, key=lambda run: run["seconds"]) for name, runs in measured.items()}
    losses = [best[name]["losses"]["loss"] for name in measured]
    results = {
        "what": "seconds of a training step of LoRA, best of the rounds",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "step": {name: getattr(args, name) for name in ("model", "documents", "questions", "filler", "bucket_tokens")},
        **best,
        "all_seconds": {name: [run["seconds"] for run in runs] for name, runs in measured.items()},
        "speedup": best["peft"]["seconds"] / best["merged"]["seconds"],
        "difference": abs(losses[0] - losses[1]) / losses[0],
        "environment": environment(),
    }
    show_and_store(results, args.out)


if __name__ == "__main__":
    main()
