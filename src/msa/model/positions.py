"""RoPE: document-wise positions (every document starts at 0) and global ones (the question, after prefix and k).

Axes: B rows, T tokens, H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from msa.model.configuration_msa import MSAConfig


class RotaryEmbedding:
    """Angles of the configured RoPE type (default, linear, llama3 or yarn), computed once per device."""

    def __init__(self, config: MSAConfig) -> None:
        self._config = config
        self._tables: dict[torch.device, tuple[Tensor, float]] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions ``[B, T]`` → what :func:`apply_rope` takes, ``[B, 1, T, D]`` in ``dtype``, computed in float32."""
        inv_freq, scaling = self._table(positions.device)
        angles = (positions[..., None].float() * inv_freq)[:, None]
        cos, sin = angles.cos() * scaling, angles.sin() * scaling
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)

    def _table(self, device: torch.device) -> tuple[Tensor, float]:
        if device not in self._tables:
            parameters, head_dim = self._config.rope_parameters or {}, self._config.head_dim
            assert head_dim is not None
            rope_type = parameters.get("rope_type", "default")
            if rope_type == "default":
                exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device)
                inv_freq, scaling = 1.0 / (parameters["rope_theta"] ** (exponents / head_dim)), 1.0
            else:
                inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope_type](self._config, device)
            self._tables[device] = (inv_freq, scaling)
        return self._tables[device]


def apply_rope(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[B, H, T, D]`` by the angles of its positions, halves paired (the Llama convention).

    ``cos`` and ``sin`` are the angles' for each half, ``sin`` negated for the first.
    """
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, dims=-1), sin)


def question_positions(attention_mask: Tensor, start: int) -> Tensor:
    """Global positions ``[B, T]``: real tokens count up from ``start``; padding repeats its neighbour's position."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0) + start
