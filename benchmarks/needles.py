"""Needles in a memory of a given size, asked as a user asks: routed to, ids written, text read, answered.

    python benchmarks/needles.py --model runs/tiny/model --tokens 64000 1000000 [--questions 200] [--out results.json]

The memory holds made-up documents of held-out sentences, keys and values (msa.training.data.needles); it grows from one
size to the next and is never encoded again. Per kind of question and of value: ``retrieved`` (each round wrote exactly
the right ids), ``answered`` (the answer is the expected text exactly), ``read`` (the right documents were read, in any
round).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from storing import made_by

import msa
from msa.documents.protocol import ANSWERS, CONSTRAINTS
from msa.training.data.needles import NOT_IN_MEMORY, NeedleConfig, NeedleWorlds, keys_of
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.words import haystack_sentences, needle_words

BATCH = 20


def kind_of(value: str) -> str:
    """Which kind of value an answer is."""
    if value == NOT_IN_MEMORY:
        return "none"
    return "number" if value.isdigit() else "uuid" if len(value) == 36 and value.count("-") == 4 else "word"


def score(memory: msa.Memory, samples: list[Sample], **options: Any) -> tuple[dict[str, Any], float]:
    """Rates per source, and seconds a question."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    started = time.perf_counter()
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        answers = memory.ask_many([s.query for s in batch], max_new_tokens=128, **options)
        for sample, answer in zip(batch, answers, strict=True):
            rounds = [tuple(found.retrieved) for found in answer.rounds if found.retrieved]
            read = {document for found in rounds for document in found}
            for name in (sample.source, f"value/{kind_of(sample.answer or '')}", "all"):
                if sample.positives:
                    rates[name]["retrieved"].append(float(rounds == list(sample.steps)))
                    rates[name]["read"].append(float(set(sample.positives) <= read))
                rates[name]["answered"].append(float(answer.text == sample.answer))
    seconds = (time.perf_counter() - started) / len(samples)
    means = {n: {k: sum(v) / len(v) for k, v in sorted(kinds.items())} for n, kinds in sorted(rates.items())}
    return means, seconds


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="msa-tiny")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64_000, 1_000_000])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--max-filler", type=int, default=80, help="words around a needle, at most")
    parser.add_argument("--constrain-ids", choices=CONSTRAINTS, help="default: the checkpoint's own")
    parser.add_argument("--constrain-answers", choices=ANSWERS, help="default: the checkpoint's own")
    parser.add_argument(
        "--max-rounds", type=int, default=4, help="1: no interleave; 0: answer without reading any text"
    )
    parser.add_argument(
        "--twins",
        type=float,
        default=0.5,
        help="share of questions beside whose key one stands in memory that differs in one word or character; RULER: 0",
    )
    parser.add_argument("--kinds", nargs="+", default=["word", "number", "uuid"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", default="held out")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class GrowingMemory:
    """The documents asked about, in a memory that grows around them; nothing is encoded twice."""

    def __init__(self, memory: msa.Memory, args: argparse.Namespace) -> None:
        self.memory = memory
        self.tokens, self.encode_seconds = 0, 0.0
        self._args = args
        self._worlds = NeedleWorlds(*needle_words(held_out=True), haystack_sentences(held_out=True))
        asked = self._world(2 * args.questions, args.questions, args.seed, set())
        self.questions = asked.samples
        self._keys = keys_of(asked)
        self._add([{"id": name, "text": text} for name, text in asked.corpus.items()])

    def grow(self, size: int) -> None:
        """Add documents, with other keys than those asked for, until there are ``size`` tokens."""
        more = 0
        while self.tokens < size:
            per_document = self.tokens / max(len(self.memory), 1)
            count = max(1, min(2000, int((size - self.tokens) / per_document) + 1))
            filled = self._world(count, 0, f"{self._args.seed} {size} {more}", self._keys)
            self._add([{"id": f"{size}-{more}-{n}", "text": text} for n, text in filled.corpus.items()])
            more += 1

    def _world(self, documents: int, questions: int, seed: str, avoid: set[str]) -> TrainingSet:
        kinds = tuple(self._args.kinds)
        config = NeedleConfig(
            documents=documents,
            questions=questions,
            max_filler=self._args.max_filler,
            key_kinds=kinds,
            value_kinds=kinds,
            hard_negatives=self._args.twins,
        )
        return self._worlds.world(config, seed, avoid)

    def _add(self, documents: list[dict[str, str]]) -> None:
        protocol = self.memory.model.protocol
        self.tokens += sum(len(protocol.document_ids(100_000, document["text"])) for document in documents)
        started = time.perf_counter()
        self.memory.add(documents)
        self.encode_seconds += time.perf_counter() - started


def measure(growing: GrowingMemory, args: argparse.Namespace) -> dict[str, Any]:
    """The questions asked of the memory as it is."""
    rates, per_question = score(
        growing.memory,
        growing.questions,
        constrain_ids=args.constrain_ids,
        constrain_answers=args.constrain_answers,
        max_rounds=args.max_rounds,
    )
    return {
        "tokens": growing.tokens,
        "documents": len(growing.memory),
        "encode_seconds": growing.encode_seconds,
        "seconds_per_question": per_question,
        "rates": rates,
    }


def main() -> None:
    """Measure and report."""
    args = arguments()
    model = msa.load(args.model, dtype=args.dtype)
    result: dict[str, Any] = {
        "what": "needles in a memory, rates per kind of question",
        "model": repr(model),
        "constrain_ids": args.constrain_ids or model.protocol.strings.constrain_ids,
        "constrain_answers": args.constrain_answers or model.protocol.strings.constrain_answers,
        "max_rounds": args.max_rounds,
        "twins": args.twins,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **made_by(),
        "sizes": [],
    }
    with tempfile.TemporaryDirectory() as folder, msa.Memory.open(folder, model=model) as memory:
        growing = GrowingMemory(memory, args)
        for size in sorted(args.tokens):
            growing.grow(size)
            result["sizes"].append(measure(growing, args))
            print(json.dumps(result["sizes"][-1]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
