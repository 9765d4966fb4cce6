"""Matrix products of compact numbers, where this machine has ones that are right and faster than float32.

torch hands them to oneDNN, which uses the int8 and bfloat16 instructions of the processor. Without such instructions
they are slow, and on some older processors int8 sums saturate: so each product is tried once, on values that would show
it. Where one is not there, wrong or slow, routing scores in float32 throughout.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# rows [r, K] and keys [c, K] of one dtype → [r, c] in `out`: int32 for int8, else of their own dtype
Product: TypeAlias = Callable[[Tensor, Tensor, Tensor], object]

# a product of fewer numbers is not worth one, and torch._int_mm of one number each is wrong (torch 2.13)
SHORTEST = 16
RESULT_DTYPES = {torch.int8: torch.int32, torch.bfloat16: torch.bfloat16}
_ROWS, _LENGTH, _KEYS, _TRIES, _CONTESTS = 16, 256, 2048, 5, 4


def multiply_int8(rows: Tensor, keys: Tensor, out: Tensor) -> None:
    """Exact sums in int32."""
    torch._int_mm(rows, keys.T, out=out)  # private: fast_product looks whether it is there and right


def multiply_bfloat16(rows: Tensor, keys: Tensor, out: Tensor) -> None:
    """Sums in float32, rounded to bfloat16 at the end."""
    torch.mm(rows, keys.T, out=out)


_PRODUCTS: dict[torch.dtype, Product] = {torch.int8: multiply_int8, torch.bfloat16: multiply_bfloat16}


@functools.cache
def fast_product(dtype: torch.dtype) -> Product | None:
    """The product of two int8 or two bfloat16 matrices on this CPU; None: float32 is the better choice."""
    product = _PRODUCTS.get(dtype)
    if product is None or (is_right(product, dtype) and _is_fast(product, dtype)):
        return product
    logger.info(
        "routing multiplies %s keys in float32: this machine has no product of them that is right and faster", dtype
    )
    return None


def is_right(product: Product, dtype: torch.dtype) -> bool:
    """Whether it is there and loses nothing but the last rounding, on sums as large and as cancelling as there are."""
    draw = torch.randn(_KEYS, _LENGTH, generator=torch.Generator().manual_seed(0))
    sign = torch.tensor([1.0, -1.0]).repeat(_LENGTH // 2)
    keys = torch.cat([sign[None], -sign[None], torch.ones(1, _LENGTH), -torch.ones(1, _LENGTH), draw]) * 127
    keys = keys.round().clamp(-127, 127).to(dtype)
    return all(
        _is_right_for(product, keys[:rows, :length].contiguous(), keys[:chunks, :length].contiguous())
        for rows, length, chunks in ((_ROWS, _LENGTH, len(keys)), (1, _LENGTH, 33), (5, SHORTEST, 7), (3, 77, 1))
    )


def _is_right_for(product: Product, rows: Tensor, keys: Tensor) -> bool:
    exact = rows.double() @ keys.double().T
    found = torch.full(exact.shape, 77, dtype=RESULT_DTYPES[rows.dtype])
    try:
        product(rows, keys, found)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    allowed = 0.0 if rows.dtype == torch.int8 else torch.finfo(rows.dtype).eps / 2
    return bool(((found.double() - exact).abs() <= exact.abs() * allowed).all())


def _is_fast(product: Product, dtype: torch.dtype) -> bool:
    """Whether it is faster than float32 in one of a few contests: what else runs can spoil one, hardly all."""
    rows, keys = torch.ones(_ROWS, _LENGTH, dtype=dtype), torch.ones(_KEYS, _LENGTH, dtype=dtype)
    out = torch.empty(_ROWS, _KEYS, dtype=RESULT_DTYPES[dtype])
    wide, plain = torch.empty(_KEYS, _LENGTH), torch.empty(_ROWS, _KEYS)
    first = rows.float()

    def compact() -> None:
        product(rows, keys, out)

    def in_float32() -> None:
        torch.mm(first, wide.copy_(keys).T, out=plain)

    return any(_seconds(compact) < _seconds(in_float32) for _ in range(_CONTESTS))


def _seconds(work: Callable[[], object]) -> float:
    """The best of a few tries."""
    best = float("inf")
    for _ in range(_TRIES + 1):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
