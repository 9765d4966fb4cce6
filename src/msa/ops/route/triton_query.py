"""A query in the form the Triton kernel reads: tokens in groups of equal size, numbers as sums of 16-bit ones.

Tensor cores multiply 16-bit numbers. A query is split into parts that add up to it, so that products with 16-bit keys
are as exact as float32: two of float16 hold 22 bits, three of bfloat16 hold 24. Long questions have two of bfloat16, 16
bits, which is half as many products: scores are then off by about as much as float32 sums can be.

Axes: B rows, T tokens, Hkv key/value heads, g query heads a group, D head_dim, S steps along a chunk's keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa.ops.route.types import RoutingSpec

_NARROWEST = 16  # numbers and tokens that a tensor core takes at least
_MOST_TOKENS = 64
# up to so many tokens the third part costs less than reading the keys does
_FEW_TOKENS = 32
# what one step of keys and query takes; two of them, of two programs, are to fit into a multiprocessor
_STEP_BYTES = 56 * 1024
_MOST_STEP_BYTES = 100 * 1024
_MOST_STAGES = 4
_LARGEST = 1024.0  # float16 has few exponents: the largest number of a row becomes this one


@dataclass(frozen=True)
class PreparedQuery:
    """What the kernel reads.

    Attributes:
        parts: ``[B, groups, S, parts, tokens, block]`` float16 or bfloat16.
        factor: ``[B]`` float32 on every score of a row.
        width: numbers of a chunk's keys in a step; ``block`` is the next power of two.
        stages: steps that fit into a multiprocessor's memory at a time.
    """

    parts: Tensor
    factor: Tensor
    width: int
    stages: int


def prepare(
    q: Tensor,
    mask: Tensor | None,
    spec: RoutingSpec,
    keys: Tensor,
    by_head: bool,
    dtype: torch.dtype,
    tile_chunks: int,
    most_tokens: int = _MOST_TOKENS,
) -> PreparedQuery:
    """A query for the kernel.

    Args:
        q, mask: of :func:`msa.ops.route.scoring.prepare_query`; at least one token.
        spec: reductions.
        keys: ``[C, Hkv, D]`` it will be multiplied with.
        by_head: whether heads are to be scored one by one; so they are where the best head counts.
        dtype: float16 or bfloat16, of the products.
        tile_chunks: chunks in a tile.
        most_tokens: in a group; a power of two.
    """
    rows, factor = _rows(q, mask, spec)
    if spec.head_reduce == "max":  # [B, T, Hkv, g, D]
        steps = rows.flatten(2, 3)
    elif by_head:
        steps = rows.unflatten(2, (-1, keys.shape[2]))
    else:
        # short steps, so that more of them are on their way
        wide = min(_power_of_two(rows.shape[2]), 128 // keys.dtype.itemsize)
        steps = _padded(rows, -rows.shape[2] % wide).unflatten(2, (-1, wide))
    width = steps.shape[3]
    block = _power_of_two(width)
    tokens = min(_power_of_two(rows.shape[1]), most_tokens)
    while (size := _step_bytes(tile_chunks, tokens, block, keys.dtype, dtype)) > _MOST_STEP_BYTES and tokens > 16:
        tokens //= 2
    if dtype == torch.float16:
        up = _LARGEST / steps.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny * _LARGEST)
        steps, factor = steps * up[:, None, None, None], factor / up
    steps = _filled(steps, -steps.shape[1] % tokens, sums_tokens(spec)).unflatten(1, (-1, tokens)).transpose(2, 3)
    parts = steps.new_zeros(*steps.shape[:3], _parts(dtype, tokens), tokens, block, dtype=dtype)
    for part in parts.unbind(3):
        part[..., :width] = steps
        steps = steps - part[..., :width]
    return PreparedQuery(parts, factor, width, max(2, min(_MOST_STAGES, 2 * _STEP_BYTES // size)))


def _parts(dtype: torch.dtype, tokens: int) -> int:
    return 2 if dtype == torch.float16 or tokens > _FEW_TOKENS else 3


def _step_bytes(chunks: int, tokens: int, block: int, key_dtype: torch.dtype, dtype: torch.dtype) -> int:
    return block * (chunks * key_dtype.itemsize + _parts(dtype, tokens) * tokens * dtype.itemsize)


def sums_tokens(spec: RoutingSpec) -> bool:
    """Whether tokens are to be added up; else the best one counts, if only because there is one."""
    return spec.query_reduce == "mean" and spec.head_reduce == "max"


def _rows(q: Tensor, mask: Tensor | None, spec: RoutingSpec) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, T', ...]`` without a mask, and the factor ``[B]`` their reduced scores want.

    A mean of scores is the score of a mean where heads are averaged; for a maximum the places without a routing token
    repeat the first one.
    """
    one = q.new_ones(q.shape[0])
    ones = (1,) * (q.dim() - 1)
    if spec.query_reduce == "mean":
        count = one * q.shape[1] if mask is None else mask.sum(1).clamp(min=1).float()
        rows = q if mask is None else q * mask.view(*mask.shape, *ones[1:])
        return (rows, 1 / count) if sums_tokens(spec) else (rows.sum(1, keepdim=True) / count.view(-1, *ones), one)
    if mask is None:
        return (q[:, -1:] if spec.query_reduce == "last" else q), one
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    chosen = places.amax(1) if spec.query_reduce == "last" else mask.int().argmax(1)
    token = q.gather(1, chosen.view(-1, *ones).expand(-1, 1, *q.shape[2:]))
    return (token if spec.query_reduce == "last" else torch.where(mask.view(*mask.shape, *ones[1:]), q, token)), one


def _filled(rows: Tensor, more: int, with_zeros: bool) -> Tensor:
    """``more`` tokens behind the others: none at all for a sum, the first one again for a maximum."""
    if not more:
        return rows
    first = rows[:, :1].expand(-1, more, *rows.shape[2:])
    return torch.cat([rows, torch.zeros_like(first) if with_zeros else first], 1)


def _padded(rows: Tensor, more: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, more)) if more else rows


def _power_of_two(count: int) -> int:
    return max(_NARROWEST, 1 << (count - 1).bit_length())
