"""Recall of the routers on questions with known documents: no generation, mean over router layers.

    python benchmarks/retrieval.py [--documents examples/packages.jsonl] [--questions examples/questions.jsonl]
                                   [--model NAME] [--out benchmarks/results/FILE.json]

A question is a line ``{"question", "document"}``; the memory is built in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

import msa
from msa.documents.readers import read_documents

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    """Build, search, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, default=EXAMPLES / "packages.jsonl")
    parser.add_argument("--questions", type=Path, default=EXAMPLES / "questions.jsonl")
    parser.add_argument("--model")
    parser.add_argument("--memory", help="keep the memory in this folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    questions = [json.loads(line) for line in args.questions.read_text().splitlines()]
    model = msa.load(args.model)
    with tempfile.TemporaryDirectory() as scratch, msa.Memory.open(args.memory or scratch, model=model) as memory:
        memory.add(read_documents([args.documents]))
        ranks = []
        for question in questions:
            ids = [hit.id for hit in memory.search(question["question"], top_k=len(memory))]
            ranks.append(ids.index(question["document"]) + 1)
        result: dict[str, Any] = {
            "model": repr(model),
            "documents": len(memory),
            "questions": len(questions),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "date": date.today().isoformat(),
            **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 3, 16)},
            "ranks": ranks,
        }
    text = json.dumps(result)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
