"""Ids that generative mode writes for questions about real documents, by what it may write.

    python recipes/build_data.py --out DATA …
    python benchmarks/written_ids.py --data DATA [--documents 5000] [--questions 300] [--split test] [--out FILE.json]

Test questions of the real sources, with one right document each, over a memory of these and other documents. For each
setting of ``constrain_ids``: how often the first id of the first round is the right one, of all questions and of those
whose right document some router layer selected, and of how many documents the text was read. ``routed`` is the best
document by the routers alone. Paired: McNemar's test of each setting against the checkpoint's own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_documents import MADE_UP, read_lines
from storing import show_and_store

import msa
from msa.documents.protocol import CONSTRAINTS
from msa.evaluation.environment import environment
from msa.evaluation.statistics import mcnemar
from msa.generation.types import Answer

BATCH = 16


def drawn(args: argparse.Namespace) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Documents, and questions with the id of the right one."""
    rng = random.Random(args.seed)
    corpus = {one["id"]: one["text"] for one in read_lines(args.data / "corpus.jsonl") if one["source"] != MADE_UP}
    rows = [row for row in read_lines(args.data / f"{args.split}.jsonl") if len(row["positives"]) == 1]
    asked = [(row["query"], row["positives"][0]) for row in rows if row["positives"][0] in corpus]
    rng.shuffle(asked)
    asked = asked[: args.questions]
    needed = dict.fromkeys(name for _, name in asked)
    others = rng.sample([name for name in corpus if name not in needed], args.documents - len(needed))
    names = [*needed, *others]
    rng.shuffle(names)
    return {name: corpus[name] for name in names}, asked


def ask(memory: msa.Memory, questions: Sequence[str], constraint: str) -> list[Answer]:
    """First rounds under a constraint."""
    answers: list[Answer] = []
    for first in range(0, len(questions), BATCH):
        batch = questions[first : first + BATCH]
        options = {"constrain_ids": constraint, "max_rounds": 1, "max_new_tokens": 1}
        answers += memory.ask_many(batch, retrieval="generative", **options)
    return answers


def measure(memory: msa.Memory, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Every constraint, and the routers alone."""
    questions = [question for question, _ in asked]
    numbers = [memory.bank.get(name).parts[0].number for _, name in asked]  # type: ignore[union-attr]
    right: dict[str, list[bool]] = {}
    rates: dict[str, dict[str, float]] = {}
    for constraint in CONSTRAINTS:
        rounds = [answer.rounds[0] for answer in ask(memory, questions, constraint)]
        selected = [
            number in {one for votes in found.votes.values() for one in votes}
            for number, found in zip(numbers, rounds, strict=True)
        ]
        ok = [found.numbers[:1] == [number] for number, found in zip(numbers, rounds, strict=True)]
        right[constraint] = ok
        rates[constraint] = {
            "first id right": sum(ok) / len(ok),
            "… where it was selected": sum(o for o, s in zip(ok, selected, strict=True) if s) / max(sum(selected), 1),
            "right document selected": sum(selected) / len(ok),
            "documents read": sum(len(found.numbers) for found in rounds) / len(ok),
        }
    best = [memory.search(question, top_k=1) for question in questions]
    right["routed"] = [bool(hits) and hits[0].id == name for hits, (_, name) in zip(best, asked, strict=True)]
    rates["routed"] = {"first document right": sum(right["routed"]) / len(asked)}
    own = memory.model.protocol.strings.constrain_ids
    tests = {name: mcnemar(right[own], ok) for name, ok in right.items() if name != own}
    return {"own": own, "rates": rates, "p against the own": tests}


def main() -> None:
    """Encode, ask, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that recipes/build_data.py wrote")
    parser.add_argument("--model", default="smollm2-135m-generative")
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    documents, asked = drawn(args)
    model = msa.load(args.model)
    with tempfile.TemporaryDirectory() as folder, msa.Memory.open(folder, model=model) as memory:
        memory.add([{"id": name, "text": text} for name, text in documents.items()])
        result = {
            "what": "ids written in the first round of generative mode, by what may be written",
            "model": args.model,
            "documents": len(documents),
            "questions": len(asked),
            "split": args.split,
            **measure(memory, asked),
            "environment": environment(),
        }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
