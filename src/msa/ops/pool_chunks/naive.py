"""Chunk mean pooling, written as the definition reads; the reference for :func:`msa.ops.pool_chunks.pool_chunks`."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_chunks_naive(states: Tensor, lengths: Tensor, chunk_size: int) -> Tensor:
    """Same arguments and result as :func:`msa.ops.pool_chunks.pool_chunks`, one chunk at a time."""
    means = [
        states[doc, start : min(start + chunk_size, length)].float().mean(0)
        for doc, length in enumerate(lengths.tolist())
        for start in range(0, length, chunk_size)
    ]
    return torch.stack(means).to(states.dtype)
