"""What memory and processor allow at most: reading bytes once, products in cache, the speed of a large product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msa.bench.timing import Times, timed, timed_on_gpu
from msa.ops.route import on_threads
from msa.ops.route.products import RESULT_DTYPES, fast_product

CACHED_BYTES, SQUARE, GPU_SQUARE = 1024 * 1024, 2048, 8192
_REPEATS = 5


def reading(tensor: Tensor) -> Callable[[], Tensor]:
    """A call that reads a contiguous tensor once; the last bytes beyond a multiple of eight are left out."""
    data = tensor.view(-1).view(torch.uint8)
    data = data[: data.numel() // 8 * 8]
    if tensor.device.type == "cuda":
        return data.view(torch.int32).amax
    return data.view(torch.int64).sum


def in_cache(dtype: torch.dtype, rows: int, length: int, num_chunks: int) -> Callable[[], Any]:
    """A call that multiplies ``rows`` rows with ``num_chunks`` keys, the same few over and over, on all threads."""
    size = min(CACHED_BYTES // (length * dtype.itemsize), num_chunks)
    product = fast_product(dtype)
    dtype = dtype if product else torch.float32
    left, keys = torch.ones(rows, length, dtype=dtype), torch.ones(size, length, dtype=dtype)

    def work(turns: Sequence[int]) -> list[int]:
        out = torch.empty(rows, size, dtype=RESULT_DTYPES.get(dtype, dtype))
        for _ in turns:
            product(left, keys, out) if product else torch.mm(left, keys.T, out=out)
        return []

    turns = range(-(-num_chunks // size))
    return lambda: on_threads(work, turns, torch.get_num_threads())


def seconds_per_operation(dtype: torch.dtype, device: torch.device | None = None) -> Times:
    """Of a large square product; a multiplication and its addition are two operations."""
    if device is not None and device.type == "cuda":
        left = torch.ones(GPU_SQUARE, GPU_SQUARE, dtype=dtype, device=device)
        times, side = timed_on_gpu(lambda: left @ left, _REPEATS), GPU_SQUARE
    else:
        product = fast_product(dtype)
        dtype = dtype if product else torch.float32
        square = torch.ones(SQUARE, SQUARE, dtype=dtype)
        out = torch.empty(SQUARE, SQUARE, dtype=RESULT_DTYPES.get(dtype, dtype))
        multiply = (lambda: product(square, square, out)) if product else (lambda: torch.mm(square, square, out=out))
        times, side = timed(multiply, _REPEATS), SQUARE
    return {name: seconds / (2 * side**3) for name, seconds in times.items()}
