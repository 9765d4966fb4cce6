"""A model ready for use: network, tokenizer and transcript together, loaded from one checkpoint folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from msa.documents import Protocol, ProtocolStrings
from msa.errors import CheckpointError, ModelNotFoundError
from msa.model.attention import PrefixMemory
from msa.model.configuration_msa import MSAConfig
from msa.model.modeling_msa import MSAForCausalLM

_loading = threading.RLock()
_FINGERPRINT_SAMPLES = 65536  # elements read per tensor
_NAMED = 3  # weights in a message
_MAY_BE_MISSING = ("temperature", ".routing_alpha")
_MAY_BE_LEFT_OUT = (".router_q_proj.", ".router_k_proj.", ".routing_alpha", "rotary_emb.inv_freq")
# settings that change what a document's latents are
_FINGERPRINT_FIELDS = ("backbone", "router_layers", "chunk_size", "decouple_router", "rope_parameters", "protocol")


class MSAModel:
    """What :func:`msa.load` returns.

    Attributes:
        lm: the network.
        tokenizer: its transformers tokenizer.
        protocol: the transcript's strings and token ids.
        name: what it was loaded as.
    """

    def __init__(self, lm: MSAForCausalLM, tokenizer: Any, name: str = "unnamed") -> None:
        self.lm = lm.eval()
        self.lm.fuse_projections()
        self.tokenizer = tokenizer
        self.protocol = Protocol(ProtocolStrings.from_config(lm.config.protocol), tokenizer)
        self.name = name

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.lm.parameters())
        return f"MSAModel({self.name!r}, {size / 1e6:.1f}M parameters, {self.lm.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm.device

    @cached_property
    def prefix(self) -> PrefixMemory:
        """Keys and values of the template prefix, computed once."""
        with torch.inference_mode():
            return self.lm.encode_prefix(torch.tensor(self.protocol.prefix_ids, device=self.device))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell whether two models make the same memory, whatever dtype they run in."""
        return model_fingerprint(self.lm)

    def save_pretrained(self, folder: str | Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write weights, config (with the protocol) and tokenizer to ``folder``.

        ``weights`` are written in place of what the network's ``state_dict`` gives.
        """
        self.lm.config.protocol = self.protocol.strings.to_config()
        self.lm.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)


@torch.inference_mode()
def model_fingerprint(lm: MSAForCausalLM, *, routers: bool = True) -> str:
    """Hash of the settings and of up to 64K evenly spaced elements of every tensor, rounded to bfloat16.

    Without ``routers`` it identifies the backbone that routers are trained over.
    """
    digest = hashlib.sha256()
    settings = {field: getattr(lm.config, field) for field in _FINGERPRINT_FIELDS}
    if lm.config.no_rope_layers is not None:
        settings["no_rope_layers"] = lm.config.no_rope_layers
    settings["protocol"] = {"document": ProtocolStrings.from_config(lm.config.protocol).document}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, parameter in sorted(lm.named_parameters()):
        if not routers and ".router_" in name:
            continue
        values = parameter.detach().flatten()
        sampled = values[:: -(-values.numel() // _FINGERPRINT_SAMPLES)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(sampled.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_checkpoint(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
    protocol: ProtocolStrings | None = None,
) -> MSAModel:
    """Load an MSA checkpoint folder.

    Args:
        folder: a folder with an MSA ``config.json``, weights and tokenizer, or a hub id of one.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:n``.
        dtype: ``auto`` (see :func:`resolve_dtype`), ``bfloat16`` or ``float32``.
        name: what to call it; None: the folder's name.
        protocol: the transcript's strings; None: the checkpoint's own.

    Raises:
        ModelNotFoundError: no such folder, or files are missing.
        UnsupportedModelError: a checkpoint of another model, for instance a backbone that was not converted.
        CheckpointError: config, weights or tokenizer are damaged or do not fit each other.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    try:
        with quiet_loading():
            config = _read_config(folder)
            if protocol is not None:
                config.protocol = protocol.to_config()
            lm, report = MSAForCausalLM.from_pretrained(folder, config=config, dtype=kind, output_loading_info=True)
            _check_weights(folder, config, set(report["missing_keys"]), set(report["unexpected_keys"]))
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ModelNotFoundError(f"cannot load {str(folder)!r}: {str(error).strip().splitlines()[0]}") from error
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"cannot read the weights in {str(folder)!r}: {error}") from error
    return MSAModel(lm.to(where), tokenizer, name or Path(folder).name)


def _read_config(folder: str | Path) -> MSAConfig:
    try:
        return MSAConfig.from_pretrained(folder)
    except ValueError as error:
        raise CheckpointError(f"cannot use the config.json in {str(folder)!r}: {error}") from error


def _check_weights(folder: str | Path, config: MSAConfig, missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights that transformers would make up, or leave out, without a word.

    May be missing: the temperature and a routing bias, which begin at numbers that are known. May be too many: routers
    that the config does not use, and the angles of RoPE that old checkpoints hold.

    Raises:
        CheckpointError: that names some of them.
    """
    lost = sorted(name for name in missing if not name.endswith(_MAY_BE_MISSING))
    unknown = sorted(name for name in unexpected if not any(part in name for part in _MAY_BE_LEFT_OUT))
    hint = "fetch or save it again, or correct its config.json"
    if any(".router_" in name for name in lost):
        hint = (
            f"routers are made by training or by msa convert; the config.json names layers "
            f"{', '.join(map(str, config.router_layers or []))} as router layers"
        )
    refuse_misfits(folder, lost, unknown, ", for which the model has no place", hint)


def refuse_misfits(source: str | Path, lost: list[str], others: list[str], of_others: str, hint: str) -> None:
    """Raise, if there are any, what is wrong with the weights in a folder or file.

    Args:
        source: the folder or file.
        lost: names of weights that are not there.
        others: names of weights with which something else is wrong.
        of_others: what, as it stands behind the names.
        hint: what to do.

    Raises:
        CheckpointError: that names some of them.
    """
    facts = [f"it lacks {_some_of(lost)}"] if lost else []
    facts += [f"it has {_some_of(others)}{of_others}"] if others else []
    if facts:
        raise CheckpointError(f"the weights in {str(source)!r} do not fit its config.json: {'; '.join(facts)}. {hint}")


def _some_of(names: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@contextmanager
def quiet_loading() -> Iterator[None]:
    """One thread at a time, and no progress bars of transformers'; models here load in a second or two.

    While transformers loads, it replaces functions of its classes for the whole process and puts back what it found: of
    two threads that load at once the later one puts back the replacement, and embeddings are no longer tied to heads.
    """
    with _loading:
        shown = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                hf_logging.enable_progress_bar()


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:n`` → a device that exists.

    Raises:
        ValueError: another word, or a CUDA device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:n, got {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:n, got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but {torch.cuda.device_count()} CUDA device(s) are visible")
    return chosen


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` → bfloat16 where the device computes in it natively, else float32.

    Raises:
        ValueError: a dtype that is not ``auto``, ``bfloat16`` or ``float32``.
    """
    if dtype == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be auto, bfloat16 or float32, got {dtype!r}")
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it; GPUs before Ampere only emulate it."""
    if device.type != "cuda":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # torch answers for the current GPU
    other = device.index is not None and torch.cuda.device_count() > 1
    with torch.cuda.device(device) if other else nullcontext():
        return torch.cuda.is_bf16_supported(including_emulation=False)
