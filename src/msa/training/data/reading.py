"""Rows that answer from texts in the prompt, as routed mode gives them: some documents, a question, the answer.

The right document stands among wrong ones at a random place, so what is learnt is to tell them apart and to answer from
one of them. The rows see no memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from msa.documents import Protocol
from msa.errors import TrainingDataError
from msa.training.data.collate import RowBucket, rows_alone
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.steps import IGNORED


def reading_rows(
    training_set: TrainingSet, samples: Sequence[Sample], protocol: Protocol, most_documents: int, rng: random.Random
) -> RowBucket:
    """One row per sample; learnt is its answer and the token that ends it.

    Args:
        training_set: whose corpus the samples point into.
        samples: questions with answers; one without positives is answered from wrong documents alone.
        protocol: the transcript.
        most_documents: in a prompt, each number from 1 on being as likely; never fewer than a sample's positives.
        rng: chooses.

    Raises:
        ValueError: no samples, no documents in a prompt, or a reader's prompt that does not begin with the template
            prefix, whose keys and values every row shares.
        TrainingDataError: a sample without an answer.
    """
    if not samples or most_documents < 1:
        raise ValueError(f"expected samples and a document to read, got {len(samples)} and {most_documents}")
    names = list(training_set.corpus)
    rows = []
    for sample in samples:
        given = _documents(sample, names, rng.randint(1, most_documents), rng)
        rows.append(_row(sample, [training_set.corpus[name] for name in given], protocol))
    return rows_alone(rows, [sample.source for sample in samples])


def _documents(sample: Sample, names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """The sample's positives, then its negatives, then any documents up to ``count``, in random order."""
    given = dict.fromkeys(sample.positives)
    near = [name for name in sample.documents if name not in given]
    rng.shuffle(near)
    given |= dict.fromkeys(near[: max(count - len(given), 0)])
    while len(given) < min(count, len(names)):
        given[rng.choice(names)] = None
    order = list(given)
    rng.shuffle(order)
    return order


def _row(sample: Sample, texts: Sequence[str], protocol: Protocol) -> tuple[list[int], list[int]]:
    """Token ids after the template prefix, and labels."""
    if sample.answer is None:
        raise TrainingDataError(f"rows to read need answers, the question {sample.query!r} has none; leave it out")
    prompt, start = _prompt_ids(protocol, texts, sample.query), len(protocol.prefix_ids)
    if prompt[:start] != protocol.prefix_ids:
        found = protocol.decode_all(prompt[: start + 4])
        raise ValueError(
            f"rows to read need a reader_prompt that begins with the prefix {protocol.strings.prefix!r}, and documents "
            f"that do not begin with blanks which become one token with its end; found {found!r}"
        )
    asked = prompt[start:]
    answer = [*protocol.plain_ids(sample.answer), protocol.answer_end_id]
    return asked + answer, [IGNORED] * len(asked) + answer


def _prompt_ids(protocol: Protocol, texts: Sequence[str], question: str) -> list[int]:
    """The prompt of routed mode; documents are numbered from 1, as in a memory that holds these alone."""
    documents = protocol.reader_text(list(enumerate(texts, start=1)))
    return protocol.template_ids(protocol.strings.reader_prompt, documents=documents, question=question)
