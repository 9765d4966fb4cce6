"""A training set → tensors: documents with ids drawn anew, and one row per retrieval step.

Axes: N documents, L document tokens, B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msa.documents import Protocol
from msa.documents.batching import length_buckets, pad_right
from msa.model import DocumentMemory
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.steps import (
    IGNORED,
    RetrievalStep,
    TokenizedStep,
    refusal_step,
    retrieval_steps,
    second_try,
    tokenize_step,
)


class _OnDevice:
    """A dataclass of tensors that moves as a whole."""

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}  # type: ignore[arg-type]
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})  # type: ignore[type-var]


@dataclass
class DocumentBucket(_OnDevice):
    """Documents of similar lengths.

    Attributes:
        input_ids: ``[N, L]`` right-padded; lengths: ``[N]``.
        closing_lengths: tokens of each document's closing id and end ``[N]``.
    """

    input_ids: Tensor
    lengths: Tensor
    closing_lengths: Tensor


@dataclass
class RowBucket(_OnDevice):
    """Rows of similar lengths, right padded.

    Attributes:
        input_ids, attention_mask, routing_mask: ``[B, T]``.
        id_labels, answer_labels: ``[B, T]``, −100 where there is none.
        selectable: bool ``[B, N]`` over the documents of the whole batch, False for those a row has read already.
        positives: per row the documents to retrieve now; empty: the row has no routing loss.
        sources: per row the sample's source.
        teacher: a stronger retriever's scores ``[B, N]`` of what is to be retrieved now, −inf where it says nothing;
            None: it says nothing at all.
    """

    input_ids: Tensor
    attention_mask: Tensor
    routing_mask: Tensor
    id_labels: Tensor
    answer_labels: Tensor
    selectable: Tensor
    positives: list[list[int]]
    sources: list[str]
    teacher: Tensor | None = None

    def count(self, labels: Tensor) -> int:
        """Tokens that a loss over ``labels`` averages."""
        return int((labels[:, 1:] != IGNORED).sum())


@dataclass
class TrainingBatch:
    """What one optimiser step learns from: a memory, and rows that each see all of it.

    Attributes:
        documents: in buckets, shortest first; documents are counted through all buckets.
        rows: in buckets, shortest first.
        numbers: the number each document was given.
        memory: latents of the documents where they were encoded before; then ``documents`` is empty.
        copies, recalls: rows to copy, and rows of several questions about one text, which see no memory; None: none.
    """

    documents: list[DocumentBucket]
    rows: list[RowBucket]
    numbers: list[int]
    memory: DocumentMemory | None = None
    copies: RowBucket | None = None
    recalls: RowBucket | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on another device."""
        memory = None if self.memory is None else self.memory.to(device)
        documents, rows = [b.to(device) for b in self.documents], [b.to(device) for b in self.rows]
        copies, recalls = (None if rows is None else rows.to(device) for rows in (self.copies, self.recalls))
        return TrainingBatch(documents, rows, self.numbers, memory, copies, recalls)

    @property
    def num_tokens(self) -> int:
        """Real tokens of documents and rows."""
        return int(sum(b.lengths.sum() for b in self.documents) + sum(b.attention_mask.sum() for b in self.all_rows))

    @property
    def padded_tokens(self) -> int:
        """Tokens computed, padding included."""
        return sum(b.input_ids.numel() for b in self.documents) + sum(b.input_ids.numel() for b in self.all_rows)

    @property
    def all_rows(self) -> list[RowBucket]:
        """Rows over the memory, and those without."""
        return [*self.rows, *(rows for rows in (self.copies, self.recalls) if rows is not None)]


def draw_numbers(count: int, max_digits: int, rng: random.Random, full: float = 0.0) -> list[int]:
    """Distinct document numbers in random order, their length uniform in 1..max_digits as far as there are enough.

    Args:
        count: how many.
        max_digits: of the longest.
        rng: draws them.
        full: probability that a number has ``max_digits`` digits whatever is drawn for the others.

    Raises:
        ValueError: more documents than numbers.
    """
    if count > 10**max_digits - 1:
        raise ValueError(f"{count} documents need longer ids than {max_digits} digits")
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        digits = max_digits if full and rng.random() < full else rng.randint(1, max_digits)
        drawn[rng.randrange(10 ** (digits - 1), 10**digits)] = None
    # short ones run out early: in the order drawn, the first documents' lengths would give them away
    numbers = list(drawn)
    rng.shuffle(numbers)
    return numbers


def draw_repeating_numbers(count: int, digits: int, rng: random.Random) -> list[int]:
    """Numbers of exactly so many digits, repeated where they must be: the first, shortest stage of a curriculum."""
    return [rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(count)]


def choose_steps(
    samples: Sequence[Sample],
    corpus: Sequence[str],
    final: float,
    rng: random.Random,
    *,
    misses: int = 1,
    second_tries: float = 0.0,
) -> list[RetrievalStep]:
    """One step per sample.

    Args:
        samples: the questions.
        corpus: all document ids.
        final: probability of a sample's last step (reading and answering) rather than a retrieval.
        rng: decides.
        misses: documents without the answer that are read before a question is given up.
        second_tries: probability that a retrieval comes after such a document was read.
    """
    chosen = []
    for sample in samples:
        steps = retrieval_steps(sample)
        if not steps:
            chosen.append(refusal_step(sample, *_missed(sample, corpus, misses, rng)))
        elif not steps[-1].target and (len(steps) == 1 or rng.random() < final):
            chosen.append(steps[-1])
        elif second_tries and rng.random() < second_tries and (missed := _missed(sample, corpus, 1, rng)):
            chosen.append(second_try(sample, *missed))
        else:
            chosen.append(rng.choice([step for step in steps if step.target]))
    return chosen


