"""A question set over more and more of its documents: what each question needs first, then the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from msa.errors import EvaluationError
from msa.evaluation.runner import check_questions
from msa.evaluation.sets.questions import ANSWERABLE
from msa.evaluation.types import Question, QuestionSet

SEED = 0


class GrowingSet:
    """A question set whose documents are added in steps.

    A size holds the documents that the first questions need, as many as there is room for, and others drawn from the
    rest; what a size adds is shuffled, so that nothing is told by where a document stands. A question is asked at every
    size that has all documents it needs; one that does not say which, where all of the set's are there.

    Args:
        questions: the set.
        num_documents: of each size, growing.
        count: tokens of a text; they name the sizes.
        seed: of the draws.

    Raises:
        EvaluationError: see :func:`msa.evaluation.runner.check_questions`; numbers that do not grow, more documents
            than there are, documents without text, or a first size at which nothing could be asked.
    """

    def __init__(
        self, questions: QuestionSet, num_documents: Sequence[int], count: Callable[[str], int], *, seed: int = SEED
    ) -> None:
        check_questions(questions)
        self.name, self._texts = questions.name, questions.documents
        if not num_documents or num_documents[0] < 1 or any(new <= old for old, new in pairwise(num_documents)):
            raise EvaluationError(f"expected growing numbers of documents, found {list(num_documents)}")
        if num_documents[-1] > len(self._texts):
            raise EvaluationError(
                f"the set {questions.name!r} has {len(self._texts):,} documents, {num_documents[-1]:,} were asked for"
            )
        order = self._order(questions, seed)
        self._parts = [order[first:end] for first, end in pairwise([0, *num_documents])]
        for number, part in enumerate(self._parts):
            random.Random(f"{seed}/{number}").shuffle(part)
        tokens = [sum(count(self._texts[name]) for name in part) for part in self._parts]
        self.sizes = tuple(accumulate(tokens))
        if not all(tokens):
            raise EvaluationError(f"the set {questions.name!r} has documents without text; leave them out")
        place = {name: number for number, part in enumerate(self._parts) for name in part}
        self._asked = [
            tuple(one for one in questions.questions if _stage(one, place, len(self._texts)) <= number)
            for number in range(len(self.sizes))
        ]
        if not self._asked[0]:
            raise EvaluationError(
                f"none of the questions of {questions.name!r} can be answered from {num_documents[0]:,} documents; "
                "begin with more"
            )
        self.notes = (
            *questions.notes,
            "documents of each size: those that its questions need, and others of the set, shuffled; larger sizes add "
            "to smaller ones",
        )

    def num_documents(self, size: int) -> int:
        """Documents of that size, those of the sizes before included."""
        return sum(map(len, self._parts[: self.sizes.index(size) + 1]))

    def documents(self, size: int) -> Iterator[tuple[str, str]]:
        """What that size has beyond the one before: (id, text)."""
        return ((name, self._texts[name]) for name in self._parts[self.sizes.index(size)])

    def asked(self, size: int) -> tuple[Question, ...]:
        """The questions that the documents of that size can answer, in the set's order."""
        return self._asked[self.sizes.index(size)]

    @staticmethod
    def _order(questions: QuestionSet, seed: int) -> list[str]:
        """Ids: what questions need, question by question, then the rest as drawn."""
        needed = dict.fromkeys(name for question in questions.questions for name in question.positives)
        rest = [name for name in questions.documents if name not in needed]
        random.Random(seed).shuffle(rest)
        return [*needed, *rest]


def _stage(question: Question, place: dict[str, int], total: int) -> float:
    """The first size at which a question can be asked."""
    if question.positives:
        return max(place.get(name, float("inf")) for name in question.positives)
    if question.metadata.get(ANSWERABLE) is False:
        return 0
    return max(place.values()) if len(place) == total else float("inf")
