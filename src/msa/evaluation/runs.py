"""Whole evaluations: every way of answering over every set, each answer kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from msa.evaluation.records import Record, RecordLog
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.runner import run_questions
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
    """RULER's samples, each with documents of its own; a way is made anew for each.

    Returns:
        The records, and the notes of all samples.
    """
    records: list[Record] = []
    notes: dict[str, None] = {}
    for sample in samples:
        notes |= dict.fromkeys(sample.notes)
        for name in ways:
            say(f"{name}: {sample.name}")
            keys = [(name, sample.name, size_tokens, question.id) for question in sample.questions]
            if all(key in log for key in keys):
                records += [log.records[key] for key in keys]
                continue
            with opened(make, name) as answerer:
                records += run_questions(answerer, sample, log, score_ruler, size_tokens=size_tokens)
    return records, list(notes)


def run_growing(make: Make, ways: Sequence[str], growing: GrowingMemory, log: RecordLog, say: Say) -> list[Record]:
    """The questions of the first size, asked every way at every size; what a way has taken in stays."""
    records: list[Record] = []
    for name in ways:
        with opened(make, name) as answerer:
            held: dict[str, str] = {}
            fresh: dict[str, str] = {}
            for size in growing.sizes:
                new = dict(growing.documents(size))
                held |= new
                fresh |= new
                asked = QuestionSet(name=growing.task.name, documents=held, questions=growing.base_questions())
                say(f"{name}: {size:,} tokens")
                if any((name, asked.name, size, question.id) not in log for question in asked.questions):
                    answerer.prepare(fresh)
                    fresh = {}
                records += run_questions(
                    answerer,
                    asked,
                    log,
                    score_ruler,
                    size_tokens=size,
                    prepare=False,
                    progress=_counting(say, f"{name}, {size:,} tokens"),
                )
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
    """Question sets, each over its own documents, every way; sizes are the documents' tokens."""
    records: list[Record] = []
    for questions in sets:
        size = sum(map(count, questions.documents.values()))
        for name in ways:
            with opened(make, name) as answerer:
                records += run_questions(
                    answerer,
                    questions,
                    log,
                    score_answer,
                    size_tokens=size,
                    max_new_tokens=max_new_tokens,
                    progress=_counting(say, f"{name}, {questions.name}"),
                )
    return records


def _counting(say: Say, what: str) -> Callable[[int, int], None]:
    return lambda done, total: say(f"{what}: question {done} of {total}")
