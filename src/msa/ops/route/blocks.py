"""Forms in which a memory keeps its routing keys: as they were stored, halved, or as int8 with one scale a chunk.

Memories of many segments are routed over as a sequence of blocks, so nothing is concatenated. Halved and int8 keys
are made ready for one similarity when they are prepared; a question then costs one product and no normalisation.

Every form gives its chunks in float32 (``rows``), and most also for a fast product (``fast_rows``), with bounds on how
far that can be off (:class:`FastForm`).

Axes: C chunks of a block, c chunks of a tile, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from msa.ops.route.types import SIMILARITIES

# keys in float32 while a block is prepared: 1 MB
_PREPARED_ELEMENTS = 256 * 1024
HALF_DTYPES = (torch.bfloat16, torch.float16)
# how much a key that is rounded to bfloat16 changes, as a share of its length
_ROUNDED = 2**-8
_ROUNDING_UP = 1 + 1e-5  # lengths are summed in float32


class KeyRows(Protocol):
    """Stored keys ``[C, Hkv, D]`` of which single chunks can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, Hkv, D)``."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Chunks ``[n]`` int64 on the CPU → ``[n, Hkv, D]``."""


@dataclass(frozen=True)
class FastForm:
    """What ``fast_rows`` of a block are.

    Attributes:
        dtype: int8 or bfloat16.
        longest: no chunk's keys, all heads together and ready for a dot product, are longer; None: not known.
        error: how far fast rows are from the exact ones, as a share of ``longest``.
    """

    dtype: torch.dtype
    longest: float | None
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class ExactKeys:
    """Keys as they were stored, normalised in float32 at each question if the similarity asks for it.

    Attributes:
        keys: ``[C, Hkv, D]`` of any float dtype, before any normalisation; may be memory-mapped.
        inverse_lengths: 1 / length of each head's key ``[C, Hkv]`` bfloat16, for a faster comparison by cosine;
            longest: no chunk is longer, for one by dot product. :func:`measure_keys` finds them; None: not known.

    Raises:
        ValueError: inverse lengths of another dtype or shape.
    """

    keys: Tensor
    inverse_lengths: Tensor | None = None
    longest: float | None = None

    def __post_init__(self) -> None:
        known, expected = self.inverse_lengths, tuple(self.keys.shape[:2])
        if known is not None and (known.dtype != torch.bfloat16 or tuple(known.shape) != expected):
            raise ValueError(
                f"inverse lengths must be bfloat16 of shape {expected}, got {known.dtype} of shape "
                f"{tuple(known.shape)}; measure_keys makes them"
            )

    @property
    def scale(self) -> None:
        """Exact keys have no scale."""

    @property
    def stored(self) -> None:
        """Exact keys need no second look."""

    def rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """Chunks ``start:stop`` ready for a dot product, ``[c, Hkv, D]`` float32; ``out`` is scratch of that shape."""
        keys = _float(self.keys[start:stop], out)
        return torch.nn.functional.normalize(keys, dim=-1, out=out) if similarity == "cosine" else keys

    def fast_form(self, similarity: str) -> FastForm | None:
        """What fast rows are; None: there are none for this similarity."""
        if self.keys.dtype != torch.bfloat16:
            return None
        if similarity == "dot":
            return FastForm(torch.bfloat16, self.longest)
        # the inverse length is rounded, and the key with it
        return None if self.inverse_lengths is None else FastForm(torch.bfloat16, _unit(self.keys), 2.1 * _ROUNDED)

    def fast_rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """Chunks ``start:stop`` for a fast product ``[c, Hkv, D]``; ``out`` is scratch of that shape and dtype."""
        keys = self.keys[start:stop]
        if self.inverse_lengths is None or similarity == "dot":
            return keys
        return torch.mul(keys, self.inverse_lengths[start:stop, :, None], out=out)

    def take(self, rows: Tensor) -> ExactKeys:
        """Single chunks ``[n]`` int64."""
        return ExactKeys(self.keys.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class HalfKeys:
    """Keys made ready for one similarity and rounded to 16 bits; :func:`halve_keys` makes them.

    Attributes:
        keys: ``[C, Hkv, D]`` bfloat16 or float16; for cosine of length 1 per head up to rounding.
        similarity: what they were prepared for.
        stored: the keys ``[C, Hkv, D]`` they were made of, as in :class:`ExactKeys`, on any device or on disk:
            the best documents are scored again from them. None: the selection is that of the rounded keys.

    Raises:
        ValueError: another dtype or an unknown similarity.
    """

    keys: Tensor
    similarity: str = "cosine"
    stored: Tensor | KeyRows | None = None

    def __post_init__(self) -> None:
        check_similarity(self.similarity)
        _check_stored(self.keys, self.stored)
        if self.keys.dtype not in HALF_DTYPES:
            raise ValueError(f"halved keys must be bfloat16 or float16, got {self.keys.dtype}; halve_keys makes them")

    @property
    def scale(self) -> None:
        """Halved keys have no scale."""

    def rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """As :meth:`ExactKeys.rows`.

        Raises:
            ValueError: the keys were prepared for another similarity.
        """
        _check_prepared(self.similarity, similarity)
        return _float(self.keys[start:stop], out)

    def fast_form(self, similarity: str) -> FastForm | None:
        """As :meth:`ExactKeys.fast_form`."""
        _check_prepared(self.similarity, similarity)
        return FastForm(torch.bfloat16, self._longest) if self.keys.dtype == torch.bfloat16 else None

    def fast_rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """As :meth:`ExactKeys.fast_rows`."""
        return self.keys[start:stop]

    def take(self, rows: Tensor) -> HalfKeys:
        """Single chunks ``[n]`` int64, without stored keys."""
        return HalfKeys(self.keys.index_select(0, rows), self.similarity)

    @cached_property
    def _longest(self) -> float:
        return _unit(self.keys) * (1 + _ROUNDED) if self.similarity == "cosine" else longest_of(self)


@dataclass(frozen=True, eq=False)
class QuantizedKeys:
    """Keys made ready for one similarity and rounded to int8 x scale; :func:`quantize_keys` makes them.

    Attributes:
        keys: ``[C, Hkv, D]`` int8.
        scale: ``[C]`` float32, not negative: a chunk's keys are ``keys · scale``.
        similarity: what they were prepared for.
        stored: the keys ``[C, Hkv, D]`` they were made of, as in :class:`ExactKeys`, on any device or on disk:
            the best documents are scored again from them. None: the selection is that of the rounded keys.

    Raises:
        ValueError: another dtype or shape, or an unknown similarity.
    """

    keys: Tensor
    scale: Tensor
    similarity: str = "cosine"
    stored: Tensor | KeyRows | None = None

    def __post_init__(self) -> None:
        check_similarity(self.similarity)
        _check_stored(self.keys, self.stored)
        expected, found = (self.keys.shape[0],), tuple(self.scale.shape)
        if self.keys.dtype != torch.int8 or self.scale.dtype != torch.float32 or found != expected:
            raise ValueError(
                f"quantized keys must be int8 with float32 scales of shape {expected}, got {self.keys.dtype} "
                f"with {self.scale.dtype} of shape {found}; quantize_keys makes them"
            )

    def rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """As :meth:`ExactKeys.rows`, not yet multiplied by ``scale``: the scorer scales scores instead of keys.

        Raises:
            ValueError: the keys were prepared for another similarity.
        """
        _check_prepared(self.similarity, similarity)
        return _float(self.keys[start:stop], out)

    def fast_form(self, similarity: str) -> FastForm | None:
        """As :meth:`ExactKeys.fast_form`."""
        _check_prepared(self.similarity, similarity)
        return FastForm(torch.int8, self._longest)

    def fast_rows(self, start: int, stop: int, similarity: str, out: Tensor | None = None) -> Tensor:
        """As :meth:`ExactKeys.fast_rows`, not yet multiplied by ``scale``."""
        return self.keys[start:stop]

    def take(self, rows: Tensor) -> QuantizedKeys:
        """Single chunks ``[n]`` int64, without stored keys."""
        return QuantizedKeys(self.keys.index_select(0, rows), self.scale[rows], self.similarity)

    @cached_property
    def _longest(self) -> float:
        """For cosine what rounding can make of a length of 1 per head, else what is the case."""
        if not self.scale.numel():
            return 0.0
        if self.similarity == "cosine":
            return _unit(self.keys) + float(self.scale.max()) * math.sqrt(self.keys.shape[1:].numel())
        return longest_of(self)


KeyBlock: TypeAlias = ExactKeys | HalfKeys | QuantizedKeys


def as_blocks(keys: Tensor | Sequence[KeyBlock], query: Tensor) -> list[KeyBlock]:
    """One tensor of keys, or blocks of them, as a list of at least one block.

    Without any block it is an empty one with the heads of the query ``[B, T, Hq, D]``.

    Raises:
        ValueError: blocks of different numbers of heads or sizes of heads.
    """
    blocks: list[KeyBlock] = [ExactKeys(keys)] if isinstance(keys, Tensor) else list(keys)
    blocks = blocks or [ExactKeys(query.new_zeros(0, *query.shape[2:]))]
    shapes = {tuple(block.keys.shape[1:]) for block in blocks}
    if len(shapes) > 1:
        raise ValueError(f"all key blocks must have the same [Hkv, D], got {', '.join(map(str, sorted(shapes)))}")
    return blocks


@torch.no_grad()
def scales_of(blocks: Sequence[KeyBlock]) -> Tensor | None:
    """The factor ``[C]`` float32 on each chunk's score, all blocks in a row; None where no block has scales."""
    if all(block.scale is None for block in blocks):
        return None
    ones = [block.keys.new_ones(block.keys.shape[0], dtype=torch.float32) for block in blocks]
    return torch.cat([one if block.scale is None else block.scale for block, one in zip(blocks, ones, strict=True)])


def dequantize(blocks: Sequence[KeyBlock], similarity: str) -> Tensor:
    """All keys of all blocks in full, ready for a dot product: ``[C, Hkv, D]`` float32."""
    keys = torch.cat([block.rows(0, block.keys.shape[0], similarity) for block in blocks])
    scales = scales_of(blocks)
    return keys if scales is None else keys * scales[:, None, None]


def longest_possible(keys: Tensor) -> float:
    """No chunk of ``[C, Hkv, D]`` is longer: as long as one would be with the largest value everywhere."""
    if not keys.numel():
        return 0.0
    least, most = keys.aminmax()
    return max(-float(least), float(most)) * math.sqrt(keys.shape[1:].numel())


def longest_of(block: KeyBlock) -> float:
    """The length of the longest chunk ready for a dot product that is not normalised."""
    longest = 0.0
    for start, rows in prepared_tiles(block, "dot"):
        lengths = rows.flatten(1).norm(dim=1)
        scale = block.scale
        lengths = lengths if scale is None else lengths * scale[start : start + len(rows)]
        longest = max(longest, float(lengths.max()))
    return longest * _ROUNDING_UP


def _unit(keys: Tensor) -> float:
    """How long a chunk is whose heads' keys have length 1."""
    return math.sqrt(keys.shape[1]) * _ROUNDING_UP


def prepared_tiles(block: KeyBlock, similarity: str) -> Iterator[tuple[int, Tensor]]:
    """Where each tile of ``rows`` starts, and it; gone when the next one is asked for."""
    keys = block.keys
    tile = max(1, _PREPARED_ELEMENTS // max(1, keys.shape[1:].numel()))
    scratch = torch.empty(min(tile, keys.shape[0]), *keys.shape[1:], device=keys.device)
    for start in range(0, keys.shape[0], tile):
        stop = min(start + tile, keys.shape[0])
        yield start, block.rows(start, stop, similarity, scratch[: stop - start])


def _float(keys: Tensor, out: Tensor | None) -> Tensor:
    """Keys in float32, in ``out`` where they are of another dtype and there is one."""
    return keys.float() if out is None or keys.dtype == torch.float32 else out.copy_(keys)


def check_similarity(similarity: str) -> None:
    """Refuse an unknown word."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")


def _check_stored(keys: Tensor, stored: Tensor | KeyRows | None) -> None:
    if stored is not None and stored.shape != keys.shape:
        raise ValueError(f"stored keys must have the shape of the compact ones, {keys.shape}, got {stored.shape}")


def _check_prepared(prepared_for: str, asked: str) -> None:
    if prepared_for != asked:
        raise ValueError(f"these keys were prepared for {prepared_for}, the spec asks for {asked}; prepare them for it")
