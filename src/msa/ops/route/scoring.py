"""The score of a few chunks for every row, whichever keys they come from.

Keys are shared inside a query group and the mean over heads is linear, so the score of (token, chunk) is one dot
product of length Hkv·D between the group-summed query and the concatenated keys, instead of Hq of length D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.route.types import RoutingSpec


def prepare_query(
    query: Tensor, query_mask: Tensor, num_kv_heads: int, spec: RoutingSpec
) -> tuple[Tensor, Tensor | None]:
    """Queries ``[B, T, Hq, D]`` as :func:`score_tile` takes them, and which of their tokens route.

    Returns:
        ``[B, T', Hkv·D]`` where heads are averaged, else ``[B, T', Hkv, g, D]``, float32; and bool ``[B, T']``, None
        where every token routes.
    """
    q, mask = _compact(query.float(), query_mask)
    if spec.similarity == "cosine":
        q = torch.nn.functional.normalize(q, dim=-1)
    q = (q * spec.scale).unflatten(2, (num_kv_heads, query.shape[2] // num_kv_heads))
    return ((q.sum(3) / query.shape[2]).flatten(2) if spec.head_reduce == "mean" else q), mask


def score_tile(query: Tensor, mask: Tensor | None, keys: Tensor, spec: RoutingSpec) -> Tensor:
    """A prepared query against keys ready for a dot product ``[c, Hkv, D]`` → ``[B, c]``.

    A row without routing tokens gets anything.
    """
    scores = query @ keys.flatten(1).T if spec.head_reduce == "mean" else _max_over_heads(query, keys)
    return _reduce_tokens(scores, mask, spec.query_reduce)


def _compact(query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Move each row's routing tokens to the front and drop the columns no row needs: ``[B, T', ...]``.

    The mask is None where every token left routes, as is always so with one row.
    """
    if not mask.numel():
        return query[:, :0], None
    counts = mask.sum(1)
    shortest, longest = torch.stack(counts.aminmax()).tolist()
    if longest < mask.shape[1]:
        order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        index = order[:, :, None, None].expand(-1, -1, *query.shape[2:])
        query, mask = query.gather(1, index), mask.gather(1, order)
    return query, None if shortest == longest else mask


def _max_over_heads(query: Tensor, keys: Tensor) -> Tensor:
    """``[B, T, Hkv, g, D]`` against ``[c, Hkv, D]`` → the best head's score ``[B, T, c]``, one head at a time."""
    best: Tensor | None = None
    for kv_head in range(query.shape[2]):
        for member in range(query.shape[3]):
            scores = query[:, :, kv_head, member] @ keys[:, kv_head].T
            best = scores if best is None else torch.maximum(best, scores)
    assert best is not None
    return best


def _reduce_tokens(scores: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """Scores ``[B, T, c]`` and mask ``[B, T]`` → ``[B, c]``."""
    if scores.shape[1] == 0:
        return scores.new_zeros(scores.shape[0], scores.shape[2])
    if mask is None:
        if reduction == "last":
            return scores[:, -1]
        return scores.amax(1) if reduction == "max" else scores.mean(1)
    if reduction == "max":
        return scores.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    if reduction == "mean":
        return (scores * mask[:, :, None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]
    position = torch.arange(mask.shape[1], device=mask.device)
    last = (position * mask).amax(1)[:, None, None].expand(-1, 1, scores.shape[2])
    return scores.gather(1, last).squeeze(1)
