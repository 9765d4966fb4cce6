"""The KV cache of a question: per layer the sparse context and the local keys and values, typed and growing in place.

Axes: B rows, Hkv key/value heads, S columns, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_RESERVE = 128  # columns kept free behind the prompt, so that short answers never copy the cache


@dataclass
class LayerCache:
    """Keys and values one layer attends to: [prefix | selected content | local], ``[B, Hkv, S, D]``.

    Attributes:
        num_context: columns of prefix and selected content; the rest is local.
        context_bias: ``[B, num_context]`` added to the logits (−inf: padding; routing bias), None if all zero.
    """

    keys: Tensor
    values: Tensor
    length: int
    num_context: int
    context_bias: Tensor | None

    @classmethod
    def start(cls, keys: Tensor, values: Tensor, num_context: int, context_bias: Tensor | None) -> LayerCache:
        """A cache that holds the prompt's columns and has room for some more."""
        batch, heads, length, dim = keys.shape
        capacity = length + _RESERVE
        room_k, room_v = (x.new_empty(batch, heads, capacity, dim) for x in (keys, values))
        room_k[:, :, :length], room_v[:, :, :length] = keys, values
        return cls(room_k, room_v, length, num_context, context_bias)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add local columns ``[B, Hkv, T, D]``; returns views of all columns so far."""
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:
            capacity = max(end + _RESERVE, self.keys.shape[2] * 3 // 2)
            shape = (*self.keys.shape[:2], capacity, self.keys.shape[3])
            grown_k, grown_v = self.keys.new_empty(shape), self.values.new_empty(shape)
            grown_k[:, :, : self.length] = self.keys[:, :, : self.length]
            grown_v[:, :, : self.length] = self.values[:, :, : self.length]
            self.keys, self.values = grown_k, grown_v
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class KVCache:
    """State of a prefilled question; pass it with the next token(s). Memory is not routed again.

    Attributes:
        layers: one :class:`LayerCache` per decoder layer.
        local_mask: bool ``[B, T]`` of the local columns so far, None if none is padding.
        next_position: global position of the next token of each row ``[B]``.
    """

    layers: list[LayerCache] = field(default_factory=list)
    local_mask: Tensor | None = None
    next_position: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
