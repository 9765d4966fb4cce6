"""What a training step takes of a machine's memory, with and without a bound on the documents' activations.

    python benchmarks/training_memory.py [--model smollm2-135m] [--tokens 2000 64000] [--steps 2] [--out FILE.json]

All weights are trained, as in the recipe of SFT over 64K tokens (``recipes/stages.py sft_64k``), in bf16 over float32
weights with AdamW, over made-up documents of some 80 tokens. ``bounded`` as that recipe has it: each bucket of
documents, and of rows each layer, is computed again in the backward pass (``checkpoint_documents``,
``checkpoint_layers``). ``unbounded`` keeps everything, and runs at the smallest size alone. Each runs in a process of
its own: ``peak_bytes`` is the most it had resident, ``before_bytes`` what it had with the model loaded and nothing
trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from storing import show_and_store

import msa
from msa.bench.timing import peak_mib
from msa.evaluation.environment import environment
from msa.training.batches import Batches, NeedleSource
from msa.training.config import Phase, TrainConfig
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.log import read_log
from msa.training.trainer import Trainer

MIB = 2**20


def trained(model: str, tokens: int, questions: int, steps: int, *, bounded: bool) -> dict[str, Any]:
    """Memory of ``steps`` steps over about ``tokens`` tokens of documents each."""
    loaded = msa.load(model, dtype="float32")
    worlds = NeedleWorlds(*needle_words(held_out=False), haystack_sentences((), held_out=False))
    sample = worlds.world(NeedleConfig(documents=100, questions=1, max_filler=80), "size", set()).corpus.values()
    per_document = sum(len(loaded.protocol.document_ids(10**6, text)) for text in sample) / len(sample)
    needles = NeedleConfig(documents=round(tokens / per_document), questions=questions, max_filler=80)
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainConfig(
            out=folder,
            phases=(Phase(name="measured", steps=steps, learning_rate=6e-6, needles=needles, final_share=0.5),),
            precision="bf16",
            checkpoint_documents=bounded,
            checkpoint_layers=bounded,
            log_every=steps,
            checkpoint_every=steps + 1,
        )
        batches = Batches(settings, loaded.protocol, [NeedleSource(worlds, needles)])
        Trainer(loaded, settings, batches).run()
        last = read_log(Path(folder) / "log.jsonl")[-1]
    return {
        "bounded": bounded,
        "documents": needles.documents,
        "questions": questions,
        "tokens_per_step": round(last["tokens_per_second"] * last["seconds_per_step"]),
        "loss": last["loss"],
        "before_bytes": round(before * MIB),
        "peak_bytes": round(peak_mib() * MIB),
    }


def main() -> None:
    """Measure each case in a process of its own, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_000, 64_000], help="of documents in a step")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--case", choices=("bounded", "unbounded"), help="measure this one at --tokens, here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.case:
        case = trained(args.model, args.tokens[0], args.questions, args.steps, bounded=args.case == "bounded")
        show_and_store(case, args.out)
        return
    sizes = sorted(args.tokens)
    cases = [(sizes[0], "unbounded"), *((size, "bounded") for size in sizes)]
    results = []
    for size, case in cases:
        own = ["--model", args.model, "--tokens", str(size), "--questions", str(args.questions)]
        command = [sys.executable, __file__, *own, "--steps", str(args.steps), "--case", case]
        results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    result = {
        "what": "resident memory of training steps over so many tokens of documents",
        "model": args.model,
        "threads": torch.get_num_threads(),
        "steps": results,
        "environment": environment(),
    }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