def _missed(sample: Sample, corpus: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Documents that do not answer a sample: those it names as negatives first, then any."""
    near = [name for name in sample.documents if name not in sample.positives]
    rng.shuffle(near)
    missed = near[:count]
    others = len(corpus) - len(set(sample.positives) | set(missed))
    while len(missed) < count and others > 0:
        other = rng.choice(corpus)
        if other not in sample.positives and other not in missed:
            missed.append(other)
            others -= 1
    return missed


def collate(
    training_set: TrainingSet,
    protocol: Protocol,
    *,
    steps: Sequence[RetrievalStep],
    numbers: list[int],
    max_document_tokens: int,
    bucket_tokens: int = 4096,
    memory: DocumentMemory | None = None,
) -> TrainingBatch:
    """Tensors of one batch: every document of the set is in the memory of every row.

    Args:
        training_set: the documents, and the samples behind ``steps``.
        protocol: the transcript.
        steps: one per sample, from :func:`choose_steps`.
        numbers: one per document, from :func:`draw_numbers`.
        max_document_tokens: longer documents are refused.
        bucket_tokens: tokens of a bucket once padded, at most.
        memory: latents of the documents in the corpus's order, encoded before under these numbers; None: the step
            encodes them.

    Raises:
        ValueError: a document that is too long.
    """
    number_of = dict(zip(training_set.corpus, numbers, strict=True))
    if memory is not None:
        index = {name: place for place, name in enumerate(training_set.corpus)}
        return TrainingBatch([], _rows(training_set, protocol, steps, number_of, index, bucket_tokens), numbers, memory)
    encoded = {name: protocol.document_ids(number_of[name], text) for name, text in training_set.corpus.items()}
    for name, ids in encoded.items():
        if len(ids) > max_document_tokens:
            raise ValueError(
                f"document {name!r} has {len(ids)} tokens with its ids, {max_document_tokens} are allowed; "
                f"raise max_document_tokens or cut it into parts"
            )
    names = list(encoded)
    groups = length_buckets([len(encoded[name]) for name in names], bucket_tokens)
    names_in = [[names[i] for i in group] for group in groups]
    index = {name: place for place, name in enumerate(name for group in names_in for name in group)}
    documents = []
    for group in names_in:
        input_ids, lengths = pad_right([encoded[name] for name in group])
        closing = torch.tensor([len(protocol.closing_ids(number_of[name])) for name in group])
        documents.append(DocumentBucket(input_ids, lengths, closing))
    rows = _rows(training_set, protocol, steps, number_of, index, bucket_tokens)
    return TrainingBatch(documents, rows, [number_of[name] for name in index])


def _rows(
    training_set: TrainingSet,
    protocol: Protocol,
    steps: Sequence[RetrievalStep],
    number_of: Mapping[str, int],
    index: Mapping[str, int],
    bucket_tokens: int,
) -> list[RowBucket]:
    """The rows in buckets; ``index`` counts documents as the memory does."""
    tokenized = [tokenize_step(step, protocol, training_set.corpus, number_of) for step in steps]
    samples = training_set.samples
    hides = protocol.strings.exclude_read
    return [
        _row_bucket([tokenized[i] for i in group], [steps[i] for i in group], [samples[i] for i in group], index, hides)
        for group in length_buckets([len(row.ids) for row in tokenized], bucket_tokens)
    ]


def _row_bucket(
    rows: Sequence[TokenizedStep],
    steps: Sequence[RetrievalStep],
    samples: Sequence[Sample],
    index: Mapping[str, int],
    hides_read: bool,
) -> RowBucket:
    teacher = torch.full((len(steps), len(index)), float("-inf"))
    for row, (step, sample) in enumerate(zip(steps, samples, strict=True)):
        if step.target and not step.found:  # the teacher was asked the question alone
            for name, score in sample.teacher:
                teacher[row, index[name]] = score
    selectable = torch.ones(len(steps), len(index), dtype=torch.bool)
    for row, step in enumerate(steps if hides_read else []):
        selectable[row, [index[name] for found in step.found for name in found]] = False
    return RowBucket(
        input_ids=_padded([row.ids for row in rows], 0),
        attention_mask=_padded([[1] * len(row.ids) for row in rows], 0),
        routing_mask=_padded([row.routes for row in rows], 0),
        id_labels=_padded([row.id_labels for row in rows], IGNORED),
        answer_labels=_padded([row.answer_labels for row in rows], IGNORED),
        selectable=selectable,
        positives=[[index[name] for name in step.target] for step in steps],
        sources=[sample.source for sample in samples],
        teacher=teacher if bool((teacher > float("-inf")).any()) else None,
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*map(int, row), *[fill] * (width - len(row))] for row in rows])


def rows_alone(rows: Sequence[tuple[list[int], list[int]]], sources: Sequence[str]) -> RowBucket:
    """Rows that see no memory, as token ids and the labels of what is learnt; right padded."""
    input_ids, lengths = pad_right([ids for ids, _ in rows])
    return RowBucket(
        input_ids=input_ids,
        attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        routing_mask=torch.zeros_like(input_ids),
        id_labels=torch.full_like(input_ids, IGNORED),
        answer_labels=pad_sequence([torch.tensor(labels) for _, labels in rows], True, IGNORED),
        selectable=torch.ones(len(rows), 0, dtype=torch.bool),
        positives=[[] for _ in rows],
        sources=list(sources),
    )
