"""What is asked, what was answered, and what any way of answering must offer: shared by every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of an evaluation set.

    Attributes:
        id: unique in its set; results are kept and resumed by it.
        question: the user's words.
        answers: reference answers. What a task asks of them is its metric's business: any of them, or all.
        positives: ids of the documents that hold the answer; empty where it is not known, or nowhere.
        hops: documents that must be read one after the other, per step; empty where it is not known.
        task: what it belongs to: ``niah_single_1``, ``musique``; scores are reported per task.
        answer_prefix: how the answer must begin, where the task says so (RULER); empty otherwise.
        max_new_tokens: tokens the task allows for the answer; None: the runner's.
        metadata: anything else worth keeping with the result: depth of the needle, kind of question, date.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...] = ()
    hops: tuple[tuple[str, ...], ...] = ()
    task: str = ""
    answer_prefix: str = ""
    max_new_tokens: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Documents and questions over them.

    Attributes:
        name: of the set, for reports.
        documents: id → text, in the order they go into a memory.
        questions: what is asked.
        notes: what a reader of the scores must know: a substitute haystack, records left out, how the text was cut.
    """

    name: str
    documents: Mapping[str, str]
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one way of answering made of one question.

    Attributes:
        text: the answer.
        retrieved: ids of the documents it chose, best first; empty for ways that choose none.
        read: ids of those whose text it was given; None for ways that choose no documents to read.
        seconds: wall clock of the whole answer, retrieval included, encoding of documents excluded.
        first_token_s: until the first token of the answer.
        tokens_seen: prompt tokens the network processed for this question, cached ones not counted.
        note: why there is no answer (the context does not fit, memory ran out), or empty.
    """

    text: str
    retrieved: tuple[str, ...] = ()
    read: tuple[str, ...] | None = None
    seconds: float = 0.0
    first_token_s: float = 0.0
    tokens_seen: int = 0
    note: str = ""


class Answerer(Protocol):
    """A way to answer questions over documents: our memory, or one of the alternatives beside it."""

    name: str

    def prepare(self, documents: Mapping[str, str]) -> None:
        """Take in further documents (id → text), encoding them where each is encoded alone; earlier ones stay.

        A large corpus comes in many calls; what depends on all documents waits for :meth:`settle`.
        """

    def settle(self) -> None:
        """Finish what depends on all documents taken in, such as an index; nothing where nothing was taken in since.

        Without it :meth:`answer` does so first, and its time would count as the answer's.
        """

    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """Answer one question from the documents taken in so far.

        What cannot be answered for a stated reason (the context does not fit) is a prediction with a ``note``;
        anything else raises.
        """

    def resident_bytes(self) -> int:
        """Bytes held for the documents between questions, in RAM or on the accelerator, by its own count."""


class Growing(Protocol):
    """Documents that grow from size to size, and the questions asked over each size.

    Attributes:
        name: of the set, for the records.
        sizes: tokens of the documents, growing.
    """

    @property
    def name(self) -> str:
        """See the class."""

    @property
    def sizes(self) -> Sequence[int]:
        """See the class."""

    def num_documents(self, size: int) -> int:
        """Documents of that size, those of the sizes before included."""

    def documents(self, size: int) -> Iterator[tuple[str, str]]:
        """What that size has beyond the one before: (id, text), the same each time."""

    def asked(self, size: int) -> Sequence[Question]:
        """What is asked at that size."""
