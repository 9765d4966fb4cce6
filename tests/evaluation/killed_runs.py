"""Evaluations over a growing memory, killed again and again at what they write, until one gets through.

Run by test_killed_runs.py in a process of its own, because it forks.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from children import ended, fork
from tiny import tiny_model

from msa.evaluation.alternatives import make
from msa.evaluation.records import RecordLog, read_records
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.scaling import run_scaling
from msa.evaluation.side_by_side import SideBySide
from msa.memory import Memory

SIZES = (700, 1400)
WAYS = ("msa", "msa-dot", "rag-bm25@1")
WRITES = ("fsync", "replace", "rename", "link")


def count(text: str) -> int:
    """Words."""
    return len(re.findall(r"\w+", text))


def growing() -> GrowingMemory:
    """Two sizes of a few documents."""
    return GrowingMemory("niah_single_1", SIZES, count, num_questions=11, document_tokens=40)


def compare(model: Any, folder: Path) -> None:
    """Every way, one question a size."""
    with RecordLog(folder / "records.jsonl", {}) as log:
        SideBySide(
            make=lambda name, **options: make(name, model, **options),
            growing=growing(),
            log=log,
            folder=folder,
            say=lambda message: None,
            limits=dict.fromkeys(WAYS, 1),
        ).run(WAYS)


def scale(model: Any, folder: Path) -> None:
    """The curve, all questions."""
    with RecordLog(folder / "records.jsonl", {}) as log:
        run_scaling(model, growing(), folder, log, ask_options={"max_new_tokens": 1, "max_rounds": 1})


def killed_at(write: int) -> list[int]:
    """Kill this process just before its ``write``-th write becomes durable; returns a place that counts them."""
    seen = [0]

    def wrapped(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return call

    for name in WRITES:
        setattr(os, name, wrapped(name))
    return seen


def contents(model: Any, folder: Path) -> dict[str, Any]:
    """Records without their times, documents of every memory, and what is damaged."""
    _, records = read_records(folder / "records.jsonl")
    memories = {}
    for path in sorted(folder.glob("memory*")):
        with Memory.open(path, model) as memory:
            assert memory.verify() == []
            memories[path.name] = {document.id: document.text for document in memory.list()}
    written = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    lines = sum("stretch" not in json.loads(line) for line in written)  # each attempt that answers says where
    answers = {"|".join(map(str, record.key)): [record.text, *record.retrieved] for record in records}
    return {"lines": lines, "answers": answers, "memories": memories}


def main(task: str, folder: Path, seed: int) -> None:
    """One run from start to end, and one that is killed on its way; both are written down."""
    torch.set_num_threads(1)
    run = {"compare": compare, "scale": scale}[task]
    model = tiny_model(max_position_embeddings=4096)

    def whole() -> None:
        seen = killed_at(-1)
        run(model, folder / "whole")
        (folder / "writes").write_text(str(seen[0]))

    if ended(fork(whole)):
        sys.exit("the whole run failed")
    writes, rng, kills = int((folder / "writes").read_text()), random.Random(seed), 0

    def attempt(write: int) -> None:
        killed_at(write)
        run(model, folder / "killed")

    while True:
        write = rng.randint(1, writes // 2)
        code = ended(fork(lambda write=write: attempt(write)))  # type: ignore[misc]
        if code == 0:
            break
        if code != -signal.SIGKILL:
            sys.exit(f"an attempt failed with {code}")
        kills += 1
    found: dict[str, Any] = {"writes": writes, "kills": kills}
    for name in ("whole", "killed"):
        found[name] = contents(model, folder / name)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
