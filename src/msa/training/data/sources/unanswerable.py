"""Questions that the corpus cannot answer, in the words of those that it can.

They are questions by name to entries that were read but left out of the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from msa.training.data.samples import Sample
from msa.training.data.sources.entry import SourceEntry


def unanswerable(
    left_out: Iterable[SourceEntry], texts: Iterable[str], answer: str, source: str, rng: random.Random
) -> Iterator[tuple[SourceEntry, Sample]]:
    """One question to each entry whose name is in no document.

    Args:
        left_out: entries that are not in the corpus.
        texts: the documents of the corpus.
        answer: what to answer to all of them.
        source: the samples' ``source``.
        rng: draws the question.

    Yields:
        The entry and a sample without positives.
    """
    corpus = "\n".join(texts).lower()
    for entry in left_out:
        queries = [question.query for question in entry.questions if _asks_for(question.query, entry.name)]
        if queries and entry.name.lower() not in corpus:
            yield entry, Sample(query=rng.choice(queries), answer=answer, source=source)


def _asks_for(query: str, name: str) -> bool:
    # a name alone is no question: any document that is near would do
    return name in query and query != name
