"""The optimisers of a run: AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msa.errors import TrainingError
from msa.training.config import TrainConfig
from msa.training.names import is_router

_OUTSIDE = ("embed_tokens", "lm_head", "id_probe")


def build_optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Optimisers over the trainable parameters; their learning rate is set before each step.

    Muon (orthogonalised momentum) takes matrices of the layers alone, its update scaled to AdamW's size
    (arXiv 2502.16982), so that one learning rate serves both. Vectors and scalars have no weight decay.
    Routers with a ``router_rate`` of their own are AdamW's; a group's ``rate``, 1 where it has none, multiplies the
    step's learning rate.

    Raises:
        TrainingError: Muon with a torch that has none.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    routers: list[Tensor] = []
    for name, parameter in trainable:
        if config.router_rate is not None and is_router(name):
            routers.append(parameter)
        elif config.optimizer == "muon" and parameter.ndim == 2 and not any(word in name for word in _OUTSIDE):
            matrices.append(parameter)
        else:
            others.append(parameter)
    optimizers: list[torch.optim.Optimizer] = [_adamw(others, config)] if others else []
    if routers:
        optimizers.append(_adamw(routers, config, rate=config.router_rate))
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(f"optimizer 'muon' needs torch 2.9 or newer, this is {torch.__version__}; use 'adamw'")
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=0.0, momentum=0.95, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def _adamw(parameters: list[Tensor], config: TrainConfig, rate: float | None = None) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if rate is not None:
        groups = [group | {"rate": rate} for group in groups]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=config.betas)
