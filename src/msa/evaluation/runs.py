"""Whole evaluations: every way of answering over every set, each answer kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from msa.evaluation.records import Record, RecordLog
from msa.evaluation.runner import Scorer, run_questions
from msa.evaluation.scoring import score_answer, score_ruler
from msa.evaluation.side_by_side import Make, Say, opened
from msa.evaluation.types import QuestionSet


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


def run_sets(
    make: Make,
    ways: Sequence[str],
    sets: Sequence[QuestionSet],
    log: RecordLog,
    *,
    count: Callable[[str], int],
    max_new_tokens: int,
    say: Say,
    limits: Mapping[str, int] | None = None,
) -> list[Record]:
    """Question sets, each over its own documents, every way; sizes are the documents' tokens.

    A way is made anew for each set that it has a question of left to answer. ``limits`` names ways that are asked only
    so many questions of all sets together, the first ones.
    """
    records: list[Record] = []
    left = dict(limits or {})
    for questions in sets:
        size = sum(map(count, questions.documents.values()))
        for name in ways:
            progress = _counting(say, f"{name}, {questions.name}")
            asked = replace(questions, questions=questions.questions[: left.get(name)])
            if name in left:
                left[name] -= len(asked.questions)
            if not asked.questions:
                continue
            records += _run_set(
                make,
                name,
                asked,
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
