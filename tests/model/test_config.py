"""What a configuration refuses: values that no field can have, and keys that are nearly a field's name."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

from msa.conversion import config_from_backbone
from msa.model import MSAConfig

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
}
WRONG = [
    ("vocab_size", 0),
    ("hidden_size", -1),
    ("intermediate_size", 2.5),
    ("num_hidden_layers", 0),
    ("num_attention_heads", "4"),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", 3),
    ("head_dim", 0),
    ("head_dim", -2),
    ("head_dim", 15),
    ("max_position_embeddings", 0),
    ("chunk_size", "64"),
    ("chunk_size", True),
    ("chunk_size", None),
    ("top_k_docs", 1.0),
    ("hidden_act", "nope"),
    ("hidden_act", None),
    ("routing_loss", "FOO"),
    ("routing_loss", "infonce"),
    ("routing_temperature", 0),
    ("routing_temperature", -1),
    ("routing_temperature", float("nan")),
    ("routing_temperature", float("inf")),
    ("routing_temperature", "hot"),
    ("routing_bias_temperature", 0),
    ("rms_norm_eps", -1e-6),
    ("initializer_range", "small"),
    ("lm_loss_weight", -0.5),
    ("routing_loss_weight", float("inf")),
    ("answer_loss_weight", None),
    ("decouple_router", "no"),
    ("routing_bias", 1),
    ("similarity", "cos"),
]


def refused(field):
    return pytest.raises(ValueError, match=rf"{field} must (be|divide)")


@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_impossible_values_are_refused_by_name(field, value, tmp_path):
    key = {"similarity": "routing_similarity"}.get(field, field)
    with refused(field):
        MSAConfig(**{**SMALL, key: value})
    MSAConfig(**SMALL).save_pretrained(tmp_path)
    with refused(field):
        MSAConfig.from_pretrained(tmp_path, **{key: value})


def test_a_head_size_that_follows_from_others_is_checked_too():
    with pytest.raises(ValueError, match=r"head_dim must be even.*got 15 \(where it is not given, it is hidden_size"):
        MSAConfig(hidden_size=60, num_attention_heads=4)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("chunk_sise", "chunk_size"),
        ("chunksize", "chunk_size"),
        ("top_k_doc", "top_k_docs"),
        ("router_layer", "router_layers"),
        ("routing_temprature", "routing_temperature"),
        ("route_whole_protocol", None),
        ("num_key_values_heads", "num_key_value_heads"),
        ("max_position_embedding", "max_position_embeddings"),
        ("rms_norm_epsilon", "rms_norm_eps"),
    ],
)
def test_misspelt_fields_are_refused(key, meant, tmp_path):
    MSAConfig(**SMALL).save_pretrained(tmp_path)
    for make in (lambda: MSAConfig(**SMALL, **{key: 32}), lambda: MSAConfig.from_pretrained(tmp_path, **{key: 32})):
        if meant is None:
            make()
            continue
        with pytest.raises(ValueError, match=f"'{key}' is no field of an MSA config; is '{meant}' meant"):
            make()


def test_keys_of_other_releases_of_transformers_are_no_mistakes(tmp_path):
    others = {
        "_attn_implementation_autoset": True,
        "attn_implementation": "sdpa",
        "auto_map": {"AutoConfig": "configuration_msa.MSAConfig"},
        "bad_words_ids": None,
        "chunk_size_feed_forward": 0,
        "cls_token_id": 1,
        "decoder_start_token_id": 1,
        "do_sample": True,
        "layer_types": ["full_attention"] * 4,
        "max_window_layers": 28,
        "mask_token_id": 3,
        "model_type": "msa",
        "num_labels": 2,
        "output_attentions": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "rope_theta": 5e6,
        "sep_token_id": 1,
        "sliding_window": None,
        "temperature": 0.6,
        "tie_encoder_decoder": False,
        "top_k": 20,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3",
        "unk_token_id": 0,
        "use_bfloat16": False,
        "use_sliding_window": False,
    }
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "chunk_size": 32, **others}))
    for kind in (MSAConfig, AutoConfig):
        config = kind.from_pretrained(tmp_path)
        assert (config.chunk_size, config.rope_parameters["rope_theta"]) == (32, 5e6)


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config])
def test_no_key_of_a_known_family_is_taken_for_a_mistake(family):
    settings = family(**SMALL, num_key_value_heads=2, pad_token_id=0).to_dict()
    assert MSAConfig(**{**settings, "sliding_window": None}).hidden_size == 64


def test_overrides_are_understood_as_in_the_file(tmp_path):
    MSAConfig(**SMALL).save_pretrained(tmp_path)
    config, unused = MSAConfig.from_pretrained(
        tmp_path, router_layers="1,3", chunk_size=8, return_unused_kwargs=True, something=1
    )
    assert (config.router_layers, config.chunk_size, unused) == ([1, 3], 8, {"something": 1})


def test_a_method_without_a_loss_of_ours_loads_and_is_kept(tmp_path):
    """Published checkpoints may be of the method BCE; what routes is well defined."""
    config = MSAConfig(**SMALL, msa_config={"aux_loss_method": "BCE", "router_layer_idx": "2,3"})
    config.save_pretrained(tmp_path)
    assert MSAConfig.from_pretrained(tmp_path).routing_loss == config.routing_loss == "BCE"
    assert config.routing_similarity == "dot"


def test_a_backbone_with_grouped_heads_is_still_understood():
    config = config_from_backbone(Qwen3Config(**SMALL, num_key_value_heads=2), chunk_size=8)
    assert (config.num_key_value_heads, config.head_dim, config.chunk_size) == (2, 16, 8)
