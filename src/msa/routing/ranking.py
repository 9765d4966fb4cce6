"""One order of the documents from all router layers, and, where asked for, from exact words as well.

Axes: N documents, C chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from msa.ops import Routing

# reciprocal rank fusion (Cormack et al., SIGIR 2009): how little the first few ranks differ, and how far lists are read
_RANK_OFFSET = 60
FUSED_RANKS = 200


def mean_over_layers(routing: dict[int, Routing], row: int) -> tuple[Tensor, Tensor]:
    """Document scores ``[N]`` and chunk scores ``[C]`` of one row, each the mean over router layers."""
    docs = torch.stack([layer.doc_scores[row] for layer in routing.values()]).mean(0)
    chunks = torch.stack([layer.chunk_scores[row] for layer in routing.values()]).mean(0)
    return docs, chunks


def fused_scores(scores: Tensor, lexical: Sequence[int]) -> Tensor:
    """Reciprocal rank fusion of the routers' order with a second one.

    Args:
        scores: the routers', ``[N]``, −inf for documents that must not be selected.
        lexical: document indices, best first; those that must not be selected are passed over.

    Returns:
        ``[N]``: the sum of 1 / (60 + rank) over the lists a document is in, −inf for documents in neither.

    >>> fused_scores(torch.tensor([3.0, 2.0, float("-inf")]), [1, 2]).argsort(descending=True).tolist()
    [1, 0, 2]
    """
    best = scores.topk(min(FUSED_RANKS, scores.shape[0]))
    allowed = scores > float("-inf")
    orders = [best.indices[best.values > float("-inf")]]
    second = torch.tensor(list(lexical[:FUSED_RANKS]), dtype=torch.int64, device=scores.device)
    orders.append(second[allowed[second]])
    fused = torch.zeros_like(scores)
    for order in orders:
        fused[order] += 1 / (_RANK_OFFSET + 1 + torch.arange(len(order), device=scores.device, dtype=scores.dtype))
    return fused.masked_fill(fused == 0, float("-inf"))


def words_query(question: str) -> str:
    """An SQLite FTS5 query for any of the words of a question; empty: it has none.

    >>> words_query('What is "GPT-4"?')
    '"What" OR "is" OR "GPT" OR "4"'
    """
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", question)))
