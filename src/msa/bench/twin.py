"""transformers' own model with a model's backbone weights: the peer of encoding and answering."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from msa.model.bundle import MSAModel

_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
)
_NO_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # a family's own may lie outside the vocabulary


def transformers_twin(model: MSAModel) -> Any | None:
    """transformers' causal model of the same network, weights, dtype and device; None where it has none.

    Families differ in which projections have biases and in whether queries and keys are normed, and so do checkpoints;
    what would not fit is not compared with.
    """
    config = model.lm.config
    settings: dict[str, Any] = {name: getattr(config, name) for name in _SETTINGS}
    family, rotated = config.backbone, config.no_rope_layers or [1] * config.num_hidden_layers
    if not all(rotated):
        family = "smollm3"  # else a llama; the only one of these families with layers that do not rotate
    if family == "smollm3":
        settings |= {"no_rope_layers": rotated, **dict.fromkeys(_NO_TOKENS)}
    twin = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=model.lm.dtype)
    ours = {
        name: tensor for name, tensor in model.lm.state_dict().items() if "rout" not in name and name != "temperature"
    }
    missing, unexpected = twin.load_state_dict(ours, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or (missing and not config.tie_word_embeddings):
        return None
    twin.tie_weights()
    return twin.to(model.device).eval()
