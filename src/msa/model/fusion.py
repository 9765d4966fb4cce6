"""The products of one decoded token on a CPU, which are bound by streaming the weights.

Few large products stream them faster than many small ones (:class:`FusedLinear`), and torch's own matrix-vector product
streams bf16 weights about twice as fast as oneDNN's matrix product of one row (:class:`OneRowProducts`; several rows:
token_pass.py).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

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

    @property
    def joined(self) -> tuple[Tensor, Tensor | None]:
        """The layers' weights ``[out_1 + out_2 + …, in]`` as one, and their biases, once :meth:`fuse` was called."""
        if self._weight is None:
            raise RuntimeError("the layers are not fused: call fuse first")
        return self._weight, self._bias

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

    @torch.no_grad()
    def separate(self, layers: Sequence[nn.Linear]) -> None:
        """Undo :meth:`fuse`: each layer's weight gets a storage of its own, as training and its checkpoints need."""
        if self._weight is None:
            return
        for layer in layers:
            for parameter in layer.parameters():
                parameter.data = parameter.data.clone()
        self._weight = self._bias = None

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


class OneRowProducts:
    """Context: bf16 products on the CPU by torch's own kernels instead of oneDNN's; meant for one row, at most two.

    oneDNN takes about as long for a few rows as for one, torch's own kernels take longer with each; with three rows
    they are no faster (benchmarks/serving_throughput.py times passes of one row and more).

    torch keeps this choice in one flag for the whole process. A pass of many tokens in another thread is slower while
    the context is open, never wrong, which is why it is entered for so few tokens alone; nested and concurrent uses are
    counted, and the flag is put back when the last one ends.
    """

    _lock = threading.Lock()
    _open = 0
    _before = True

    def __enter__(self) -> None:
        with OneRowProducts._lock:
            if OneRowProducts._open == 0:
                # the setter behind torch.backends.mkldnn.flags, which also touches the float32 settings and warns
                OneRowProducts._before = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)
            OneRowProducts._open += 1

    def __exit__(self, *_: object) -> None:
        with OneRowProducts._lock:
            OneRowProducts._open -= 1
            if OneRowProducts._open == 0:
                torch._C._set_mkldnn_enabled(OneRowProducts._before)


def few_row_products(input_ids: Tensor, dtype: torch.dtype) -> AbstractContextManager[None]:
    """How a pass over ``[B, T]`` tokens computes its products: in bf16 on a CPU one or two have faster kernels."""
    few_rows = input_ids.numel() <= 2 and input_ids.device.type == "cpu" and dtype == torch.bfloat16
    return OneRowProducts() if few_rows and not torch.is_grad_enabled() else nullcontext()
