"""What every source yields: a document and the questions that it answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that documents of the source answer.

    Attributes:
        kind: how it was made (``name``, ``sentence``, ...); counted and reported apart.
        query: the question.
        answer: what to answer; None: the question teaches retrieval only.
        hops: ids of the documents to find, one after the other; empty: the entry's own document.
    """

    kind: str
    query: str
    answer: str | None = None
    hops: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """A document and its questions.

    Attributes:
        id: id in the corpus, unique over all sources (``debian/0ad``).
        name: what the document is about, as questions call it.
        text: the document.
        questions: what it answers.
        group: entries of one group always come into the same split; empty: a group of its own.
    """

    id: str
    name: str
    text: str
    questions: tuple[Question, ...]
    group: str = ""


class Source(Protocol):
    """Where documents and questions come from.

    Attributes:
        name: first part of the ids and of the questions' ``source``.
        licence: terms of the text, for the manifest.
        settings: its arguments that change what it yields, for the manifest.
    """

    name: str
    licence: str
    settings: dict[str, int]

    def files(self) -> Mapping[str, Path]:
        """Every input file, under a name that does not depend on the machine.

        Raises:
            TrainingDataError: files are missing; the message says how to get them.
        """

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """Entries in random order, each id once; the same for the same state of ``rng``.

        Raises:
            TrainingDataError: files are missing or are something else.
        """
