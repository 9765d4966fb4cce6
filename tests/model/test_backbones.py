"""Without a memory the decoder equals transformers' own model of each family (random tiny weights, float32)."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from msa.conversion import config_from_backbone
from msa.errors import UnsupportedModelError
from msa.model import MSAConfig, MSAForCausalLM

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "llama-biases": (LlamaForCausalLM, LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "llama-tied": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen2-yarn": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, rope_parameters=YARN)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=20)),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**SHAPE, no_rope_layer_interval=2, pad_token_id=None)),
    "qwen3-tied": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=20, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers(family):
    torch.manual_seed(0)
    model_class, config = FAMILIES[family]
    theirs = model_class(config).eval()
    for parameter in theirs.parameters():  # biases and norms are initialised to constants that hide mistakes
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    theirs.tie_weights()
    ours = MSAForCausalLM(config_from_backbone(config)).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert all("router" in name or name == "temperature" for name in missing)
    assert not unexpected
    ours.tie_weights()
    ids = torch.randint(0, 97, (3, 90))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)

    mask = torch.ones_like(ids)
    mask[0, :7] = 0  # left padding
    mask[1, -9:] = 0  # right padding
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(
        ours(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4
    )


def test_sliding_window_is_refused():
    with pytest.raises(UnsupportedModelError, match="sliding window of 4096 tokens"):
        config_from_backbone(MistralConfig(**SHAPE, sliding_window=4096))
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        config_from_backbone(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=64))


def test_smollm3_layers_without_rope_are_named_one_by_one():
    config = config_from_backbone(SmolLM3Config(**SHAPE, no_rope_layer_interval=3, pad_token_id=None))
    assert config.no_rope_layers == [1, 1, 0]
    with pytest.raises(UnsupportedModelError, match="no_rope_layers needs one number for each of 3 layers, found 2"):
        MSAConfig(num_hidden_layers=3, no_rope_layers=[1, 0])


def test_length_dependent_rope_is_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        config_from_backbone(LlamaConfig(**SHAPE, rope_parameters=rope))


def test_unknown_family_is_refused_by_name():
    from transformers import GPT2Config

    with pytest.raises(UnsupportedModelError, match="gpt2"):
        config_from_backbone(GPT2Config())
