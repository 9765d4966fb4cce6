"""Held-out questions over a corpus whose documents lie at the beginning, in the middle and at the end of a memory."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msa
from msa.evaluation.metrics import contains_answer, recall_at

PLACES = ("beginning", "middle", "end")
RECALLS = (1, 5, 16)
BATCH = 20  # questions at a time
NEW_TOKENS = 48


@dataclass
class PlacedQuestions:
    """Thirds of a corpus, drawn once for all, and the questions that each answers.

    Attributes:
        documents: place → what is added there.
        questions: place → lines of the questions' file all of whose documents lie there.
    """

    documents: dict[str, list[dict[str, str]]]
    questions: dict[str, list[dict[str, Any]]]


def read_placed(corpus: Path, questions: Path) -> PlacedQuestions:
    """Lines ``{"id", "text"}`` and ``{"query", "positives", "answer", "source"}``."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    cuts = [len(rows) * i // len(PLACES) for i in range(len(PLACES) + 1)]
    documents = {
        place: [{"id": row["id"], "text": row["text"]} for row in rows[cuts[i] : cuts[i + 1]]]
        for i, place in enumerate(PLACES)
    }
    place_of = {row["id"]: place for place, part in documents.items() for row in part}
    placed: dict[str, list[dict[str, Any]]] = {place: [] for place in PLACES}
    for question in map(json.loads, questions.read_text(encoding="utf-8").splitlines()):
        places = {place_of[name] for name in question["positives"]}
        if len(places) == 1:
            placed[places.pop()].append(question)
    return PlacedQuestions(documents, placed)


def found_at(memory: msa.Memory, questions: dict[str, list[dict[str, Any]]], answered: int) -> dict[str, Any]:
    """Of the questions of each place, and of each source: recalls, and how many of the first are answered.

    An answer counts that holds the expected text; ``answered`` questions of each place are answered from what is routed
    to.
    """
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, asked in questions.items():
        for first in range(0, len(asked), BATCH):
            for question, scores in zip(*_scored(memory, asked[first : first + BATCH]), strict=True):
                _note(groups, place, question, scores)
        replied = [question for question in asked if question.get("answer")][:answered]
        for first in range(0, len(replied), BATCH):
            batch = replied[first : first + BATCH]
            answers = memory.ask_many([q["query"] for q in batch], retrieval="routed", max_new_tokens=NEW_TOKENS)
            for question, answer in zip(batch, answers, strict=True):
                right = contains_answer(answer.text, (question["answer"],))
                _note(groups, place, question, {"answered": float(right)})
    return {
        name: {"questions": len(scores["recall@1"]), "asked": len(scores.get("answered", ()))}
        | {key: sum(values) / len(values) for key, values in sorted(scores.items())}
        for name, scores in groups.items()
    }


def _scored(
    memory: msa.Memory, questions: Sequence[dict[str, Any]]
) -> tuple[Sequence[dict[str, Any]], list[dict[str, float]]]:
    hits = memory._current_engine().search([question["query"] for question in questions], RECALLS[-1])
    found = [[hit.id for hit in row] for row in hits]
    return questions, [
        {f"recall@{k}": recall_at(ids, question["positives"], k) for k in RECALLS}
        for ids, question in zip(found, questions, strict=True)
    ]


def _note(
    groups: dict[str, dict[str, list[float]]], place: str, question: dict[str, Any], scores: dict[str, float]
) -> None:
    for name in (place, f"{question['source'].partition('/')[0]}, {place}"):
        for key, value in scores.items():
            groups[name][key].append(value)
