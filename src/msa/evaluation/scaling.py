"""Does it remember? The same questions while a memory grows from thousands to 100 million tokens, and at every depth.

Each size adds documents to those encoded before; nothing is encoded twice, in this run or a resumed one. Of every
answer three stages are kept: whether the right documents were routed to, whether the model read them, whether it
answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from msa.errors import EvaluationError
from msa.evaluation.alternatives.prompts import answer_lead
from msa.evaluation.line_file import BrokenLineError, LineFile
from msa.evaluation.records import Record, RecordLog
from msa.evaluation.ruler import GrowingMemory, string_match_all
from msa.evaluation.statistics import mean_interval
from msa.evaluation.types import Prediction, Question
from msa.memory import AddProgress, Memory
from msa.model.bundle import MSAModel
from msa.routing import Tiers

STAGES = ("routed", "read", "answered")
GROWTH_NAME = "growth.jsonl"
_WAY = "msa"

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

    Raises:
        EvaluationError: the memory was made for something else, or has grown beyond a size that is still to be asked.
    """
    records = []
    noted = {entry["size"] for entry in read_growth(folder)}
    with Memory.open(folder / "memory", model, tiers=tiers) as memory:
        for size in growing.sizes:
            questions, place = growing.questions(size), (_WAY, growing.task.name, size)
            left = log.missing(*place, questions)
            if left or len(memory) < growing.num_documents(size) or size not in noted:
                cost = _grow(memory, growing, size, folder, on_growth)
                if cost["encoded_tokens"] or size not in noted:
                    with LineFile(folder / GROWTH_NAME) as file:
                        file.append(cost)
            for number, question in enumerate(left, start=len(questions) - len(left) + 1):
                log.append(_ask(memory, growing, size, question, ask_options or {}))
                if on_question:
                    on_question(size, number, len(questions))
            records += log.of_questions(*place, questions)
    return records


def _grow(memory: Memory, growing: GrowingMemory, size: int, folder: Path, on_growth: Growing | None) -> dict[str, Any]:
    """Add what this size has beyond the one before, and say what that cost: nothing but a look for what is there."""
    wanted = growing.num_documents(size)
    if len(memory) > wanted:
        raise EvaluationError(
            f"the memory in {folder} holds {len(memory):,} documents, more than the {wanted:,} of {size:,} tokens; "
            "a size can only be asked before the memory grows beyond it. Give another --out"
        )
    encoded = 0

    def note(done: AddProgress) -> None:
        nonlocal encoded
        encoded = done.tokens
        if on_growth:
            on_growth(size, done)

    started = time.perf_counter()
    memory.add(({"id": name, "text": text} for name, text in growing.documents(size)), progress=note)
    seconds = time.perf_counter() - started
    if len(memory) != wanted:
        raise EvaluationError(
            f"the memory in {folder} holds {len(memory):,} documents where {wanted:,} belong; "
            "it was made for something else. Give another --out"
        )
    stats = memory.stats()
    kept = {name: stats[name] for name in ("documents", "tokens", "chunks", "bytes_on_disk")}
    return {"size": size, **kept, "encoded_tokens": encoded, "encode_seconds": seconds}


def _ask(memory: Memory, growing: GrowingMemory, size: int, question: Question, options: dict[str, Any]) -> Record:
    positives = set(question.positives)
    started = time.perf_counter()
    hits = memory.search(question.question, top_k=memory.model.lm.config.top_k_docs)
    search_s = time.perf_counter() - started
    started = time.perf_counter()
    given = {"max_new_tokens": question.max_new_tokens or 64, "answer_lead": answer_lead(memory.model, question)}
    answer = memory.ask(question.question, **{**given, **options})
    prediction = Prediction(
        text=answer.text,
        retrieved=tuple(hit.id for hit in hits),
        read=tuple(dict.fromkeys(hit.id for hit in answer.sources if hit.read)),
        seconds=time.perf_counter() - started,
        first_token_s=answer.timings["first_token"],
        tokens_seen=answer.usage.prompt_tokens,
        note="; ".join(answer.notes),
    )
    return Record.of(
        question,
        prediction,
        answerer=_WAY,
        set=growing.task.name,
        size_tokens=size,
        resident_bytes=psutil.Process().memory_info().rss,
        scores={
            "routed": float(positives <= set(prediction.retrieved)),
            "read": float(positives <= set(prediction.read)),
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
            interval = mean_interval([record.scores[stage] for record in group])
            point[stage] = {"rate": interval.mean, "low": interval.low, "high": interval.high}
        point["seconds"] = median(record.seconds for record in group)
        point["first_token_s"] = median(record.first_token_s for record in group)
        point["search_seconds"] = median(record.metadata["search_seconds"] for record in group)
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
    """What each size cost to encode, in the order they were reached.

    Raises:
        EvaluationError: the file is damaged before its last line.
    """
    path = folder / GROWTH_NAME
    entries = []
    try:
        for number, entry in LineFile(path).read():
            if not isinstance(entry, dict) or "size" not in entry:
                raise BrokenLineError(number, "it names no size")
            entries.append(entry)
    except BrokenLineError as error:
        raise EvaluationError(f"{path} is damaged ({error}); remove the line that is not JSON") from error
    return entries
