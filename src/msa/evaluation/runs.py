"""Whole evaluations: every way of answering over every set, each answer kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from msa.evaluation.records import Record, RecordLog
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.runner import Scorer, run_questions
from msa.evaluation.scoring import score_answer, score_ruler
from msa.evaluation.types import Answerer, QuestionSet

Make = Callable[[str], Answerer]
Say = Callable[[str], None]


@contextmanager
def opened(make: Make, name: str) -> Iterator[Answerer]:
    """A way of answering, closed at the end if it can be closed."""
    answerer = make(name)
    try:
        yield answerer
    finally:
        close = getattr(answerer, "close", None)
        if close is not None:
            close()


def run_samples(
    make: Make, ways: Sequence[str], samples: Iterable[QuestionSet], log: RecordLog, *, size_tokens: int, say: Say
) -> tuple[list[Record], list[str]]:
    """RULER's samples, each with documents of its own; a way is made anew for each that it has not answered.

    Returns:
        The records, and the notes of all samples.
    """
    records: list[Record] = []
    notes: dict[str, None] = {}
    for sample in samples:
        notes |= dict.fromkeys(sample.notes)
        for name in ways:
            say(f"{name}: {sample.name}")
            records += _run_set(make, name, sample, log, score_ruler, size_tokens=size_tokens)
    return records, list(notes)


def run_growing(make: Make, ways: Sequence[str], growing: GrowingMemory, log: RecordLog, say: Say) -> list[Record]:
    """The questions of the first size, asked every way at every size; what a way has taken in stays.

    A way is made, and documents are, only where it has a question left to answer.
    """
    records: list[Record] = []
    task, questions = growing.task.name, growing.base_questions()
    for name in ways:
        with ExitStack() as stack:
            answerer: Answerer | None = None
            held: dict[str, str] = {}
            waiting: list[int] = []
            for size in growing.sizes:
                waiting.append(size)
                if log.missing(name, task, size, questions):
                    say(f"{name}: {size:,} tokens")
                    if answerer is None:
                        answerer = stack.enter_context(opened(make, name))
                    fresh = {document: text for part in waiting for document, text in growing.documents(part)}
                    waiting, held = [], held | fresh
                    answerer.prepare(fresh)
                    run_questions(
                        answerer,
                        QuestionSet(name=task, documents=held, questions=questions),
                        log,
                        score_ruler,
                        size_tokens=size,
                        prepare=False,
                        progress=_counting(say, f"{name}, {size:,} tokens"),
                    )
                records += log.of_questions(name, task, size, questions)
    return sorted(records, key=lambda record: record.size_tokens)


def run_sets(
    make: Make,
    ways: Sequence[str],
    sets: Sequence[QuestionSet],
    log: RecordLog,
    *,
    count: Callable[[str], int],
    max_new_tokens: int,
    say: Say,
) -> list[Record]:
    """Question sets, each over its own documents, every way; sizes are the documents' tokens.

    A way is made anew for each set that it has a question of left to answer.
    """
    records: list[Record] = []
    for questions in sets:
        size = sum(map(count, questions.documents.values()))
        for name in ways:
            progress = _counting(say, f"{name}, {questions.name}")
            records += _run_set(
                make,
                name,
                questions,
                log,
                score_answer,
                size_tokens=size,
                max_new_tokens=max_new_tokens,
                progress=progress,
            )
    return records


def _run_set(
    make: Make, name: str, questions: QuestionSet, log: RecordLog, scorer: Scorer, *, size_tokens: int, **options: Any
) -> list[Record]:
    """One set one way; ``options`` are those of :func:`run_questions`."""
    asked = (name, questions.name, size_tokens, questions.questions)
    if log.missing(*asked):
        with opened(make, name) as answerer:
            return run_questions(answerer, questions, log, scorer, size_tokens=size_tokens, **options)
    return log.of_questions(*asked)


def _counting(say: Say, what: str) -> Callable[[int, int], None]:
    return lambda done, total: say(f"{what}: question {done} of {total}")
