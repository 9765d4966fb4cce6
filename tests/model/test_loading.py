"""What is refused as a checkpoint, and which tensors it may lack or have too many."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, tiny_lm, tiny_model, tiny_tokenizer
from transformers import GPT2Config, Qwen3Config, Qwen3ForCausalLM

import msa
from msa.cli.main import main
from msa.errors import CheckpointError, UnsupportedModelError
from msa.model.bundle import load_checkpoint

PUBLISHED = Path(__file__).parent.parent / "data" / "parity"
ROUTER = "model.layers.3.self_attn.router_q_proj.0.weight"


def load(folder):
    return load_checkpoint(folder, device="cpu", dtype="float32")


def changed(folder, settings=None, without=(), extra=None):
    """A checkpoint in ``folder`` with other settings and tensors."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **(settings or {})}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in without)}
    assert len(kept) < len(tensors) or not without
    save_file({**kept, **(extra or {})}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def saved(tmp_path):
    """A checkpoint with a routing bias that tests may change."""
    tiny_model(routing_bias=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A plain language model whose tokenizer has all that the published transcript asks for."""
    folder = tmp_path_factory.mktemp("backbone")
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=8, **shape)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "open_it",
    [load, msa.load, msa.MSAConfig.from_pretrained, msa.MSAForCausalLM.from_pretrained],
    ids=["load_checkpoint", "load", "config", "network"],
)
def test_a_backbone_is_to_be_converted_first(backbone, open_it):
    """Its routers would be random, others at every start: a memory made with them could never be opened again."""
    with pytest.raises(
        UnsupportedModelError, match="plain qwen3 checkpoint, without routers.*msa convert .* DEST"
    ) as caught:
        open_it(backbone)
    assert f"msa convert {backbone} DEST" in str(caught.value)


def test_a_command_says_so_in_one_line(backbone, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("A text.")
    assert main(["add", str(tmp_path / "memory"), str(tmp_path / "a.txt"), "--model", str(backbone)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"convert it first: msa convert {backbone} DEST" in said[0]
    assert not (tmp_path / "memory").exists()


def test_a_gguf_file_is_to_be_converted_first(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match=r"convert it first: msa convert .*model\.gguf DEST"):
        msa.load(tmp_path / "model.gguf")


def test_a_family_that_cannot_be_converted_is_not_told_to_be(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="of the family 'gpt2', expected 'msa'.* llama, mistral, qwen2"):
        load(tmp_path)


def test_a_converted_backbone_loads(backbone, tmp_path):
    fingerprints = {load(msa.convert(backbone, tmp_path / name, init="tied")).fingerprint for name in "ab"}
    assert len(fingerprints) == 1


def test_a_backbone_that_only_calls_itself_msa_has_no_routers(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "renamed")
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\..*router_k_proj.*routers are made by .*msa convert"):
        load(changed(folder, {"model_type": "msa"}))


@pytest.mark.parametrize(
    ("without", "named"),
    [
        ((ROUTER,), ROUTER),
        (("embed_tokens",), "model.embed_tokens.weight"),
        (("lm_head",), "lm_head.weight"),  # its embeddings are not tied
        (("layers.0.mlp.up_proj",), "model.layers.0.mlp.up_proj.weight"),
        (("model.layers.1.",), "model.layers.1.input_layernorm.weight.* and 8 more"),
    ],
    ids=str,
)
def test_missing_weights_are_named(saved, without, named):
    with pytest.raises(CheckpointError, match=f"do not fit its config.json: it lacks {named}"):
        load(changed(saved, without=without))


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.4.mlp.up_proj.weight", "score.weight"]
)
def test_weights_without_a_place_are_named(saved, name):
    with pytest.raises(CheckpointError, match=f"it has {name}, for which the model has no place"):
        load(changed(saved, extra={name: torch.zeros(3)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"without": ("temperature",)},
        {"without": ("routing_alpha",)},
        {"settings": {"routing_bias": False}},
        {"settings": {"router_layers": [3]}},
        {"settings": {"decouple_router": False}},
        {"extra": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}},
    ],
    ids=str,
)
def test_what_may_be_missing_or_left_out(saved, changes):
    """The rest begins at numbers that are known, or is not used: it is the same model every time."""
    changed(saved, **changes)
    assert load(saved).fingerprint == load(saved).fingerprint


@pytest.mark.parametrize("written", [False, True])
def test_tied_embeddings_need_no_head(tmp_path, written):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    if written:
        changed(tmp_path, extra={"lm_head.weight": tiny_lm(tie_word_embeddings=True).lm_head.weight.detach().clone()})
    loaded = load(tmp_path).lm
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aux_loss_method": "INFONCE"},
        {"aux_loss_method": "BCE"},
        {"decouple_router": False},
        {"router_layer_idx": "3"},
    ],
    ids=str,
)
def test_published_checkpoints_load_as_they_are(tmp_path, settings):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(PUBLISHED / name, tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    published = json.loads((PUBLISHED / "config.json").read_text())["msa_config"]
    model = load(changed(tmp_path, {"msa_config": {**published, **settings}}))
    model.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint == model.fingerprint


def test_a_config_of_impossible_values_is_a_checkpoint_error(saved):
    with pytest.raises(CheckpointError, match=r"cannot use the config\.json .*chunk_size must be a whole number"):
        load(changed(saved, {"chunk_size": 0}))
