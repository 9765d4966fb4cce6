"""Recall of the routers on questions with known documents; with ``--answers`` sources and answers too.

    python benchmarks/retrieval.py [--documents examples/packages.jsonl] [--questions examples/questions.jsonl]
                                   [--model NAME] [--out benchmarks/results/FILE.json]

With ``--answers`` each question is also answered: how often the right document is the first and among the first three
sources, and how often the answer names it as well (its id in the answer's text, letters and digits compared).

A question is a line ``{"question", "document"}``; the memory is built in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from storing import made_by

import msa
from msa.documents.readers import read_documents

EXAMPLES = Path(__file__).parent.parent / "examples"


def bare(text: str) -> str:
    """Lower-case letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def main() -> None:
    """Build, search, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, default=EXAMPLES / "packages.jsonl")
    parser.add_argument("--questions", type=Path, default=EXAMPLES / "questions.jsonl")
    parser.add_argument("--model")
    parser.add_argument("--memory", help="keep the memory in this folder")
    parser.add_argument("--answers", action="store_true", help="also answer every question")
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
        named = sourced = first = 0
        for question in questions if args.answers else []:
            answer = memory.ask(question["question"], max_new_tokens=40)
            sources = [hit.id for hit in answer.sources[:3]]
            sourced += question["document"] in sources
            first += question["document"] in sources[:1]
            named += question["document"] in sources and bare(question["document"]) in bare(answer.text)
        result: dict[str, Any] = {
            "model": repr(model),
            "documents": len(memory),
            "questions": len(questions),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            **made_by(),
            **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 3, 16)},
            **({"first_source": first, "in_3_sources": sourced, "and_named": named} if args.answers else {}),
            "ranks": ranks,
        }
    text = json.dumps(result)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
