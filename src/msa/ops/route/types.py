"""What routing needs to know and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HEAD_REDUCTIONS = ("mean", "max")
QUERY_REDUCTIONS = ("max", "mean", "last")
CHUNK_REDUCTIONS = ("max", "mean")
SIMILARITIES = ("cosine", "dot")


@dataclass(frozen=True, kw_only=True)
class RoutingSpec:
    """How one score is made of heads, question tokens and chunks.

    Attributes:
        similarity: ``cosine`` (the paper) normalises each head of query and key; ``dot`` does not.
        scale: factor on every score; 1 for the paper's cosine, head_dim^-0.5 where the published code uses it.
        head_reduce: ``mean`` (the paper) or ``max`` over query heads, taken first.
        query_reduce: ``max`` (the paper), ``mean`` or ``last`` over the question's routing tokens, taken second.
        chunk_reduce: ``max`` (the paper) or ``mean`` over a document's chunks, taken last.

    Raises:
        ValueError: a reduction or similarity that is not one of these.
    """

    similarity: str = "cosine"
    scale: float = 1.0
    head_reduce: str = "mean"
    query_reduce: str = "max"
    chunk_reduce: str = "max"

    def __post_init__(self) -> None:
        for name, known in (
            ("similarity", SIMILARITIES),
            ("head_reduce", HEAD_REDUCTIONS),
            ("query_reduce", QUERY_REDUCTIONS),
            ("chunk_reduce", CHUNK_REDUCTIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass
class Routing:
    """What one router layer decided.

    Attributes:
        doc_indices: selected documents ``[B, k]`` int64, best first, −1 where fewer than k can be selected.
        scores: their scores ``[B, k]`` float32, −inf where there is no document.
        doc_scores: scores of all documents ``[B, N]`` float32, −inf for those a row may not see; those far from the
            best may be rounded, see :func:`msa.ops.route.route`.
        chunk_scores: scores of all chunks ``[B, C]`` float32 before documents are masked, rounded as those.
    """

    doc_indices: Tensor
    scores: Tensor
    doc_scores: Tensor
    chunk_scores: Tensor


def reduce_chunks(chunk_scores: Tensor, chunk_offsets: Tensor, reduction: str) -> Tensor:
    """Chunk scores ``[B, C]`` and offsets ``[N + 1]`` → document scores ``[B, N]``; −inf for one without chunks.

    Raises:
        ValueError: the offsets do not end at C.
    """
    if int(chunk_offsets[-1]) != chunk_scores.shape[1]:
        raise ValueError(f"chunk_offsets end at {int(chunk_offsets[-1])}, but there are {chunk_scores.shape[1]} chunks")
    offsets = chunk_offsets.expand(chunk_scores.shape[0], -1)
    doc_scores = torch.segment_reduce(chunk_scores, reduction, offsets=offsets, axis=1)
    return doc_scores.masked_fill(chunk_offsets.diff() == 0, float("-inf"))


def select_documents(doc_scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Document scores ``[B, N]`` → the ``top_k`` best, indices and scores ``[B, top_k]``; −1 and −inf fill up.

    Of equal scores the lower index goes first.
    """
    indices = best_documents(doc_scores, top_k)
    scores = doc_scores.gather(1, indices)
    indices = indices.masked_fill(scores == float("-inf"), -1)
    missing = (0, top_k - indices.shape[1])
    pad = torch.nn.functional.pad
    return pad(indices, missing, value=-1), pad(scores, missing, value=float("-inf"))


def best_documents(scores: Tensor, top_k: int) -> Tensor:
    """The best columns of each row, best first; of equal scores the lower column goes first.

    ``torch.topk`` leaves the order and the choice among equal scores open, and they change with N: a part of a memory
    and the whole of it would pick different ones of two identical documents.

    Args:
        scores: ``[B, N]``, −inf where a document may not be selected, no NaN.
        top_k: documents to select per row.

    Returns:
        Indices ``[B, min(top_k, N)]`` int64; those of −inf scores come last.

    >>> best_documents(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]]), 3)
    tensor([[1, 3, 2]])
    """
    kept = min(top_k, scores.shape[1])
    if kept == 0 or scores.shape[0] == 0:
        return torch.zeros(scores.shape[0], kept, dtype=torch.int64, device=scores.device)
    last = scores.topk(kept, dim=1).values[:, -1:]
    above, tied = scores > last, scores == last
    room = kept - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1) <= room))
    indices = chosen.nonzero()[:, 1].view(scores.shape[0], kept)  # ascending in each row
    order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True).indices
    return indices.gather(1, order)
