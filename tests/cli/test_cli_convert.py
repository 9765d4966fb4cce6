import json

import pytest
from tiny import VOCABULARY, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import msa as package


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_convert_with_the_user_s_own_text(msa, backbone, tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in "abc":
        (tmp_path / "corpus" / f"{name}.txt").write_text(f"A text about {name}. It goes on.\n" * 5)
    dest = tmp_path / "converted"
    options = ["--calibrate", tmp_path / "corpus", "--router-layers", "1,3", "--chunk-size", "8", "--top-k-docs", "2"]
    result = msa("convert", backbone, dest, *options, "--dtype", "float32", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"wrote {dest}; use it with --model {dest}\n"
    config = package.load(dest, dtype="float32").lm.config
    assert (config.router_layers, config.chunk_size, config.top_k_docs) == ([1, 3], 8, 2)


def test_a_destination_that_exists(msa, backbone, tmp_path):
    assert msa("convert", backbone, tmp_path / "dest", "--init", "tied", "--router-layers", "2-3").code == 0
    result = msa("convert", backbone, tmp_path / "dest", "--init", "tied")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "--overwrite" in result.err
    result = msa("convert", backbone, tmp_path / "dest", "--init", "tied", "--router-layers", "all", "--overwrite")
    assert result.code == 0
    assert json.loads((tmp_path / "dest" / "config.json").read_text())["router_layers"] == [0, 1, 2, 3]


def test_a_family_that_is_not_supported(msa, tmp_path):
    source = tmp_path / "gpt2"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    result = msa("convert", source, tmp_path / "dest", "--init", "tied")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "'gpt2' is not supported" in result.err
    assert not (tmp_path / "dest").exists()


def test_a_source_that_is_not_there(msa, tmp_path):
    result = msa("convert", tmp_path / "gone", tmp_path / "dest", "--init", "tied")
    assert (result.code, len(result.err.splitlines())) == (1, 1)


def test_layers_the_model_does_not_have(msa, backbone, tmp_path):
    result = msa("convert", backbone, tmp_path / "dest", "--init", "tied", "--router-layers", "2-9")
    assert result.code == 1
    assert "0..3" in result.err


@pytest.mark.parametrize("layers", ["x", "5-2", "", "1,,2", "-1"])
def test_layers_that_cannot_be_read(msa, tmp_path, layers):
    result = msa("convert", tmp_path, tmp_path / "dest", f"--router-layers={layers}")
    assert result.code == 2
    assert "must be like 15-29, 15,16 or all" in result.err
