"""The KV caches of questions that are decoded together, though each began at another time and has read something else.

Axes: B rows, L layers, Hkv key/value heads, S columns, D head_dim, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msa.model.attention import NEG_INF, MemorySparseAttention
from msa.model.cache import KVCache, LayerCache
from msa.ops import attend_memory

if TYPE_CHECKING:
    from msa.model.modeling_msa import MSAForCausalLM

_COLUMNS = 256  # rows grow by at least so many columns at a time
_SPARSE = 4  # when the rows need no more than one part in so many of what is held, the rest is let go


class RunningCache:
    """Rows of keys and values that come and go between two tokens; the reader of the passes that continue them.

    Each row keeps its columns [prefix | selected content | local] from the left, in every layer as many as it has
    there, and a bias hides what stands behind them: the order of columns means nothing to attention, so no row is ever
    moved to make room for another. The first B rows are in use.

    Args:
        max_bytes: of keys and values; no room is made ahead of need beyond it. None: no limit. What the rows need they
            get whatever it is.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._room = (0, 0)  # rows and columns that every tensor has
        self._keys: list[Tensor] = []  # per layer [B + free, Hkv, S, D]
        self._values: list[Tensor] = []
        self._bias = torch.zeros(0)  # [L, B + free, S]
        self._ends = torch.zeros(0, dtype=torch.int64)  # [L, B + free], columns of each row so far
        self._positions = torch.zeros(0, dtype=torch.int64)  # [B + free], of the next token
        self._indices = torch.zeros(0, dtype=torch.int64)  # [B]
        self._contexts: list[list[tuple[int, Tensor | None]]] = []  # per row and layer: context columns and their bias
        self._lengths: list[list[int]] = []  # per row and layer, as ``_ends``
        self._joined = False  # some row since the last pass
        self._seen: list[int] = []  # per layer the columns of the longest row, the coming token's included
        self._hides: list[bool] = []  # per layer whether some row does not see all of them

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values take."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    @staticmethod
    def bytes_of(cache: KVCache, rows: int, columns: int) -> int:
        """Bytes that ``rows`` rows of ``columns`` columns take, of the shape that ``cache`` has."""
        return sum(2 * rows * columns * layer.keys[0, :, 0].nbytes for layer in cache.layers)

    @torch.inference_mode()
    def join(self, cache: KVCache) -> None:
        """Add a prefilled question as the last row; its cache is copied.

        Raises:
            ValueError: it has several rows, or padding.
        """
        if cache.layers[0].keys.shape[0] != 1 or cache.local_mask is not None:
            raise ValueError("only a single row without padding can join others")
        row, lengths = len(self), [layer.length for layer in cache.layers]
        self._reserve(cache, row + 1, max([*self._seen, max(lengths) + 1]))
        self._bias[:, row] = NEG_INF
        for index, layer in enumerate(cache.layers):
            for kept, added in ((self._keys, layer.keys), (self._values, layer.values)):
                kept[index][row, :, : layer.length] = added[0, :, : layer.length]
                kept[index][row, :, layer.length :] = 0  # nothing that is hidden may be NaN
            self._bias[index, row, : layer.length] = 0
            if layer.context_bias is not None:
                self._bias[index, row, : layer.num_context] = layer.context_bias[0]
        self._ends[:, row] = torch.tensor(lengths)
        self._positions[row] = cache.next_position[0]
        self._lengths.append(lengths)
        self._contexts.append([(layer.num_context, layer.context_bias) for layer in cache.layers])
        self._joined = True
        self._rows_changed()

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its number."""
        last = len(self) - 1
        if row != last:
            for tensor in (*self._keys, *self._values):
                tensor[row] = tensor[last]
            self._bias[:, row] = self._bias[:, last]
            self._ends[:, row] = self._ends[:, last]
            self._positions[row] = self._positions[last]
            self._lengths[row], self._contexts[row] = self._lengths[last], self._contexts[last]
        self._lengths.pop()
        self._contexts.pop()
        self._rows_changed()
        rows, columns = last, max(self._seen, default=0)
        if rows and self._room[0] * self._room[1] > _SPARSE * rows * max(columns, _COLUMNS):
            self._make_room(rows, columns)  # what left was larger

    @torch.inference_mode()
    def copy_of(self, row: int) -> KVCache:
        """A row as a cache of its own, to go on alone."""
        layers = []
        for index, (length, (num_context, bias)) in enumerate(
            zip(self._lengths[row], self._contexts[row], strict=True)
        ):
            keys, values = (kept[index][row : row + 1, :, :length] for kept in (self._keys, self._values))
            layers.append(LayerCache.start(keys, values, num_context, bias))
        return KVCache(layers=layers, next_position=self._positions[row : row + 1].clone())

    @torch.inference_mode()
    def decode(self, lm: MSAForCausalLM, tokens: list[int]) -> Tensor:
        """The next token of every row in one pass; returns the logits ``[B, V]`` after them.

        A pass that fails changes nothing: it can be repeated.
        """
        columns = max(self._seen)
        if columns > self._room[1]:
            self._make_room(len(self), columns)
        if self._joined:
            lm.weights_may_have_changed()
            self._joined = False
        rows = len(self)
        ids = torch.tensor(tokens, device=self._positions.device)[:, None]
        ends = self._ends[:, :rows]
        self._bias[:, :rows].scatter_(2, ends[..., None], 0.0)
        _, logits = lm.read_token(ids, self._positions[:rows, None], self)
        ends += 1
        self._positions[:rows] += 1
        self._seen = [columns + 1 for columns in self._seen]
        for lengths in self._lengths:
            lengths[:] = [length + 1 for length in lengths]
        return logits[:, -1]

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`; one token ``[B, …, 1, D]`` each."""
        index, rows = attention.layer, len(self)
        keys, values, seen = self._keys[index], self._values[index], self._seen[index]
        ends = self._ends[index, :rows]
        keys[self._indices, :, ends] = k[:, :, 0]
        values[self._indices, :, ends] = v[:, :, 0]
        bias = self._bias[index, :rows, None, None, :seen] if self._hides[index] else None
        return attend_memory(q, keys[:rows, :, :seen], values[:rows, :, :seen], bias)

    def _rows_changed(self) -> None:
        by_layer = [*zip(*self._lengths, strict=True)]
        self._seen = [max(lengths) + 1 for lengths in by_layer]
        self._hides = [
            min(lengths) < max(lengths) or any(context[index][1] is not None for context in self._contexts)
            for index, lengths in enumerate(by_layer)
        ]
        self._indices = torch.arange(len(self), device=self._positions.device)

    def _reserve(self, cache: KVCache, rows: int, columns: int) -> None:
        """Room for so many rows and columns."""
        if not self._keys:
            like = cache.layers[0].keys
            shapes = [(0, layer.keys.shape[1], 0, layer.keys.shape[3]) for layer in cache.layers]
            self._keys, self._values = ([like.new_zeros(shape) for shape in shapes] for _ in range(2))
            self._bias = like.new_zeros(len(shapes), 0, 0)
            self._ends = torch.zeros(len(shapes), 0, dtype=torch.int64, device=like.device)
            self._positions = torch.zeros(0, dtype=torch.int64, device=like.device)
        if rows > self._room[0] or columns > self._room[1]:
            self._make_room(rows, columns)

    def _make_room(self, rows: int, columns: int) -> None:
        """Tensors for so many rows and columns, and some ahead as far as there may be; what is in use is copied.

        Columns that only rows which have left needed go with it.
        """
        held_rows, held_columns = self._room
        ahead = 2 * rows if rows > held_rows > 0 else rows
        wide = columns * 5 // 4 if columns > held_columns > 0 else columns
        column_bytes = sum(2 * keys.shape[1] * keys.shape[3] * keys.element_size() for keys in self._keys)
        for rows_tried, columns_tried, step in ((ahead, wide, _COLUMNS), (rows, columns, _COLUMNS), (rows, columns, 1)):
            target = rows_tried, -(-columns_tried // step) * step
            if self._max_bytes is None or target[0] * target[1] * column_bytes <= self._max_bytes:
                break
        self._resize(*target)

    def _resize(self, rows: int, columns: int) -> None:
        """Tensors of this size with the same content; the rest is zero."""
        used_rows, used_columns = len(self), max((max(lengths) for lengths in self._lengths), default=0)
        used = slice(0, used_rows), slice(None), slice(0, used_columns)
        self._room = min(rows, self._room[0]), min(columns, self._room[1])  # should memory run out in between
        for kept in (self._keys, self._values):
            for index, tensor in enumerate(kept):
                if (tensor.shape[0], tensor.shape[2]) != (rows, columns):  # else it was resized before memory ran out
                    kept[index] = tensor.new_zeros(rows, tensor.shape[1], columns, tensor.shape[3])
                    kept[index][used] = tensor[used]
        layers = len(self._keys)
        bias = self._bias.new_full((layers, rows, columns), NEG_INF)
        ends, positions = self._ends.new_zeros(layers, rows), self._positions.new_zeros(rows)
        bias[:, :used_rows, :used_columns] = self._bias[:, :used_rows, :used_columns]
        ends[:, :used_rows] = self._ends[:, :used_rows]
        positions[:used_rows] = self._positions[:used_rows]
        self._bias, self._ends, self._positions = bias, ends, positions
        self._room = rows, columns
