"""A text through the backbone's own layers under an attention pattern, block by block, and the plain reference.

The layers leave *what to attend to* to a reader (:class:`msa.model.attention.Reader`); this one asks the pattern. The
layers get the identity for a rotation and the reader rotates, because StreamingLLM counts positions inside its cache.

Axes: T tokens, Hq query heads, Hkv key/value heads, D head_dim, R rows and C columns of one block; always one row of a
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from msa.evaluation.alternatives.patterns import FullAttention, StreamingLLM
from msa.model import MSAForCausalLM
from msa.model.attention import MemorySparseAttention
from msa.model.cache import LayerCache
from msa.model.fusion import OneRowProducts
from msa.model.positions import apply_rope

_PIECE_TOKENS = 2048  # through all layers at a time
_BLOCK_ROWS = 256  # rows per attention call: bounds the mask
_SLACK = 512  # columns beyond the window that may wait in the cache before they are dropped

Rope = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]


@dataclass
class PatternCache:
    """Keys and values of what was read; keys of patterns that renumber are kept unrotated.

    Attributes:
        layers: one per decoder layer, all with the same columns.
        length: tokens read so far.
        dropped: columns dropped between the sinks and the oldest other column held.
    """

    layers: list[LayerCache] = field(default_factory=list)
    length: int = 0
    dropped: int = 0

    def fork(self) -> PatternCache:
        """A cache that goes on from here; until it is done with, this one must not be continued."""
        return PatternCache([replace(layer) for layer in self.layers], self.length, self.dropped)

    def trim(self, pattern: FullAttention) -> None:
        """Drop what no later token sees."""
        if not isinstance(pattern, StreamingLLM) or not self.layers:
            return
        recent = max(pattern.sinks, self.length - pattern.window + 1)
        drop = recent - pattern.sinks - self.dropped
        if drop <= _SLACK:
            return
        for layer, held in enumerate(self.layers):
            kept = [
                torch.cat((x[:, :, : pattern.sinks], x[:, :, pattern.sinks + drop : held.length]), dim=2)
                for x in (held.keys, held.values)
            ]
            self.layers[layer] = LayerCache.start(kept[0], kept[1], 0, None)
        self.dropped += drop

    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


class PatternReader:
    """Attention of the next piece of a text; implements :class:`msa.model.attention.Reader`.

    Args:
        pattern: what sees what.
        rope: angles of positions ``[1, T]``.
        cache: what was read before; takes in this piece's keys and values.
        num_tokens: tokens of this piece.
    """

    def __init__(self, pattern: FullAttention, rope: Rope, cache: PatternCache, num_tokens: int) -> None:
        self._pattern, self._rope, self._cache = pattern, rope, cache
        self._first, self._end = cache.length, cache.length + num_tokens
        self._angles: tuple[Tensor, Tensor] | None = None
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Unrotated q ``[1, Hq, T, D]``, k and v ``[1, Hkv, T, D]`` → ``[1, T, Hq, D]``."""
        if attention.rotates and not self._pattern.renumbers:
            if self._angles is None:
                self._angles = self._rope(torch.arange(self._first, self._end, device=q.device)[None], q.dtype)
            q, k = apply_rope(q, *self._angles), apply_rope(k, *self._angles)
        layer, layers = attention.layer, self._cache.layers
        if layer == len(layers):
            layers.append(LayerCache.start(k, v, 0, None))
            keys, values = k, v
        else:
            keys, values = layers[layer].append(k, v)
        blocks = []
        for first in range(self._first, self._end, _BLOCK_ROWS):
            end = min(first + _BLOCK_ROWS, self._end)
            rows = q[:, :, first - self._first : end - self._first]
            blocks.append(self._block(rows, keys, values, first, end, attention))
        return torch.cat(blocks, dim=1)

    def _block(
        self, q: Tensor, keys: Tensor, values: Tensor, first: int, end: int, attention: MemorySparseAttention
    ) -> Tensor:
        """Rows ``first`` … ``end − 1``, q ``[1, Hq, R, D]``, over the held columns → ``[1, R, Hq, D]``."""
        layer = attention.layer
        ranges = self._pattern.ranges(first, end, layer)
        mask = self._mask(ranges, first, end, layer, q.device)
        k, v = (_columns(x, self._held(ranges)) for x in (keys, values))
        scale = q.shape[3] ** -0.5
        if attention.rotates and isinstance(self._pattern, StreamingLLM):
            q, k = renumbered(self._pattern, self._rope, q, k, first, end)
            v = nn.functional.pad(v, (0, q.shape[3] - v.shape[3]))
        return _attend(q, k, v, mask, scale)[..., : values.shape[3]]

    def _held(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where columns lie in the cache."""
        dropped = self._cache.dropped
        if not dropped:
            return list(ranges)
        assert isinstance(self._pattern, StreamingLLM)
        sinks = self._pattern.sinks
        return [(a, b) if b <= sinks else (a - dropped, b - dropped) for a, b in ranges]

    def _mask(
        self, ranges: Sequence[tuple[int, int]], first: int, end: int, layer: int, device: torch.device
    ) -> Tensor | None:
        """Bool ``[R, C]``; None where every row sees every column."""
        if self._pattern.by_layer or (first, end) not in self._masks:
            rows = torch.arange(first, end, device=device)
            columns = torch.cat([torch.arange(a, b, device=device) for a, b in ranges])
            mask = self._pattern.sees(rows, columns, layer)
            self._masks[first, end] = None if bool(mask.all()) else mask
        return self._masks[first, end]


def renumbered(pattern: StreamingLLM, rope: Rope, q: Tensor, k: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
    """Rotate a block's q ``[1, Hq, R, D]`` and k ``[1, Hkv, C, D]`` so that distances are those inside the cache.

    The window's columns are as far as they are in the text; the sinks are next to the window, however far that has
    moved. So a row has two positions, one for each kind of column. Once they differ, q and k come back twice as wide:
    one half for the window, where sinks are zero, one for the sinks.
    """
    sinks, window = pattern.sinks, pattern.window
    rows = torch.arange(first, end, device=q.device)[None]
    start = max(0, first - window + 1)  # positions are counted from the window's first column: exact however long
    if start <= sinks:
        start = 0
        if end <= sinks + window or not sinks:
            columns = torch.arange(k.shape[2], device=q.device)[None]
            return apply_rope(q, *rope(rows, q.dtype)), apply_rope(k, *rope(columns, k.dtype))
        start = sinks
    columns = torch.arange(k.shape[2] - sinks, device=q.device)[None]
    near_q = apply_rope(q, *rope(rows - start, q.dtype))
    near_k = apply_rope(k[:, :, sinks:], *rope(columns, k.dtype))
    if not sinks:
        return near_q, near_k
    far_q = apply_rope(q, *rope(rows.clamp(max=sinks + window - 1), q.dtype))
    far_k = apply_rope(k[:, :, :sinks], *rope(torch.arange(sinks, device=q.device)[None], k.dtype))
    width = q.shape[3]
    wide_k = torch.cat((nn.functional.pad(far_k, (width, 0)), nn.functional.pad(near_k, (0, width))), dim=2)
    return torch.cat((near_q, far_q), dim=3), wide_k


def _columns(states: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Columns of ``[1, Hkv, S, D]``; a view where they are one range."""
    pieces = [states[:, :, start:end] for start, end in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's attention with grouped queries → ``[1, R, Hq, D]``."""
    num_heads, num_kv_heads, num_rows = q.shape[1], k.shape[1], q.shape[2]
    if num_rows == 1:
        # the heads of a group are so many rows over the same keys
        q = q.reshape(1, num_kv_heads, num_heads // num_kv_heads, q.shape[3])
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.reshape(1, 1, num_heads, v.shape[3])
    grouped = num_heads != num_kv_heads
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


class PatternRun:
    """A text being read and continued under a pattern.

    Args:
        lm: the backbone; its memory and routers are not touched.
        pattern: what sees what.
        cache: what was read before; None: nothing.
    """

    def __init__(self, lm: MSAForCausalLM, pattern: FullAttention, cache: PatternCache | None = None) -> None:
        self._lm, self._pattern = lm, pattern
        self.cache = cache or PatternCache()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Read further tokens, at least one; returns the logits ``[V]`` of what comes next."""
        if not ids:
            raise ValueError("there is nothing to read: expected at least one token")
        for first in range(0, len(ids), _PIECE_TOKENS):
            states = self._piece(ids[first : first + _PIECE_TOKENS])
        return self._lm.lm_head(states[0, -1])

    def _piece(self, ids: Sequence[int]) -> Tensor:
        lm, tokens = self._lm, torch.tensor([ids], device=self._lm.device)
        reader = PatternReader(self._pattern, lm.model.rope, self.cache, len(ids))
        one_row = len(ids) == 1 and tokens.device.type == "cpu" and lm.dtype == torch.bfloat16
        with OneRowProducts() if one_row else nullcontext():
            states = lm.model.embed_tokens(tokens)
            identity = (torch.ones((), dtype=states.dtype), torch.zeros((), dtype=states.dtype))
            identity = (identity[0].to(states.device), identity[1].to(states.device))
            for layer in lm.model.layers:
                states = layer(states, identity, reader)
            states = lm.model.norm(states[:, -1:])
        self.cache.length += len(ids)
        self.cache.trim(self._pattern)
        return states


def attend_dense(pattern: FullAttention, rope: Rope, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
    """The reference: one mask over everything, softmax as it is written; a whole text's unrotated q, k and v.

    Args:
        pattern, rope, layer: as in :class:`PatternReader`.
        q: ``[1, Hq, T, D]``; k, v: ``[1, Hkv, T, D]``.

    Returns:
        ``[1, T, Hq, D]``.
    """
    tokens = torch.arange(q.shape[2], device=q.device)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    angles = rope(tokens[None], q.dtype)
    logits = apply_rope(q, *angles) @ apply_rope(k, *angles).transpose(2, 3)
    if isinstance(pattern, StreamingLLM):
        inside = rope(tokens.clamp(max=pattern.sinks + pattern.window - 1)[None], q.dtype)
        from_sinks = apply_rope(q, *inside) @ apply_rope(k, *angles).transpose(2, 3)
        logits = torch.where(tokens < pattern.sinks, from_sinks, logits)
    logits = (logits * q.shape[3] ** -0.5).masked_fill(~pattern.sees(tokens, tokens, layer), float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2)
