"""LoRA as changed weights: W + s·B·A is computed once a step, and the network runs on it as on any weight.

PEFT keeps the two small products beside every use of a layer, and casts what goes in and out: on a GPU that waits for
launches, which a small backbone's does, that is much of a step. Merged, a layer is one product again, of the weight
that the adapter will make once it is loaded. The price is the gradient of the whole weight where PEFT needs two thin
ones: half as much arithmetic again, so where arithmetic is what takes the time, PEFT's way is the faster one.
benchmarks/lora_step.py measures both.

What is trained stays in float32; the network itself may be in bfloat16 without autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from msa.model import MSAForCausalLM
from msa.training.config import LoraConfig
from msa.training.names import is_router


class LowRankChange(nn.Module):
    """W ``[out, in]`` → W + s·B·A in W's precision; B begins at zero, A as a linear layer does (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, lora: LoraConfig) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(torch.empty(lora.rank, inputs, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, lora.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = lora.scale

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        a, b = self.lora_A.to(weight.dtype), self.lora_B.to(weight.dtype)
        return torch.addmm(weight, b, a, alpha=self.scale)


class Cast(nn.Module):
    """A trained float32 weight as the network reads it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in the network's precision."""
        return weight.to(self.dtype)


def merge_lora(lm: MSAForCausalLM, lora: LoraConfig, dtype: torch.dtype) -> None:
    """Give the linear layers that ``lora`` names a low-rank change, and put the network in ``dtype``; in place.

    Routers stay in float32, to be trained, and are cast where they are read.
    """
    for name, module in list(lm.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if is_router(f"{name}.weight"):
            parametrize.register_parametrization(module, "weight", Cast(dtype), unsafe=True)
            continue
        module.weight.data = module.weight.data.to(dtype)
        if _chosen(name, lora):
            parametrize.register_parametrization(module, "weight", LowRankChange(module.weight, lora))
    for name, parameter in lm.named_parameters():
        if parameter.ndim and not is_router(name) and "lora_" not in name:
            parameter.data = parameter.data.to(dtype)


def _chosen(name: str, lora: LoraConfig) -> bool:
    """Whether a linear layer of this name gets a change: its last part is a target, and its layer one of those."""
    parts = name.split(".")
    in_layer = not lora.layers or ("layers" in parts and int(parts[parts.index("layers") + 1]) in lora.layers)
    return parts[-1] in lora.targets and in_layer


@contextmanager
def merged(lm: MSAForCausalLM) -> Iterator[None]:
    """While it is open, every changed weight is computed once; the backward pass belongs into it.

    Where there are gradients all are computed at the start: what :func:`torch.utils.checkpoint.checkpoint` runs again
    finds what the first run found.
    """
    with parametrize.cached():
        if torch.is_grad_enabled():
            for module in lm.modules():
                if parametrize.is_parametrized(module):
                    _ = module.weight
        yield
