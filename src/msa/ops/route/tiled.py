"""The lean routing scorer: exact, tiled over chunks, never a tensor of heads x tokens x chunks.

Keys are shared inside a query group and the mean over heads is linear, so the score of (token, chunk) is one dot
product of length Hkv·D between the group-summed query and the concatenated keys, instead of Hq of length D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.route.types import Routing, RoutingSpec, reduce_chunks, select_documents

# scores and float32 keys of one tile stay under about 4 MB each
_TILE_ELEMENTS = 1024 * 1024


def route(
    query: Tensor,
    query_mask: Tensor,
    keys: Tensor,
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
    tile_chunks: int | None = None,
) -> Routing:
    """Select each row's ``top_k`` documents (Eq. 2). Differentiable in ``query`` and ``keys``.

    Args:
        query: routing queries ``[B, T, Hq, D]``, before any normalisation.
        query_mask: bool ``[B, T]``, True on the tokens that route. A row without any selects nothing.
        keys: routing keys ``[C, Hkv, D]`` of all documents, before any normalisation.
        chunk_offsets: ``[N + 1]`` int64; document i owns chunks ``offsets[i]:offsets[i + 1]``.
        spec: similarity, scale and reductions.
        top_k: documents to select per row.
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
        tile_chunks: chunks scored at a time; None: as many as keep a tile at about 4 MB.

    Returns:
        :class:`Routing`; scores are float32 whatever the dtype of query and keys.
    """
    q, mask = _compact(query.float(), query_mask)
    if spec.similarity == "cosine":
        q = torch.nn.functional.normalize(q, dim=-1)
    q = q * spec.scale
    num_heads, num_kv_heads = query.shape[2], keys.shape[1]
    q = q.unflatten(2, (num_kv_heads, num_heads // num_kv_heads))  # [B, T', Hkv, g, D]
    if spec.head_reduce == "mean":
        q = (q.sum(3) / num_heads).flatten(2)  # [B, T', Hkv·D]
    num_chunks = keys.shape[0]
    if tile_chunks is None:
        widest = max(q.shape[0] * q.shape[1], num_kv_heads * keys.shape[2], 1)
        tile_chunks = max(256, _TILE_ELEMENTS // widest)
    tiles = []
    for start in range(0, num_chunks, tile_chunks):
        k = keys[start : start + tile_chunks].float()
        if spec.similarity == "cosine":
            k = torch.nn.functional.normalize(k, dim=-1)
        scores = q @ k.flatten(1).T if spec.head_reduce == "mean" else _max_over_heads(q, k)
        tiles.append(_reduce_tokens(scores, mask, spec.query_reduce))
    chunk_scores = torch.cat(tiles, dim=1) if tiles else q.new_zeros(q.shape[0], 0)
    doc_scores = reduce_chunks(chunk_scores, chunk_offsets, spec.chunk_reduce)
    if doc_mask is not None:
        doc_scores = doc_scores.masked_fill(~doc_mask, float("-inf"))
    doc_indices, best = select_documents(doc_scores, top_k)
    return Routing(doc_indices=doc_indices, scores=best, doc_scores=doc_scores, chunk_scores=chunk_scores)


def _compact(query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's routing tokens to the front and drop the columns no row needs: ``[B, T', ...]``."""
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    if longest == mask.shape[1]:
        return query, mask
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    index = order[:, :, None, None].expand(-1, -1, *query.shape[2:])
    return query.gather(1, index), mask.gather(1, order)


def _max_over_heads(query: Tensor, keys: Tensor) -> Tensor:
    """``[B, T, Hkv, g, D]`` against ``[c, Hkv, D]`` → the best head's score ``[B, T, c]``, one head at a time."""
    best: Tensor | None = None
    for kv_head in range(query.shape[2]):
        for member in range(query.shape[3]):
            scores = query[:, :, kv_head, member] @ keys[:, kv_head].T
            best = scores if best is None else torch.maximum(best, scores)
    assert best is not None
    return best


def _reduce_tokens(scores: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Scores ``[B, T, c]`` and mask ``[B, T]`` → ``[B, c]``; −inf for a row without routing tokens."""
    counts = mask.sum(1)
    empty = (counts == 0)[:, None]
    if mask.shape[1] == 0:
        return scores.new_full((scores.shape[0], scores.shape[2]), float("-inf"))
    if reduction == "max":
        return scores.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    if reduction == "mean":
        mean = (scores * mask[:, :, None]).sum(1) / counts.clamp(min=1)[:, None]
        return mean.masked_fill(empty, float("-inf"))
    position = torch.arange(mask.shape[1], device=mask.device)
    last = (position * mask).amax(1)[:, None, None].expand(-1, 1, scores.shape[2])
    return scores.gather(1, last).squeeze(1).masked_fill(empty, float("-inf"))
