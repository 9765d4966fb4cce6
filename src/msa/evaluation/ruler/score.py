"""RULER's scores: per task, their plain mean, and how sure both are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from msa.errors import EvaluationError
from msa.evaluation.statistics import mean_interval

_CONTROL = re.compile(r"[\x00-\x1f]")


class Answered(Protocol):
    """What is scored; a :class:`~msa.evaluation.records.Record` is one."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def text(self) -> str:
        """The answer; empty counts as wrong."""

    @property
    def answers(self) -> Sequence[str]:
        """Reference answers."""


@dataclass(frozen=True)
class TaskScore:
    """Score of one task, 0 to 100, with its 95 % interval.

    Attributes:
        task: its name.
        score, low, high: mean over samples and the interval of :func:`~msa.evaluation.statistics.mean_interval`.
        samples: how many.
        empty: how many of them have no answer at all; RULER reports them as nulls.
    """

    task: str
    score: float
    low: float
    high: float
    samples: int
    empty: int


@dataclass(frozen=True)
class RulerScore:
    """Scores of all tasks and their plain mean, whose interval combines those of the tasks.

    Each task weighs the same, however many samples it has; ``tasks`` says which went in.
    """

    tasks: tuple[TaskScore, ...]
    average: float
    low: float
    high: float


def string_match_all(text: str, answers: Sequence[str]) -> float:
    """Share of the references that the answer contains, in any case; RULER's for needles and variables.

    >>> string_match_all("They are 17 and 5.", ["17", "23"])
    0.5
    """
    text = _CONTROL.sub("\n", text.strip()).strip().lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def string_match_part(text: str, answers: Sequence[str]) -> float:
    """1 if the answer contains any of the references, else 0; RULER's for its question answering tasks.

    >>> string_match_part("In Paris.", ["paris", "Paris, France"])
    1.0
    """
    text = _CONTROL.sub("\n", text.strip()).strip().lower()
    return float(any(answer.lower() in text for answer in answers))


def score(answered: Iterable[Answered], *, seed: int = 0) -> RulerScore:
    """Score answers as RULER does: ``string_match_all`` × 100, mean over a task's samples, mean over the tasks.

    The interval of the average takes the tasks as independent: its distance to either side is the root of the sum of
    the tasks' squared distances, over their number (MOVER: Zou & Donner 2008).

    Args:
        answered: answers of any number of tasks, in any order.
        seed: of the bootstrap.

    Raises:
        EvaluationError: no answers, or one without references.
    """
    by_task: dict[str, list[Answered]] = {}
    for one in answered:
        if not one.answers:
            raise EvaluationError(f"an answer of {one.task!r} has no references to be scored by")
        by_task.setdefault(one.task, []).append(one)
    if not by_task:
        raise EvaluationError("there are no answers to score")
    tasks = tuple(_task_score(task, own, seed) for task, own in by_task.items())
    average = sum(task.score for task in tasks) / len(tasks)
    below = math.sqrt(sum((task.score - task.low) ** 2 for task in tasks)) / len(tasks)
    above = math.sqrt(sum((task.high - task.score) ** 2 for task in tasks)) / len(tasks)
    return RulerScore(tasks, average, average - below, average + above)


def _task_score(task: str, answered: Sequence[Answered], seed: int) -> TaskScore:
    values = [string_match_all(one.text, one.answers) for one in answered]
    interval = mean_interval(values, seed=seed)
    empty = sum(not one.text.strip() for one in answered)
    return TaskScore(task, 100 * interval.mean, 100 * interval.low, 100 * interval.high, len(values), empty)
