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
        doc_scores: scores of all documents ``[B, N]`` float32, −inf for those a row may not see.
        chunk_scores: scores of all chunks ``[B, C]`` float32 before documents are masked.
    """

    doc_indices: Tensor
    scores: Tensor
    doc_scores: Tensor
    chunk_scores: Tensor


def reduce_chunks(chunk_scores: Tensor, chunk_offsets: Tensor, reduction: str) -> Tensor:
    """Chunk scores ``[B, C]`` and offsets ``[N + 1]`` → document scores ``[B, N]``."""
    num_docs = chunk_offsets.shape[0] - 1
    owner = torch.repeat_interleave(
        torch.arange(num_docs, device=chunk_scores.device), chunk_offsets.diff(), output_size=chunk_scores.shape[1]
    )
    empty = chunk_scores.new_full((chunk_scores.shape[0], num_docs), float("-inf"))
    how = "amax" if reduction == "max" else "mean"
    return empty.scatter_reduce(1, owner.expand_as(chunk_scores), chunk_scores, how, include_self=False)


def select_documents(doc_scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Document scores ``[B, N]`` → the ``top_k`` best, indices and scores ``[B, top_k]``; −1 and −inf fill up."""
    kept = min(top_k, doc_scores.shape[1])
    scores, indices = doc_scores.topk(kept, dim=1)
    indices = indices.masked_fill(scores == float("-inf"), -1)
    missing = (0, top_k - kept)
    pad = torch.nn.functional.pad
    return pad(indices, missing, value=-1), pad(scores, missing, value=float("-inf"))
