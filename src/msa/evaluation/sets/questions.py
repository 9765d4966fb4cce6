"""What all readers of question sets share: the collector of documents, questions and problems, and answers' fields."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.types import Question, QuestionSet
from msa.training.data.collector import Collector, Fault, Place, shorten
from msa.training.data.fields import as_list, kind_of
from msa.training.data.samples import Sample

logger = logging.getLogger(__name__)

# metadata of a question: false where the documents cannot answer it, so that declining is right
ANSWERABLE = "answerable"
# metadata of a question: ids of the documents that it is asked about, where each question has its own
CONTEXT = "context"


class QuestionCollector(Collector):
    """Documents, questions and problems, as the files of one set are read.

    Args:
        files: paths, as posix, whose records are wanted; None: all. The readers for training read whole folders.
        retrieval_only: whether questions may lack reference answers.
    """

    def __init__(self, *, files: Collection[str] | None = None, retrieval_only: bool = False) -> None:
        super().__init__()
        self.notes: list[str] = []
        self._retrieval_only = retrieval_only
        self._files = files
        self._questions: list[tuple[Place, Question]] = []

    @property
    def samples(self) -> list[tuple[Place, Sample]]:
        """What a reader for training found, with its place."""
        return self._samples

    def add_problem(self, place: Place, kind: str, what: str) -> None:
        """Note a problem, unless its file is not wanted; the record at ``place`` is not used."""
        if self._wants(place):
            super().add_problem(place, kind, what)

    def add_document(self, name: str, text: str, place: Place) -> None:
        """Put a text into the set, unless its file is not wanted; an empty one is a problem.

        Raises:
            Fault: another text has this id.
        """
        if self._wants(place):
            super().add_document(name, text, place)

    def add_sample(self, place: Place, texts: Iterable[tuple[str, str]] = (), **fields: Any) -> None:
        """Keep a sample of a reader for training, unless its file is not wanted."""
        if self._wants(place):
            super().add_sample(place, texts, **fields)

    def add_question(self, place: Place, question: Question) -> None:
        """Add a question.

        Raises:
            Fault: it has no words, or no reference answers although they are needed.
        """
        if not question.question.strip():
            raise Fault("invalid question", "the question is empty")
        if any(not answer.strip() for answer in question.answers):
            raise Fault("missing answer", "a reference answer is empty")
        if not question.answers and question.metadata.get(ANSWERABLE, True) and not self._retrieval_only:
            what = 'has no reference answer. Write "answers": ["..."], or "answerable": false if there is none in the'
            raise Fault("missing answer", f"{what} documents")
        self._questions.append((place, question))

    def finish_questions(self, name: str, *, skip_bad: bool) -> QuestionSet:
        """Look up every id and report the problems.

        Raises:
            EvaluationError: there are problems and ``skip_bad`` is false, or nothing is left to ask or to ask about.
        """
        total = len(self._questions)
        seen: dict[str, Place] = {}
        kept = [question for place, question in self._questions if self._fits(place, question, seen)]
        self.problems.sort(key=lambda problem: (problem.place.file, problem.place.line, problem.place.item))
        if self._unused_keys:
            named = ", ".join(f"{shorten(key)} ({count})" for key, count in self._unused_keys.most_common())
            logger.warning("%s: keys that nothing makes use of, with the number of records: %s", name, named)
        if self.problems and not skip_bad:
            raise EvaluationError(
                f"{name}: {self._report()}\nCorrect them, or leave these records out with --skip-bad (in Python "
                "skip_bad=True), which the set's notes will say"
            )
        if not kept or not self.corpus:
            lacking = "questions" if not kept else "documents"
            report = f"; {self._report()}" if self.problems else ""
            raise EvaluationError(f"{name} has no {lacking} that can be used ({total} questions were read{report})")
        if self.problems:
            logger.warning("%s: left out: %s", name, "; ".join(map(str, self.problems)))
            self.notes.append(f"records left out: {self._report()}")
        return QuestionSet(name=name, documents=self.corpus, questions=tuple(kept), notes=tuple(self.notes))

    def _wants(self, place: Place) -> bool:
        return self._files is None or place.file in self._files

    def _fits(self, place: Place, question: Question, seen: dict[str, Place]) -> bool:
        """Whether the question can be asked; if not, that is a problem."""
        first = seen.setdefault(question.id, place)
        if first is not place:
            self.add_problem(place, "id given twice", f"the id {shorten(question.id)} is also that of {first}")
            return False
        context = question.metadata.get(CONTEXT, ())
        for name in (*question.positives, *(name for hop in question.hops for name in hop), *context):
            if name in self.corpus:
                continue
            if name in self._seen:
                what = f"names the document {shorten(name)}, which cannot be used ({self._seen[name][1]})"
                self.add_problem(place, "names an unusable document", what)
            else:
                self.add_problem(
                    place, "unknown id", f"no document has the id {shorten(name)}. Add it to the set's documents"
                )
            return False
        return True


def answer_texts(value: Any, key: str) -> tuple[str, ...]:
    """Reference answers from a string, a number, or a list of them; equal ones once.

    Raises:
        Fault: anything else.
    """
    items = [value] if isinstance(value, str | int | float) else as_list(value, key)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise Fault("wrong type", f'"{key}" holds {kind_of(item)}. Give texts')
    return tuple(dict.fromkeys(str(item) for item in items))


def strings(value: Any, key: str) -> tuple[str, ...]:
    """A list of strings.

    Raises:
        Fault: it is none.
    """
    items = as_list(value, key)
    for item in items:
        if not isinstance(item, str):
            raise Fault("wrong type", f'"{key}" holds {kind_of(item)}. Give strings')
    return tuple(items)


def flag(record: dict[str, Any], key: str, default: bool) -> bool:
    """A truth value; ``default`` if it is missing or null.

    Raises:
        Fault: it is something else.
    """
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Fault("wrong type", f'"{key}" is {kind_of(value)}. Give true or false')
    return value
