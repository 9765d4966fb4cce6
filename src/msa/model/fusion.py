"""Several linear layers over one input as one matrix product, without a second copy of their weights.

On a CPU a decoded token is bound by streaming the weights; few large products stream them faster than many small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FusedLinear:
    """Runs linear layers side by side; joined by :meth:`fuse`, they share one weight that theirs are views of.

    Falls back to the separate layers while gradients are asked for, and for good once a layer was replaced (as LoRA
    does) or its weights moved.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """``[..., in]`` → the layers' outputs side by side ``[..., out_1 + out_2 + …]``."""
        if self._weight is not None and not torch.is_grad_enabled() and self._is_intact(layers):
            return nn.functional.linear(x, self._weight, self._bias)
        return torch.cat([layer(x) for layer in layers], dim=-1)

    @torch.no_grad()
    def fuse(self, layers: Sequence[nn.Linear]) -> None:
        """Move the layers' weights into one tensor and make theirs views of it; their values stay the same."""
        self._weight = torch.cat(tuple(layer.weight for layer in layers))
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat(tuple(biases)) if len(biases) == len(layers) else None
        first = 0
        for layer in layers:
            end = first + layer.out_features
            layer.weight.data = self._weight[first:end]
            if self._bias is not None:
                layer.bias.data = self._bias[first:end]
            first = end

    def _is_intact(self, layers: Sequence[nn.Module]) -> bool:
        assert self._weight is not None
        pointer = self._weight.data_ptr()
        bias_pointer = None if self._bias is None else self._bias.data_ptr()
        for layer in layers:
            bias = getattr(layer, "bias", None)
            same_bias = (None if bias is None else bias.data_ptr()) == bias_pointer
            if type(layer) is not nn.Linear or layer.weight.data_ptr() != pointer or not same_bias:
                self._weight = self._bias = None
                return False
            pointer += layer.weight.numel() * layer.weight.element_size()
            if bias is not None and bias_pointer is not None:
                bias_pointer += bias.numel() * bias.element_size()
        return True
