"""Does it remember? The same questions while a memory grows from thousands to 100 million tokens, and at every depth.

Each size adds documents to those encoded before; nothing is encoded twice, in this run or a resumed one. Of every
answer three stages are kept: whether the right documents were routed to, whether the model read them, whether it
answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from msa.evaluation.alternatives.prompts import answer_lead
from msa.evaluation.cost import counted_flops
from msa.evaluation.growth import check_grown, check_not_beyond, note_growth, read_growth
from msa.evaluation.records import Record, RecordLog
from msa.evaluation.ruler import GrowingMemory, string_match_all
from msa.evaluation.types import Prediction, Question
from msa.generation.decoding import Decoding
from msa.generation.types import Answer, Done
from msa.memory import AddProgress, Memory
from msa.model.bundle import MSAModel
from msa.routing import Tiers

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
                log.begin()  # the memory belongs to these settings
                cost = _grow(memory, growing, size, folder, on_growth)
                if cost["encoded_tokens"] or size not in noted:
                    cost |= _counted(memory, questions[0], ask_options or {})
                    note_growth(folder, cost)
            for number, question in enumerate(left, start=len(questions) - len(left) + 1):
                log.append(_ask(memory, growing, size, question, ask_options or {}))
                if on_question:
                    on_question(size, number, len(questions))
            records += log.of_questions(*place, questions)
    return records


def _grow(memory: Memory, growing: GrowingMemory, size: int, folder: Path, on_growth: Growing | None) -> dict[str, Any]:
    """Add what this size has beyond the one before, and say what that cost: nothing but a look for what is there."""
    wanted = growing.num_documents(size)
    check_not_beyond(folder, len(memory), wanted, size)
    encoded = 0

    def note(done: AddProgress) -> None:
        nonlocal encoded
        encoded = done.tokens
        if on_growth:
            on_growth(size, done)

    started = time.perf_counter()
    memory.add(({"id": name, "text": text} for name, text in growing.documents(size)), progress=note)
    seconds = time.perf_counter() - started
    check_grown(folder, len(memory), wanted)
    stats = memory.stats()
    kept = {name: stats[name] for name in ("documents", "tokens", "chunks", "bytes_on_disk")}
    return {"size": size, **kept, "encoded_tokens": encoded, "encode_seconds": seconds}


def _counted(memory: Memory, question: Question, options: dict[str, Any]) -> dict[str, int]:
    """Operations of routing and of answering one question, as torch counts them, and what the formulas need for it."""
    model, top_k = memory.model, memory.model.lm.config.top_k_docs
    turn = model.protocol.question_turn(question.question)
    memory.search(question.question, top_k=top_k)  # what is loaded and encoded once is not the question's
    return {
        "question_tokens": len(turn.ids),
        "routing_tokens": sum(turn.marked),
        "prefix_tokens": model.prefix.num_tokens,
        "search_flops": counted_flops(lambda: memory.search(question.question, top_k=top_k)),
        "question_flops": counted_flops(lambda: memory.ask(question.question, **_given(memory, question, options))),
    }


def _given(memory: Memory, question: Question, options: dict[str, Any]) -> dict[str, Any]:
    """Options of :meth:`Memory.ask` for a question."""
    given = {"max_new_tokens": question.max_new_tokens or 64, "answer_lead": answer_lead(memory.model, question)}
    return {**given, **options}


def _ask(memory: Memory, growing: GrowingMemory, size: int, question: Question, options: dict[str, Any]) -> Record:
    positives = set(question.positives)
    started = time.perf_counter()
    hits = memory.search(question.question, top_k=memory.model.lm.config.top_k_docs)
    search_s = time.perf_counter() - started
    started = time.perf_counter()
    answer, passes = _answered(memory, question, options)
    read = tuple(dict.fromkeys(hit.id for hit in answer.sources if hit.read))
    prediction = Prediction(
        text=answer.text,
        retrieved=tuple(hit.id for hit in hits),
        read=read,
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
            "read": float(positives <= set(read)),
            "answered": string_match_all(answer.text, question.answers),
        },
        metadata={
            **question.metadata,
            "depth": growing.depth(question.id, size)[0],
            "search_seconds": search_s,
            "route_seconds": answer.timings["route"],
            "decode_seconds": answer.timings["total"] - answer.timings["first_token"],
            "decode_passes": len(passes),
            "pass_seconds": sum(passes),
        },
    )


def _answered(memory: Memory, question: Question, options: dict[str, Any]) -> tuple[Answer, list[float]]:
    """The answer, and the seconds of each pass for one token that was made for it, those for ids included."""
    seconds, answer = [], None
    for item in memory.steps(question.question, **_given(memory, question, options)):
        if isinstance(item, Decoding):
            started = time.perf_counter()
            item.advance()
            if memory.model.device.type == "cuda":
                torch.cuda.synchronize(memory.model.device)
            seconds.append(time.perf_counter() - started)
        elif isinstance(item, Done):
            answer = item.answer
    assert answer is not None
    return answer, seconds
