"""Adapters: a small safetensors file of routers and LoRA pairs laid over a backbone's weights.

The file holds whole tensors under the model's own names (routers, routing bias) and LoRA pairs
``<module>.lora_A.weight`` ``[r, in]`` and ``<module>.lora_B.weight`` ``[out, r]``, and in its metadata ``lora_scale``,
``backbone``, the fingerprint of the weights it was trained over, ``model``, what these load as, and
``routing_temperature``, if it was trained with another than theirs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from msa.errors import CheckpointError
from msa.model.modeling_msa import MSAForCausalLM
from msa.model.routing_temperature import set_routing_temperature

_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_adapter(model: nn.Module, path: str | Path, *, contains: str, metadata: dict[str, str]) -> list[str]:
    """Write the parameters whose names contain a word as an adapter of whole tensors; returns their names.

    Raises:
        ValueError: no parameter's name contains it.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters() if contains in name}
    if not tensors:
        raise ValueError(f"no parameter's name contains {contains!r}")
    save_file(tensors, path, metadata=metadata)
    return sorted(tensors)


def adapter_metadata(path: str | Path) -> dict[str, str]:
    """What an adapter file says of itself.

    Raises:
        CheckpointError: a file that is missing or damaged.
    """
    return read_adapter(path)[0]


@torch.no_grad()
def apply_adapter(
    model: nn.Module, path: str | Path, *, checksum: str | None = None, backbone: str | None = None
) -> None:
    """Lay an adapter over a model's weights, in place.

    A routing bias comes with the adapter where the model has none.

    Args:
        model: the model; every tensor of the adapter must fit one of its parameters or linear layers.
        path: the adapter's safetensors file.
        checksum: expected SHA-256 of the file; None: not checked.
        backbone: fingerprint of the model's weights, compared with the one the adapter names; None: not compared.

    Raises:
        CheckpointError: a file that is missing, damaged, of another checksum or backbone, or that does not fit. The
            model is unchanged then.
    """
    path = Path(path)
    metadata, tensors = read_adapter(path, checksum=checksum, backbone=backbone)
    scale = _number(metadata, "lora_scale", path)
    temperature = _number(metadata, "routing_temperature", path)
    added = _added_bias(model, tensors, path)
    parameters = {**dict(model.named_parameters()), **added}
    updates = _updates(parameters, tensors, 1.0 if scale is None else scale, path)
    if added and isinstance(model, MSAForCausalLM):
        model.add_routing_bias()
    for name, value in updates.items():
        model.get_parameter(name).copy_(value)
    if temperature is not None and isinstance(model, MSAForCausalLM):
        set_routing_temperature(model, temperature)


def _number(metadata: dict[str, str], name: str, path: Path) -> float | None:
    """A number of an adapter's metadata; None: it has none."""
    try:
        return float(metadata[name]) if name in metadata else None
    except ValueError as error:
        raise CheckpointError(f"adapter {path}: {name} {metadata[name]!r} is not a number") from error


def read_adapter(
    path: str | Path, *, checksum: str | None = None, backbone: str | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """An adapter file's metadata, and its tensors by name; ``checksum`` and ``backbone`` as in :func:`apply_adapter`.

    Raises:
        CheckpointError: a file that is missing, damaged, or of another checksum or backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such adapter file: {path}")
    if checksum is not None and (found := file_checksum(path)) != checksum:
        raise CheckpointError(f"adapter {path} is damaged: its SHA-256 is {found}, expected {checksum}; fetch it again")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"adapter {path} is not a readable safetensors file: {error}") from error
    named = metadata.get("backbone")
    if backbone is not None and named is not None and named != backbone:
        model_name = f" ({metadata['model']} as it was then)" if "model" in metadata else ""
        raise CheckpointError(
            f"adapter {path} was trained over backbone {named}{model_name}, these weights are {backbone}. "
            "Lay it over those, or train it anew over these"
        )
    return metadata, tensors


def _added_bias(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The routing bias, name → scalar, that an adapter brings and the model has not.

    Raises:
        CheckpointError: it brings the bias of some router layers and not of all; the others' would be made up.
    """
    if not isinstance(model, MSAForCausalLM) or model.config.routing_bias:
        return {}
    names = [f"model.layers.{layer}.self_attn.routing_alpha" for layer in model.config.router_layers]
    missing = [name for name in names if name not in tensors]
    if len(missing) == len(names):
        return {}
    if missing:
        raise CheckpointError(
            f"adapter {path} has a routing bias for some router layers, but no {', '.join(missing)}; this model has "
            f"none of its own"
        )
    return {name: torch.zeros(()) for name in names}


def _updates(parameters: dict[str, Tensor], tensors: dict[str, Tensor], scale: float, path: Path) -> dict[str, Tensor]:
    """New value of every parameter the adapter touches, by name; all checked before any is written."""
    updates = {}
    for name, tensor in tensors.items():
        if name.endswith(_LORA_B):
            if name.removesuffix(_LORA_B) + _LORA_A not in tensors:
                raise CheckpointError(f"adapter {path}: {name} has no counterpart {_LORA_A} in the adapter")
            continue
        target = name
        other = None
        if name.endswith(_LORA_A):
            target = name.removesuffix(_LORA_A) + ".weight"
            other = tensors.get(name.removesuffix(_LORA_A) + _LORA_B)
            if other is None:
                raise CheckpointError(f"adapter {path}: {name} has no counterpart {_LORA_B} in the adapter")
        shape = list(tensor.shape)
        if other is not None:
            multiplies = tensor.dim() == other.dim() == 2 and other.shape[1] == tensor.shape[0]
            shape = [other.shape[0], tensor.shape[1]] if multiplies else []
        if target not in parameters or list(parameters[target].shape) != shape:
            raise CheckpointError(f"adapter {path}: {name} {list(tensor.shape)} does not fit this model")
        if other is not None:
            parameter = parameters[target]
            # exact in float64, so that every machine's matrix product gives the same weights and fingerprint
            tensor = parameter.double() + scale * (other.double() @ tensor.double()).to(parameter.device)
        updates[target] = tensor
    return updates
