"""Does it remember? The same questions while a memory grows from thousands to 100 million tokens, and at every depth.

Each size adds documents to those encoded before; nothing is encoded twice, in this run or a resumed one. Of every
answer three stages are kept: whether the right documents were routed to, whether the model read them, whether it
answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from msa.errors import EvaluationError
from msa.evaluation.records import Record, RecordLog
from msa.evaluation.ruler import GrowingMemory, string_match_all
from msa.evaluation.statistics import wilson_interval
from msa.evaluation.types import Question
from msa.memory import AddProgress, Memory
from msa.model.bundle import MSAModel
from msa.routing import Tiers

STAGES = ("routed", "read", "answered")
GROWTH_NAME = "growth.jsonl"

Growing = Callable[[int, AddProgress], None]
Asking = Callable[[int, int, int], None]


def run_scaling(
    model: MSAModel,
    growing: GrowingMemory,
    folder: Path,
    log: RecordLog,
    *,
    tiers: Tiers | None = None,
    ask_options: dict[str, Any] | None = None,
    on_growth: Growing | None = None,
    on_question: Asking | None = None,
) -> list[Record]:
    """Grow the memory size by size, and ask at each.

    Args:
        model: encodes and answers.
        growing: documents and questions of all sizes.
        folder: of the run; the memory is in ``memory/``, what each size cost in ``growth.jsonl``.
        log: keeps each answer.
        tiers: where latents live while asked.
        ask_options: for :meth:`msa.Memory.ask`.
        on_growth: called with the size and how far adding has come.
        on_question: called with the size, questions done and questions in all.

    Returns:
        The records of all questions at all sizes.
    """
    records = []
    with Memory.open(folder / "memory", model, tiers=tiers) as memory:
        for size in growing.sizes:
            _grow(memory, growing, size, folder / GROWTH_NAME, on_growth)
            questions = growing.questions(size)
            for number, question in enumerate(questions, start=1):
                key = ("msa", growing.task.name, size, question.id)
                if key not in log:
                    log.append(_ask(memory, growing, size, question, ask_options or {}))
                records.append(log.records[key])
                if on_question:
                    on_question(size, number, len(questions))
    return records


def _grow(memory: Memory, growing: GrowingMemory, size: int, path: Path, on_growth: Growing | None) -> None:
    """Add what this size has beyond the one before, and note what it cost; a second time does nothing."""
    wanted = growing.num_documents(size)
    if len(memory) >= wanted:
        return
    started, before = time.perf_counter(), memory.stats()["tokens"]
    missing = _missing(growing.documents(size), memory)
    memory.add(missing, progress=None if on_growth is None else lambda done: on_growth(size, done))
    if len(memory) != wanted:
        raise EvaluationError(
            f"the memory in {path.parent} holds {len(memory):,} documents where {wanted:,} belong; "
            "it was made for something else. Give another --out"
        )
    stats = memory.stats()
    entry = {
        "size": size,
        "documents": stats["documents"],
        "tokens": stats["tokens"],
        "chunks": stats["chunks"],
        "bytes_on_disk": stats["bytes_on_disk"],
        "encoded_tokens": stats["tokens"] - before,
        "encode_seconds": time.perf_counter() - started,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _missing(documents: Iterator[tuple[str, str]], memory: Memory) -> Iterator[dict[str, str]]:
    for name, text in documents:
        if name not in memory:
            yield {"id": name, "text": text}


def _ask(memory: Memory, growing: GrowingMemory, size: int, question: Question, options: dict[str, Any]) -> Record:
    positives = set(question.positives)
    started = time.perf_counter()
    hits = memory.search(question.question, top_k=memory.model.lm.config.top_k_docs)
    search_s = time.perf_counter() - started
    started = time.perf_counter()
    answer = memory.ask(question.question, **{"max_new_tokens": question.max_new_tokens or 64, **options})
    seconds = time.perf_counter() - started
    read = tuple(dict.fromkeys(hit.id for hit in answer.sources if hit.read))
    return Record(
        answerer="msa",
        set=growing.task.name,
        size_tokens=size,
        question_id=question.id,
        task=question.task,
        question=question.question,
        answers=question.answers,
        positives=question.positives,
        text=answer.text,
        retrieved=tuple(hit.id for hit in hits),
        read=read,
        seconds=seconds,
        first_token_s=answer.timings["first_token"],
        tokens_seen=answer.usage.prompt_tokens,
        note="; ".join(answer.notes),
        resident_bytes=psutil.Process().memory_info().rss,
        scores={
            "routed": float(positives <= {hit.id for hit in hits}),
            "read": float(positives <= set(read)),
            "answered": string_match_all(answer.text, question.answers),
        },
        metadata={
            **question.metadata,
            "depth": growing.depth(question.id, size)[0],
            "search_seconds": search_s,
            "route_seconds": answer.timings["route"],
        },
    )


def curve(records: Sequence[Record], base: Sequence[Question]) -> list[dict[str, Any]]:
    """Per size the stages' rates of the questions that are asked at every size, with 95 % intervals, and times."""
    wanted = {question.id for question in base}
    sizes = sorted({record.size_tokens for record in records})
    points = []
    for size in sizes:
        group = [record for record in records if record.size_tokens == size and record.question_id in wanted]
        if not group:
            continue
        point: dict[str, Any] = {"size": size, "questions": len(group)}
        for stage in STAGES:
            interval = wilson_interval(round(sum(record.scores[stage] for record in group)), len(group))
            rate = sum(record.scores[stage] for record in group) / len(group)
            point[stage] = {"rate": rate, "low": interval.low, "high": interval.high}
        for name in ("seconds", "first_token_s"):
            point[name] = _median([getattr(record, name) for record in group])
        point["search_seconds"] = _median([record.metadata["search_seconds"] for record in group])
        point["resident_bytes"] = max(record.resident_bytes for record in group)
        points.append(point)
    return points


def depth_rates(records: Sequence[Record], growing: GrowingMemory, stage: str) -> list[list[float | None]]:
    """Rate of a stage for each depth of the grid (rows) at each size (columns); None where nothing was asked."""
    by_key = {(record.size_tokens, record.question_id): record.scores[stage] for record in records}
    columns = []
    for size in growing.sizes:
        cells = growing.depth_map(size).values()
        found = [[by_key[size, q.id] for q in cell if (size, q.id) in by_key] for cell in cells]
        columns.append([sum(values) / len(values) if values else None for values in found])
    return [list(row) for row in zip(*columns, strict=True)]


def read_growth(folder: Path) -> list[dict[str, Any]]:
    """What each size cost to encode, in the order they were reached."""
    path = folder / GROWTH_NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise EvaluationError(f"{path} is damaged ({error}); remove the line that is not JSON") from error


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
