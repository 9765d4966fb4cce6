"""Invented notes: one entry for each row of each template's table."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from calibration import articles, papers
from calibration.draws import Written
from calibration.entries import Entry

TEMPLATES: tuple[tuple[Callable[[random.Random, list[str]], Written], str], ...] = (
    (articles.biography, articles.BIOGRAPHIES),
    (papers.meeting, papers.MEETINGS),
    (articles.product, articles.PRODUCTS),
    (papers.recipe, papers.RECIPES),
    (articles.news, articles.NEWS),
    (papers.letter, papers.LETTERS),
    (papers.journey, papers.JOURNEYS),
    (articles.company, articles.COMPANIES),
    (papers.measurement, papers.MEASUREMENTS),
    (articles.exhibit, articles.EXHIBITS),
    (papers.ticket, papers.TICKETS),
    (articles.place, articles.PLACES),
)


def template_entries(rng: random.Random) -> Iterator[Entry]:
    """One entry for each subject of each template."""
    asked: set[str] = set()
    for template, subjects in TEMPLATES:
        for row in subjects.strip().split("\n"):
            sentences, questions = template(rng, row.split("|"))
            question = rng.choice([question for question in questions if question not in asked])
            asked.add(question)
            yield " ".join(sentences), question
