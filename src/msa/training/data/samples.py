"""What training reads: questions over a corpus, with the documents that answer them.

A sample is one line of JSON; every reader and builder of this package produces the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question over a corpus.

    Attributes:
        query: the question (for pair data: the title, the query).
        positives: corpus ids of the documents to retrieve. Empty: the corpus cannot answer the question.
        documents: corpus ids of further documents that belong into this sample's memory, for instance hard negatives.
        answer: what to answer after reading; None: the sample teaches retrieval only.
        quotation: what to quote of the documents before the answer, for checkpoints that quote.
        hops: corpus ids per retrieval step, in order: ``(("a",), ("b",))`` finds a, reads it, then finds b. Empty: all
            positives in one step.
        teacher: (corpus id, score) of documents that a stronger retriever scored, for distillation.
        source: which dataset or generator it comes from; metrics are reported per source.

    Raises:
        ValueError: an empty query, or hops that name other documents than the positives.
    """

    query: str
    positives: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    answer: str | None = None
    quotation: str = ""
    hops: tuple[tuple[str, ...], ...] = ()
    teacher: tuple[tuple[str, float], ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError("the query is empty")
        if self.hops and sorted(i for hop in self.hops for i in hop) != sorted(self.positives):
            raise ValueError("hops must name each positive document once and no others")

    @property
    def named(self) -> tuple[str, ...]:
        """Corpus ids of every document the sample names, once each."""
        return tuple(dict.fromkeys((*self.positives, *self.documents, *(name for name, _ in self.teacher))))

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """Documents per retrieval step; no step at all for a question without positives."""
        if self.hops:
            return self.hops
        return (self.positives,) if self.positives else ()

    def to_json(self) -> dict[str, Any]:
        """The sample as a line of JSON, empty fields left out."""
        fields: dict[str, Any] = {"query": self.query, "positives": list(self.positives)}
        fields |= {"documents": list(self.documents)} if self.documents else {}
        fields |= {} if self.answer is None else {"answer": self.answer}
        fields |= {"quotation": self.quotation} if self.quotation else {}
        fields |= {"hops": [list(hop) for hop in self.hops]} if self.hops else {}
        fields |= {"teacher": dict(self.teacher)} if self.teacher else {}
        return fields | ({"source": self.source} if self.source else {})


@dataclass
class TrainingSet:
    """Samples and the corpus their ids point into.

    Attributes:
        corpus: document id → text.
        samples: the questions.
        problems: what was wrong in the files, ``file:line: what``, when reading was told to go on.
    """

    corpus: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def of_hops(self, least: int) -> TrainingSet:
        """The same corpus with the samples of so many retrieval steps or more."""
        return replace(self, samples=[sample for sample in self.samples if len(sample.steps) >= least])

    def unknown_ids(self) -> Iterator[tuple[int, str]]:
        """(sample index, id) of every id that is not in the corpus."""
        for index, sample in enumerate(self.samples):
            for document in sample.named:
                if document not in self.corpus:
                    yield index, document
