"""Train the routers of a frozen backbone on cached pooled states, one layer after the other, on a CPU."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msa.training.data.samples import Sample

logger = logging.getLogger("router_warmup")
SPLITS = ("train", "validation", "test")


@dataclass
class Data:
    """What is trained and measured on.

    Attributes:
        corpus: document id → text: the whole pool.
        samples: split → questions with at least one document of the pool.
        left_out: what of the folder is not used, and how much of it.
    """

    corpus: dict[str, str]
    samples: dict[str, list[Sample]]
    left_out: dict[str, int] = field(default_factory=dict)


def read_lines(path: Path) -> Iterator[dict]:
    """JSON objects of a file of lines."""
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def read_data(folder: Path, max_documents: int | None, max_questions: int | None, seed: int) -> Data:
    """A data folder, cut down to a budget: test and validation stay whole, training documents and questions go first."""
    texts = {record["id"]: record["text"] for record in read_lines(folder / "corpus.jsonl")}
    samples: dict[str, list[Sample]] = {}
    for split in SPLITS:
        rows = [
            Sample(query=r["query"], positives=tuple(r["positives"]), source=r.get("source", ""))
            for r in read_lines(folder / f"{split}.jsonl")
        ]
        samples[split] = [sample for sample in rows if sample.positives]
    wanted = dict.fromkeys(i for split in ("test", "validation") for s in samples[split] for i in s.positives)
    others = [name for name in texts if name not in wanted]
    random.Random(seed).shuffle(others)
    kept = [*wanted, *others][: max(len(wanted), max_documents or len(texts))]
    corpus = {name: texts[name] for name in kept}
    usable = [sample for sample in samples["train"] if all(name in corpus for name in sample.positives)]
    train = balanced(usable, max_questions or len(usable), seed)
    left_out = {"documents": len(texts) - len(corpus), "train questions": len(samples["train"]) - len(train)}
    return Data(corpus, samples | {"train": train}, left_out)


def balanced(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` samples, as equally many per source as there are."""
    by_source: dict[str, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(sample.source, []).append(sample)
    rng = random.Random(seed)
    for group in by_source.values():
        rng.shuffle(group)
    rank = {id(s): place for group in by_source.values() for place, s in enumerate(group)}
    return sorted(samples, key=lambda s: (rank[id(s)], s.source))[:count]
