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

    @property
    def num_local(self) -> int:
        """Local columns so far: the rows' own tokens, without prefix and selected content."""
        return self.layers[0].length - self.layers[0].num_context


def mask_of_new_tokens(
    name: str, mask: Tensor | None, input_ids: Tensor, cache: KVCache | None = None
) -> Tensor | None:
    """A mask's columns ``[B, T]`` of the tokens ``input_ids`` ``[B, T]``.

    With a cache it may have those of all the rows' tokens so far, as transformers passes it.

    Raises:
        ValueError: another shape; or earlier columns that are not those which the cache was made with.
    """
    if mask is None or mask.shape == input_ids.shape:
        return mask
    (batch, num_tokens), earlier = input_ids.shape, 0 if cache is None else cache.num_local
    if cache is None or mask.shape != (batch, earlier + num_tokens):
        of_all = f" (or [{batch}, {earlier + num_tokens}], with the tokens in the cache)" if earlier else ""
        raise ValueError(
            f"{name} must be [{batch}, {num_tokens}]{of_all}, a number for each token of input_ids; found "
            f"{list(mask.shape)}"
        )
    given = mask[:, :earlier].bool()
    known = torch.ones_like(given) if cache.local_mask is None else cache.local_mask.to(given.device)
    if not torch.equal(given, known):
        raise ValueError(
            f"{name} hides other earlier tokens than when they were read; the cache was made with those already. Pass "
            f"the columns of the new tokens alone"
        )
    return mask[:, earlier:]
