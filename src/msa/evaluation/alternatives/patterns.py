"""Context attention patterns as mask functions: which earlier tokens does each token see?

Every pattern is causal and is laid over a pretrained decoder's own weights, without training: what a row measures is
what the pattern costs such a decoder, not what a model trained with it could do.

Axes: R rows (tokens that look), C columns (tokens that are seen); both count the prompt's tokens from 0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

Ranges = list[tuple[int, int]]
FOREVER = 2**62  # end of a range that also takes in every token still to be written


@dataclass
class FullAttention:
    """Every token sees every earlier one: the backbone as it is.

    Attributes:
        renumbers: whether positions are counted inside the cache, so that a prompt may be longer than the context.
        by_layer: whether layers differ.
    """

    renumbers = False
    by_layer = False

    def sees(self, rows: Tensor, columns: Tensor, layer: int) -> Tensor:
        """Whether rows ``[R]`` see columns ``[C]``, both int64: bool ``[R, C]``."""
        return columns[None, :] <= rows[:, None]

    def ranges(self, first: int, end: int, layer: int) -> Ranges:
        """Columns that rows ``first`` … ``end − 1`` may see: disjoint ascending ranges, a superset of ``sees``."""
        return [(0, end)]


@dataclass
class StreamingLLM(FullAttention):
    """Attention sinks and a window (arXiv 2309.17453): the first ``sinks`` tokens and the last ``window``, itself too.

    As in the paper, positions are those inside the cache of ``sinks + window`` tokens, so no distance is ever larger,
    and a token drops out of the cache for good. Read in blocks with a mask, which gives each token exactly the cache
    that feeding tokens one by one would have given it. No departures; the backbone was not trained with a sink token,
    as most of the paper's were not.
    """

    sinks: int = 4
    window: int = 1024
    renumbers = True

    def __post_init__(self) -> None:
        _check_at_least(0, sinks=self.sinks)
        _check_at_least(1, window=self.window)

    def sees(self, rows: Tensor, columns: Tensor, layer: int) -> Tensor:
        """See :meth:`FullAttention.sees`."""
        near = rows[:, None] - columns[None, :] < self.window
        return (columns[None, :] <= rows[:, None]) & (near | (columns < self.sinks)[None, :])

    def ranges(self, first: int, end: int, layer: int) -> Ranges:
        """See :meth:`FullAttention.ranges`."""
        return merged([(0, min(self.sinks, end)), (max(0, first - self.window + 1), end)])


class SlidingWindow(StreamingLLM):
    """The last ``window`` tokens, itself included (Mistral, arXiv 2310.06825, Longformer's local part): no sinks.

    Only distances inside the window occur, so it reads past the context's end as far as positions are concerned.
    """

    def __init__(self, window: int = 1024) -> None:
        super().__init__(sinks=0, window=window)


@dataclass
class Longformer(FullAttention):
    """A window and global question tokens (arXiv 2004.05150), made causal.

    The question's tokens (and everything after the documents: the request to answer, the answer) see all earlier
    tokens, and all later tokens see the question's. Departures: causal, so documents that stand before the question
    cannot see it; the window lies wholly to the left, ``window`` wide in all as the paper's two halves are together;
    no dilation, as in the paper's own continuation from pretrained weights; no separate projections for global tokens,
    which would have to be trained; the answer's tokens are global too, in the pattern's favour, since otherwise they
    could read the documents through the question's states alone. Because a later global token may look anywhere, the
    KV cache keeps every token.

    Attributes:
        global_ranges: ascending ranges of the global tokens.
    """

    window: int = 1024
    global_ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _check_at_least(1, window=self.window)

    def sees(self, rows: Tensor, columns: Tensor, layer: int) -> Tensor:
        """See :meth:`FullAttention.sees`."""
        near = rows[:, None] - columns[None, :] < self.window
        causal = columns[None, :] <= rows[:, None]
        return causal & (near | self._is_global(rows)[:, None] | self._is_global(columns)[None, :])

    def ranges(self, first: int, end: int, layer: int) -> Ranges:
        """See :meth:`FullAttention.ranges`."""
        if self._has_global(first, end):
            return [(0, end)]
        return merged([*self._global_before(end), (max(0, first - self.window + 1), end)])

    def _is_global(self, tokens: Tensor) -> Tensor:
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for start, end in self.global_ranges:
            found |= (tokens >= start) & (tokens < end)
        return found

    def _has_global(self, first: int, end: int) -> bool:
        return any(start < end and stop > first for start, stop in self.global_ranges)

    def _global_before(self, end: int) -> Ranges:
        return [(start, min(stop, end)) for start, stop in self.global_ranges if start < end]


@dataclass
class BigBird(Longformer):
    """A window, random and global blocks (arXiv 2007.14062, ITC: existing tokens are global), made causal.

    Tokens are grouped in blocks. A block sees itself and the blocks before it that make up the window,
    ``random_blocks`` others before those, and the global ones: the first block, and the question's tokens in both
    directions. Departures: causal, so the window and the random blocks lie to the left; the question's tokens stand in
    for the paper's global last block; the random choice differs by layer but not by head; the answer's tokens are
    global, as in :class:`Longformer`; the backbone is not trained with the pattern. The KV cache keeps every token.

    Attributes:
        window: tokens of the window, a multiple of ``block``.
        block: tokens per block; 64 in the paper's base model.
        random_blocks: random blocks per block; 3 in the paper's base model.
        seed: of the random choice, which depends on it, the layer and the block alone.
    """

    block: int = 64
    random_blocks: int = 3
    seed: int = 0
    by_layer = True
    _chosen: dict[tuple[int, int], list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(1, block=self.block)
        _check_at_least(0, random_blocks=self.random_blocks)
        if self.window % self.block:
            raise ValueError(f"window must be a multiple of block, got {self.window} and {self.block}")

    def sees(self, rows: Tensor, columns: Tensor, layer: int) -> Tensor:
        """See :meth:`FullAttention.sees`."""
        row_blocks, column_blocks = rows // self.block, columns // self.block
        near = row_blocks[:, None] - column_blocks[None, :] < self.window // self.block
        far = (column_blocks == 0)[None, :].repeat(len(rows), 1)
        for index in row_blocks.unique().tolist():
            chosen = torch.tensor(self.random_choice(index, layer), dtype=torch.int64, device=columns.device)
            far[row_blocks == index] |= torch.isin(column_blocks, chosen)
        seen = near | far | self._is_global(rows)[:, None] | self._is_global(columns)[None, :]
        return (columns[None, :] <= rows[:, None]) & seen

    def ranges(self, first: int, end: int, layer: int) -> Ranges:
        """See :meth:`FullAttention.ranges`."""
        if self._has_global(first, end):
            return [(0, end)]
        blocks = range(first // self.block, (end - 1) // self.block + 1)
        chosen = [index for block in blocks for index in self.random_choice(block, layer)]
        far = [(index * self.block, (index + 1) * self.block) for index in [0, *chosen]]
        near = (max(0, (blocks[0] + 1) * self.block - self.window), end)
        return merged([*((start, min(stop, end)) for start, stop in far), *self._global_before(end), near])

    def random_choice(self, block: int, layer: int) -> list[int]:
        """Random blocks that a block sees: none of its window, not the first one."""
        if (block, layer) not in self._chosen:
            eligible = range(1, max(1, block + 1 - self.window // self.block))
            rng = random.Random(f"{self.seed} {layer} {block}")
            self._chosen[block, layer] = sorted(rng.sample(eligible, min(self.random_blocks, len(eligible))))
        return self._chosen[block, layer]


def merged(ranges: Ranges) -> Ranges:
    """Ranges in ascending order, touching and overlapping ones joined, empty ones left out.

    >>> merged([(5, 9), (0, 2), (2, 3), (3, 3), (7, 12)])
    [(0, 3), (5, 12)]
    """
    joined: Ranges = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
