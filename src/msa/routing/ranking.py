"""One order of the documents from all router layers, and, where asked for, from exact words as well.

Axes: N documents, C chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from msa.ops import Routing

_RANK_OFFSET = 60  # of reciprocal rank fusion (Cormack et al., SIGIR 2009): how little the first few ranks differ
WORD_RANKS = 200  # how far the list by exact words is read


def mean_over_layers(routing: dict[int, Routing], row: int) -> tuple[Tensor, Tensor]:
    """Document scores ``[N]`` and chunk scores ``[C]`` of one row, each the mean over router layers."""
    docs = torch.stack([layer.doc_scores[row] for layer in routing.values()]).mean(0)
    chunks = torch.stack([layer.chunk_scores[row] for layer in routing.values()]).mean(0)
    return docs, chunks


def fused_scores(scores: Tensor, lexical: Sequence[int]) -> Tensor:
    """Reciprocal rank fusion of the routers' order with a second one.

    Args:
        scores: the routers', ``[N]``, −inf for documents that must not be selected.
        lexical: indices of some of the others, best first.

    Returns:
        ``[N]``: the sum of 1 / (60 + rank) over the lists a document is in, −inf for those that must not be selected.

    >>> fused_scores(torch.tensor([3.0, 2.0, float("-inf")]), [1]).argsort(descending=True).tolist()
    [1, 0, 2]
    """
    fused = torch.zeros_like(scores)
    second = torch.tensor([*lexical], dtype=torch.int64, device=scores.device)
    for order in (scores.argsort(descending=True, stable=True), second):
        fused[order] += 1 / (_RANK_OFFSET + 1 + torch.arange(len(order), device=scores.device, dtype=scores.dtype))
    return fused.masked_fill(scores == float("-inf"), float("-inf"))


def words_query(question: str) -> str:
    """An SQLite FTS5 query for any of the words of a question; empty: it has none.

    >>> words_query('What is "GPT-4"?')
    '"What" OR "is" OR "GPT" OR "4"'
    """
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", question)))
