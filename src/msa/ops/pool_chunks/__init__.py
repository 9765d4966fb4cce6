"""Chunk mean pooling φ (paper, after Eq. 1): token states of documents → one mean per chunk of ``chunk_size`` tokens.

Axes: N documents, L tokens (padded), C chunks of all documents, F features (any trailing shape).
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.transfer import sent


def chunk_offsets_of(lengths: Tensor, chunk_size: int) -> Tensor:
    """Where each document's chunks start: document i owns chunks ``offsets[i]:offsets[i + 1]``.

    Args:
        lengths: tokens per document ``[N]``, int64, each at least 1.
        chunk_size: tokens per chunk; 64 in the paper.

    Returns:
        Offsets ``[N + 1]``, int64, starting with 0 and ending with the number of chunks C.

    Raises:
        ValueError: ``chunk_size < 1`` or a document without tokens.

    >>> chunk_offsets_of(torch.tensor([3, 2, 4]), 2).tolist()
    [0, 2, 3, 5]
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if lengths.numel() and int(lengths.min()) < 1:
        raise ValueError("every document needs at least one token, got a length below 1")
    counts = torch.div(lengths + chunk_size - 1, chunk_size, rounding_mode="floor")
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def pool_chunks(states: Tensor, lengths: Tensor, chunk_size: int) -> Tensor:
    """Mean of every chunk of every document.

    A chunk never crosses a document's end: the last one is the mean of the tokens it has. Positions at and after a
    document's length are ignored, whatever they hold.

    Args:
        states: token states ``[N, L, *F]``, right padded.
        lengths: tokens per document ``[N]``, int64, each in 1..L.
        chunk_size: tokens per chunk.

    Returns:
        Chunk means ``[C, *F]`` in ``states.dtype`` (summed in float32), document after document.

    Raises:
        ValueError: ``chunk_size < 1``, a length outside 1..L.

    >>> pool_chunks(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 99.0]]), torch.tensor([3, 2]), 2).tolist()
    [0.5, 2.0, 3.5]
    """
    return ChunkPooling(lengths, states.shape[1], chunk_size, states.device)(states)


class ChunkPooling:
    """:func:`pool_chunks` of documents that many layers pool.

    What depends on their lengths alone is computed once, on the CPU; pooling itself never waits for a GPU.

    Args:
        lengths, chunk_size: see :func:`pool_chunks`.
        num_tokens: padded length L of the states.
        device: where the states are.

    Raises:
        ValueError: ``chunk_size < 1``, a length outside 1..L.
    """

    def __init__(self, lengths: Tensor, num_tokens: int, chunk_size: int, device: torch.device) -> None:
        lengths = lengths.cpu()
        chunk_offsets_of(lengths, chunk_size)  # refuses what has no chunks
        longest = int(lengths.max()) if lengths.numel() else 0
        if longest > num_tokens:
            raise ValueError(f"a document of {longest} tokens does not fit states of {num_tokens} tokens")
        self._chunk_size, self._per_doc = chunk_size, -(-num_tokens // chunk_size)
        starts = torch.arange(self._per_doc) * chunk_size
        # tokens of each chunk, 0 where there is none
        sizes = (lengths[:, None] - starts).clamp(0, chunk_size).flatten()
        exist = sizes.nonzero().squeeze(1)
        self._real = sent(torch.arange(num_tokens) < lengths[:, None], device)
        self._exist, self._sizes = sent(exist, device), sent(sizes[exist], device)

    def __call__(self, states: Tensor) -> Tensor:
        """Token states ``[N, L, *F]`` → chunk means ``[C, *F]``."""
        features = states.dim() - 2
        # where, not multiply: padding may hold NaN
        masked = torch.where(self._real.view(*self._real.shape, *[1] * features), states, states.new_zeros(()))
        padding = [0, 0] * features + [0, self._per_doc * self._chunk_size - states.shape[1]]
        grouped = torch.nn.functional.pad(masked, padding).unflatten(1, (self._per_doc, self._chunk_size))
        sums = grouped.sum(2, dtype=torch.float32 if states.dtype != torch.float64 else None)
        means = sums.flatten(0, 1).index_select(0, self._exist) / self._sizes.view(-1, *[1] * features)
        return means.to(states.dtype)
