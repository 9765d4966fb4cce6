"""Weights, gradients and optimiser state divided over processes that train together (FSDP2, torch's ``fully_shard``).

Between steps each process holds its part. During a step it holds all weights, and until they are averaged all
gradients: how often a layer runs depends on the documents and rows that a process drew, so layers gathered one by one
would have some processes wait for others that never come. What is saved is what stays: of 16 bytes a weight in AdamW,
float32, the 12 of optimiser state and weight; and the gradients' 4 are shared out before the optimiser's step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from msa.errors import TrainingError


class ShardedNetwork:
    """A module, divided in place.

    Args:
        module: on the device it trains on, the same in every process; its forward pass begins every backward pass.

    Raises:
        TrainingError: torch is older than 2.7.
    """

    def __init__(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        if "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise TrainingError(f"sharded training needs torch 2.7 or newer, this is {torch.__version__}")
        # a scalar cannot be divided; every process has its own copy, and they are kept alike by clip_gradients
        self._scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
        self._module = module
        self._shards = fully_shard(module, ignored_params=set(self._scalars))  # the same module, by its new methods

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights in every process while it is open; all processes must open it."""
        self.gather()
        try:
            yield
        finally:
            self._shards.reshard()

    def gather(self) -> None:
        """All weights in every process until the next backward pass; all processes must call it."""
        self._shards.unshard()

    def average_at(self, last: bool) -> None:
        """Whether the next backward pass ends with gradients averaged over processes, or only adds to them."""
        self._shards.set_requires_gradient_sync(last)

    def clip_gradients(self, most: float) -> float:
        """Scale all gradients down to a norm of ``most``; returns the norm they had."""
        for scalar in self._scalars:
            if scalar.requires_grad:
                scalar.grad = torch.zeros_like(scalar) if scalar.grad is None else scalar.grad
                distributed.all_reduce(scalar.grad)
                scalar.grad /= distributed.get_world_size()
        whole, parts = self._gradients()
        device = (whole + parts)[0].device
        square = torch.zeros((), device=device)
        for part in parts:
            square += part.float().square().sum()
        distributed.all_reduce(square)
        for gradient in whole:
            square += gradient.float().square()
        norm = square.sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for gradient in whole + parts:
            gradient.mul_(factor)
        return float(norm)

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those that every process has whole, and this process's parts of the others."""
        from torch.distributed.tensor import DTensor

        gradients = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        return whole, [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]

    def save(self, folder: Path, optimizers: Sequence[Optimizer]) -> None:
        """Write weights and optimisers' state, each process its part; all must call it."""
        from torch.distributed import checkpoint

        checkpoint.save(self._state(optimizers), checkpoint_id=folder)

    def load(self, folder: Path, optimizers: Sequence[Optimizer]) -> None:
        """Read what :meth:`save` wrote, by as many processes; all must call it."""
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self._state(optimizers)
        checkpoint.load(state, checkpoint_id=folder)
        set_state_dict(
            self._module,
            [*optimizers],
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizers"],
        )

    def _state(self, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, states = get_state_dict(self._module, [*optimizers])
        return {"weights": weights, "optimizers": states}
