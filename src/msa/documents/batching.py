"""Token lists → right-padded batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def length_buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by length, shortest first, each group at most ``batch_tokens`` tokens once padded.

    A single text longer than ``batch_tokens`` is a group of its own.

    >>> length_buckets([5, 2, 3, 9], 8)
    [[1, 2], [0], [3]]
    """
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not buckets or (len(buckets[-1]) + 1) * lengths[index] > batch_tokens:
            buckets.append([])
        buckets[-1].append(index)
    return buckets


def tight_buckets(lengths: Sequence[int], batch_tokens: int, max_padding: float) -> list[list[int]]:
    """The groups of :func:`length_buckets`, each cut wherever more than this share of it would be padding.

    How a group is cut depends on nothing outside it.

    >>> tight_buckets([2, 9, 2, 8, 1], 100, 0.25)
    [[4, 0, 2], [3, 1]]
    """
    cut: list[list[int]] = []
    for bucket in length_buckets(lengths, batch_tokens):
        group: list[int] = []
        tokens = 0
        for index in bucket:
            tokens += lengths[index]
            padded = (len(group) + 1) * lengths[index]
            if group and padded - tokens > max_padding * padded:
                cut.append(group)
                group, tokens = [], lengths[index]
            group.append(index)
        cut.append(group)
    return cut


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token lists → ids ``[N, L]`` padded with 0 on the right, and lengths ``[N]``, both int64."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids.to(device), lengths.to(device)


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token lists → ids ``[N, L]`` padded with 0 on the left, and the mask of real tokens, bool."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, real, sequence in zip(ids, mask, sequences, strict=True):
        row[longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        real[longest - len(sequence) :] = True
    return ids.to(device), mask.to(device)
