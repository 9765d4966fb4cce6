"""Which weights a run trains: all, the routers, or LoRA beside the routers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from msa.errors import CheckpointError, TrainingError
from msa.model import MSAForCausalLM
from msa.model.adapter import read_adapter
from msa.training.config import LoraConfig, TrainConfig
from msa.training.merged_lora import merge_lora
from msa.training.names import is_router


def choose_trainable(lm: MSAForCausalLM, config: TrainConfig) -> MSAForCausalLM:
    """Set ``requires_grad`` (and add LoRA's weights) as ``config.trainable`` says; the network, changed in place.

    Raises:
        TrainingError: LoRA targets or layers that the network does not have.
    """
    if config.trainable == "lora":
        _add_lora(lm, config)
    for name, parameter in lm.named_parameters():
        if name == "temperature":  # a setting of the routing loss, never trained; loading had made it a weight
            parameter.requires_grad_(False)
            continue
        wanted = config.trainable == "all" or is_router(name) or (config.trainable == "lora" and "lora_" in name)
        parameter.requires_grad_(wanted)
    return lm


def _check_lora(lm: MSAForCausalLM, lora: LoraConfig) -> None:
    """Refuse what PEFT passes over silently where another target or layer fits."""
    modules = [name for name, _ in lm.named_modules()]
    targets = [target for target in lora.targets if not any(name.endswith(f".{target}") for name in modules)]
    if targets:
        raise ValueError(f"no module is called {', '.join(targets)}")
    layers = [str(layer) for layer in lora.layers if layer not in range(lm.config.num_hidden_layers)]
    if layers:
        raise ValueError(f"layer {', '.join(layers)} is not in 0..{lm.config.num_hidden_layers - 1}")


def _add_lora(lm: MSAForCausalLM, config: TrainConfig) -> None:
    try:
        _check_lora(lm, config.lora)
        if config.lora.merged:
            merge_lora(lm, config.lora, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        else:
            _inject_peft(lm, config.lora)
    except ValueError as error:
        raise TrainingError(f"LoRA does not fit this network: {error}") from error


def _inject_peft(lm: MSAForCausalLM, lora: LoraConfig) -> None:
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise TrainingError("LoRA needs the peft package: pip install 'memory-sparse-attention[train]'") from error
    layers = list(lora.layers) or None
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        layers_to_transform=layers,
        layers_pattern="layers" if layers else None,
    )
    inject_adapter_in_model(settings, lm)


def save_trained(lm: MSAForCausalLM, path: str | Path, *, lora_scale: float, metadata: dict[str, str]) -> list[str]:
    """Write what ``routers`` or ``lora`` training changed as an adapter for :func:`msa.model.adapter.apply_adapter`.

    Raises:
        ValueError: nothing of that kind in the network.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _trained(lm).items():
        tensors[name] = value.detach().to("cpu", torch.bfloat16).contiguous()
    if not tensors:
        raise ValueError("the network has neither routers nor LoRA weights")
    facts = {"lora_scale": str(lora_scale), "routing_temperature": f"{lm.temperature.item():.6g}"}
    save_file(tensors, path, metadata={**metadata, **facts})
    return sorted(tensors)


def has_lora(path: str | Path) -> bool:
    """Whether an adapter file holds LoRA pairs.

    Raises:
        CheckpointError: a file that is missing or damaged.
    """
    return any("lora_" in name for name in read_adapter(path)[1])


@torch.no_grad()
def load_trained(lm: MSAForCausalLM, path: str | Path, *, lora_scale: float, backbone: str) -> None:
    """Go on from what :func:`save_trained` wrote: its routers and LoRA pairs become those of a network prepared alike.

    Args:
        lm: after :func:`choose_trainable`, so that LoRA's weights are there.
        path: the adapter.
        lora_scale: of the network's LoRA.
        backbone: fingerprint of the weights below.

    Raises:
        CheckpointError: a file that is missing or damaged, another backbone, another scale, or tensors that are not
            those of the network. It is unchanged.
    """
    metadata, tensors = read_adapter(path, backbone=backbone)
    if float(metadata.get("lora_scale", lora_scale)) != lora_scale:
        raise CheckpointError(
            f"adapter {path} has LoRA of scale {metadata['lora_scale']}, this run of {lora_scale}; set alpha to "
            f"{metadata['lora_scale']} times the rank"
        )
    own = _trained(lm)
    shapes, found = ({name: [*t.shape] for name, t in each.items()} for each in (own, tensors))
    if shapes != found:
        different = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise CheckpointError(
            f"adapter {path} does not fit: {different[0]} is {found.get(different[0])} there and "
            f"{shapes.get(different[0])} here; use the rank, targets and layers it was trained with"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def _trained(lm: MSAForCausalLM) -> dict[str, torch.nn.Parameter]:
    """Routers and LoRA's weights by the names they have in an adapter."""
    return {
        _adapter_name(name): parameter
        for name, parameter in lm.named_parameters()
        if is_router(name) or "lora_" in name
    }


def _adapter_name(name: str) -> str:
    """A parameter's name without what PEFT, or merged_lora.py, wraps around it."""
    for part, plain in (
        (".base_layer", ""),
        (".default.weight", ".weight"),
        (".parametrizations.weight.original", ".weight"),
        (".parametrizations.weight.0.lora_A", ".lora_A.weight"),
        (".parametrizations.weight.0.lora_B", ".lora_B.weight"),
    ):
        name = name.replace(part, plain)
    return name
