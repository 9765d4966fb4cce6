"""Eq. 2 written as it reads, every intermediate in full: the reference for :func:`msa.ops.route.route`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msa.ops.route.blocks import KeyBlock, as_blocks, dequantize
from msa.ops.route.types import Routing, RoutingSpec, reduce_chunks, select_documents


def route_naive(
    query: Tensor,
    query_mask: Tensor,
    keys: Tensor | Sequence[KeyBlock],
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
) -> Routing:
    """Same arguments and result as :func:`msa.ops.route.route`; keys are dequantised in full and scores
    are a tensor of rows x heads x tokens x chunks. ``stored`` keys are not looked at.
    """
    k = dequantize(as_blocks(keys, query), spec.similarity)  # [C, Hkv, D], of length 1 per head for cosine
    k = k.repeat_interleave(query.shape[2] // k.shape[1], dim=1)  # [C, Hq, D]
    q = query.float()
    if spec.similarity == "cosine":
        q = torch.nn.functional.normalize(q, dim=-1)
    scores = torch.einsum("bthd,chd->bhtc", q, k) * spec.scale
    scores = scores.mean(1) if spec.head_reduce == "mean" else scores.amax(1)  # [B, T, C]
    rows = []
    for row_scores, mask in zip(scores, query_mask, strict=True):
        routed = row_scores[mask]
        if routed.shape[0] == 0:
            rows.append(torch.full_like(row_scores[0], float("-inf")))
        elif spec.query_reduce == "max":
            rows.append(routed.amax(0))
        elif spec.query_reduce == "mean":
            rows.append(routed.mean(0))
        else:
            rows.append(routed[-1])
    chunk_scores = torch.stack(rows)  # [B, C]
    doc_scores = reduce_chunks(chunk_scores, chunk_offsets, spec.chunk_reduce)
    if doc_mask is not None:
        doc_scores = doc_scores.masked_fill(~doc_mask, float("-inf"))
    doc_indices, best = select_documents(doc_scores, top_k)
    return Routing(doc_indices=doc_indices, scores=best, doc_scores=doc_scores, chunk_scores=chunk_scores)
