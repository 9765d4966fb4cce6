"""Where backbones come from: a Hugging Face folder, a hub id or a GGUF file, of the families the decoder implements."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from msa.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from msa.model.bundle import quiet_loading, refuse_misfits
from msa.model.configuration_msa import BACKBONES, MSAConfig

log = logging.getLogger(__name__)

_SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "no_rope_layers",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


@dataclass
class Backbone:
    """A plain causal language model before conversion."""

    config: Any
    weights: dict[str, Tensor]
    tokenizer: Any


def config_from_backbone(config: Any, **memory_fields: Any) -> MSAConfig:
    """The MSA config of a transformers config of a supported family.

    Args:
        config: a Llama, Mistral, Qwen2, Qwen3 or SmolLM3 config.
        memory_fields: fields of :class:`MSAConfig` such as ``router_layers`` or ``chunk_size``.

    Raises:
        UnsupportedModelError: another family, a sliding window, or a RoPE type that depends on the text's length.
    """
    family = config.model_type
    if family == "msa":
        raise UnsupportedModelError("this is an MSA checkpoint already; name it with --model, it needs no conversion")
    if family not in BACKBONES:
        raise UnsupportedModelError(
            f"family {family!r} is not supported; convert a checkpoint of one of: {', '.join(BACKBONES)}"
        )
    shape = {name: getattr(config, name) for name in _SHAPE_FIELDS if getattr(config, name, None) is not None}
    # Qwen2 has q/k/v biases without a field that says so
    bias = True if family == "qwen2" else bool(getattr(config, "attention_bias", False))
    window = getattr(config, "sliding_window", None)
    if family in ("qwen2", "qwen3", "smollm3") and not getattr(config, "use_sliding_window", False):
        window = None
    return MSAConfig(
        backbone=family,
        head_dim=getattr(config, "head_dim", None),
        attention_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        sliding_window=window,
        **shape,
        **memory_fields,
    )


def load_backbone(source: str | Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a backbone and its tokenizer.

    Args:
        source: a Hugging Face folder, a ``.gguf`` file or a hub id.
        dtype: dtype of the weights returned.

    Raises:
        ModelNotFoundError: nothing there, or the hub cannot be reached.
        UnsupportedModelError: a family that is not implemented, or quantised weights (before any weight is read).
        CheckpointError: damaged weights, or some are missing.
    """
    where, options = _locate(source)
    try:
        if not options:
            config = AutoConfig.from_pretrained(where)
            config_from_backbone(config)
            _check_not_quantised(config)
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            if options:
                # packed GGUF weights are slower than the plain ones: unpack once
                options["quantization_config"] = GgufConfig(dequantize=True)
            # what does not fit is named below, which transformers' own error does not
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, report = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **options)
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(f"cannot load a backbone from {str(source)!r}: {first_line}") from error
    except (SafetensorError, struct.error, IndexError, RuntimeError) as error:
        raise CheckpointError(f"cannot read the weights in {str(source)!r}: {error}") from error
    except ValueError as error:
        raise UnsupportedModelError(f"cannot read {str(source)!r} as a causal language model: {error}") from error
    config_from_backbone(model.config)
    _check_weights(source, report)
    return Backbone(config=model.config, weights=model.state_dict(), tokenizer=tokenizer)


def _check_not_quantised(config: Any) -> None:
    """Refuse weights of which only another library knows what they are.

    Raises:
        UnsupportedModelError: they are quantised.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
        raise UnsupportedModelError(
            f"its weights are quantised ({method or 'see quantization_config in its config.json'}), which is supported "
            "in GGUF files only; convert the model that was quantised, or a GGUF file of it"
        )


def _check_weights(source: str | Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers makes up where it finds none; tied heads are none of them.

    Raises:
        CheckpointError: that names some of them.
    """
    lost = sorted(report["missing_keys"])
    misfits = sorted(str(key[0]) for key in report["mismatched_keys"])
    refuse_misfits(source, lost, misfits, " in another shape", "Fetch or save it again")


def _locate(source: str | Path) -> tuple[str, dict[str, Any]]:
    """What to hand to ``from_pretrained``: a folder or hub id, and for a GGUF file its folder and name."""
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"no such GGUF file: {path}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{path} has no config.json; expected a Hugging Face model folder")
        return str(path), {}
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise ModelNotFoundError(f"{source} is neither a model folder, a .gguf file nor a hub id like 'owner/name'")
    return str(source), {}
