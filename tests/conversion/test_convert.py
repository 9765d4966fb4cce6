"""From a plain backbone to a checkpoint with a memory: weights, fresh routers, and every way it can go wrong."""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SPECIAL, VOCABULARY, tiny_tokenizer
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import msa
from msa.conversion import convert, load_backbone
from msa.conversion.convert import _exchange
from msa.conversion.routers import collect_moments
from msa.encoding import encode_in_batches
from msa.errors import CheckpointError, DocumentError, ModelNotFoundError, UnsupportedModelError
from msa.model.bundle import MSAModel, load_checkpoint
from msa.model.configuration_msa import MSAConfig

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
}
WORDS = ["moon", "river", "bridge", "salt", "ember", "violin", "wheat", "glass", "fox", "anchor", "cedar", "sugar"]
# every document speaks of three things of its own
CORPUS = [
    f"The {a} and the {b} met a {c}. Then the {b} told the {c} about the {a}, {i * 37 % 100} times over."
    for i, (a, b, c) in enumerate(itertools.islice(itertools.combinations(WORDS, 3), 0, 200, 5))
]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder with a backbone of each family."""
    root = tmp_path_factory.mktemp("backbones")
    for name, (model_class, config) in FAMILIES.items():
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms are initialised to constants that hide mistakes
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        model.tie_weights()
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    folder.mkdir()
    for i, text in enumerate(CORPUS):
        (folder / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def converted(backbones, corpus, tmp_path_factory):
    """Converted models by family and kind of routers."""
    root = tmp_path_factory.mktemp("converted")
    models = {}
    for family in FAMILIES:
        for init in ("tied", "whitened"):
            dest = root / f"{family}-{init}"
            options = {"calibrate": [corpus]} if init == "whitened" else {}
            result = convert(
                backbones / family, dest, init=init, chunk_size=16, dtype=torch.float32, device="cpu", **options
            )
            assert result == dest
            models[family, init] = load_checkpoint(dest, device="cpu", dtype="float32")
    return models


KINDS = [(family, init) for family in FAMILIES for init in ("tied", "whitened")]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@torch.no_grad()
def test_without_a_memory_logits_are_the_backbones(converted, backbones, kind):
    model_class, _ = FAMILIES[kind[0]]
    theirs = model_class.from_pretrained(backbones / kind[0], dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(converted[kind].lm(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written(converted, family):
    model = converted[family, "whitened"]
    assert isinstance(model, MSAModel)
    config = model.lm.config
    assert config.backbone == family
    assert config.router_layers == [2, 3]
    assert (config.chunk_size, config.top_k_docs) == (16, 16)
    assert model.protocol.strings.retrieval == "routed"
    # transformers may add an end-of-text token to a tokenizer it loads for a family
    assert model.tokenizer.get_vocab().items() >= tiny_tokenizer().get_vocab().items()
    assert len(set(SPECIAL) & set(model.tokenizer.get_vocab())) == len(SPECIAL)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_query_routers_repeat_over_groups(converted, kind):
    config = converted[kind].lm.config
    for layer in config.router_layers:
        attention = converted[kind].lm.model.layer(layer).self_attn
        heads = attention.router_q_proj[0].weight.unflatten(0, (config.num_attention_heads, config.head_dim))
        assert torch.equal(heads[0], heads[1])
        assert torch.equal(heads[2], heads[3])
        assert not torch.allclose(heads[0], heads[2], atol=0.01)
        keys = attention.router_k_proj[0].weight.unflatten(0, (config.num_key_value_heads, config.head_dim))
        if kind[1] == "tied":
            assert torch.equal(heads[::2], keys)
            flat = keys.flatten(0, 1).double()
            torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)).double(), atol=1e-5, rtol=0)
        else:
            assert not torch.allclose(heads[::2], keys, atol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_whitened_routers_whiten_the_calibration_text(converted, family):
    model = converted[family, "whitened"]
    tied = converted[family, "tied"]
    questions = [text.split(". ")[0] for text in CORPUS]
    moments = collect_moments(model.lm, model.protocol, CORPUS, questions)
    assert sorted(moments) == [2, 3]
    for layer, of_layer in moments.items():
        attention = model.lm.model.layer(layer).self_attn
        queries = attention.router_q_proj[0].weight.unflatten(0, (2, 2, 16))[:, 0].flatten(0, 1)  # one head per group
        keys = attention.router_k_proj[0].weight
        basis = tied.lm.model.layer(layer).self_attn.router_k_proj[0].weight
        for states, count, weight in (
            (of_layer.chunks, of_layer.num_chunks, keys),
            (of_layer.tokens, of_layer.num_tokens, queries),
        ):
            moment = states / count
            values, vectors = torch.linalg.eigh(moment)
            nearly_one = values / (values + 0.01 * values.mean())  # the identity, up to the ridge
            expected = basis.double() @ vectors @ torch.diag(nearly_one) @ vectors.T @ basis.double().T
            found = weight.double() @ moment @ weight.double().T
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0)  # calibration may run in bfloat16
            whitened = torch.linalg.eigvalsh(found)
            plain = torch.linalg.eigvalsh(basis.double() @ moment @ basis.double().T)
            assert 0.5 < float(whitened.mean()) < 1.1
            assert float(whitened[-1] / whitened[0]) < 0.25 * float(plain[-1] / plain[0])


def rank_first(model):
    """Share of documents that their own opening routes to, by the mean over layers, first."""
    ids = [model.protocol.document_ids(number, text) for number, text in enumerate(CORPUS, start=1)]
    memory = encode_in_batches(model.lm, ids)
    found = 0
    with torch.inference_mode():
        for index, text in enumerate(CORPUS):
            turn = model.protocol.question_turn(text.split(". ")[0])
            routing = model.lm.route(
                torch.tensor([turn.ids]), memory, routing_mask=torch.tensor([turn.marked]), prefix=model.prefix
            )
            scores = torch.stack([layer.doc_scores[0] for layer in routing.values()]).mean(0)
            found += int(scores.argmax()) == index
    return found / len(CORPUS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_documents_own_opening_finds_it(converted, family):
    assert rank_first(converted[family, "whitened"]) >= 0.25  # chance: 0.025


def test_converting_again_gives_the_same_routers(backbones, corpus, converted, tmp_path):
    convert(backbones / "llama", tmp_path / "again", calibrate=[corpus], chunk_size=16, dtype=torch.float32)
    again = load_checkpoint(tmp_path / "again", device="cpu", dtype="float32")
    assert again.fingerprint == converted["llama", "whitened"].fingerprint
    assert again.fingerprint != converted["llama", "tied"].fingerprint


def test_options_and_progress(backbones, corpus, tmp_path):
    seen = []
    convert(
        backbones / "qwen2",
        tmp_path / "model",
        calibrate=[corpus / "00.txt", corpus / "01.txt"],
        router_layers="1,3",
        chunk_size=8,
        top_k_docs=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["router_layers"] == [1, 3]
    assert (config["chunk_size"], config["top_k_docs"]) == (8, 5)
    assert config["dtype"] == "bfloat16"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    total = seen[-1][1]
    assert {t for _, t in seen} == {total}
    assert seen[-1][0] == total


def test_a_family_that_is_not_implemented_is_named(tmp_path):
    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt")
    with pytest.raises(UnsupportedModelError, match="'gpt2'.*llama, mistral, qwen2, qwen3, smollm3"):
        load_backbone(tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "not-a-family"}')
    with pytest.raises(UnsupportedModelError, match="not-a-family"):
        load_backbone(tmp_path / "gpt")


def test_a_missing_backbone_is_named(tmp_path):
    for source in (tmp_path / "missing", "./missing", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match="neither a model folder, a .gguf file nor a hub id"):
            load_backbone(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="no config.json"):
        load_backbone(tmp_path / "empty")
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="neither a model folder"):
        load_backbone(tmp_path / "file.bin")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused(backbones, tmp_path, method):
    shutil.copytree(backbones / "llama", tmp_path / "llama")
    file = tmp_path / "llama" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": method}}))
    with pytest.raises(UnsupportedModelError, match=rf"quantised \({method}\).*GGUF"):
        load_backbone(tmp_path / "llama")


def test_weights_that_are_missing_are_named(backbones, tmp_path):
    without = {"model.layers.2.mlp.up_proj.weight", "lm_head.weight"}
    shutil.copytree(backbones / "qwen2", tmp_path / "qwen2")
    file = tmp_path / "qwen2" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name not in without}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight, model\.layers\.2\.mlp\.up_proj\.weight"):
        load_backbone(tmp_path / "qwen2")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it has model\.layers\.2\.mlp\.up_proj\.weight in another shape"):
        load_backbone(tmp_path / "qwen2")


def test_a_gguf_file_may_be_named_in_capitals(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such GGUF file: .*MODEL.GGUF"):
        load_backbone(tmp_path / "MODEL.GGUF")
    (tmp_path / "MODEL.GGUF").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match="convert it first"):
        msa.load(tmp_path / "MODEL.GGUF")


def test_a_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such GGUF file: .*model.gguf"):
        load_backbone(tmp_path / "model.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelNotFoundError, match="folder.gguf"):
        load_backbone(tmp_path / "folder.gguf")


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"not a GGUF file at all" * 9, b"GGUF\x03\0\0\0" + b"\xff" * 40],
)
def test_a_damaged_gguf_file_is_named(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises((CheckpointError, ModelNotFoundError, UnsupportedModelError), match="model.gguf"):
        load_backbone(tmp_path / "model.gguf")


def test_damaged_weights_are_an_error_of_ours(backbones, tmp_path):
    for file in (backbones / "llama").iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:2000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(msa.MSAError):
        load_backbone(tmp_path)


def test_calibration_that_cannot_be_read(backbones, tmp_path):
    dest = tmp_path / "dest"
    with pytest.raises(DocumentError, match="missing.txt"):
        convert(backbones / "llama", dest, calibrate=[tmp_path / "missing.txt"])
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(DocumentError, match="binary.txt"):
        convert(backbones / "llama", dest, calibrate=[tmp_path / "binary.txt"])
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n")
    with pytest.raises(DocumentError, match="holds no text"):
        convert(backbones / "llama", dest, calibrate=[tmp_path / "blank"])
    assert not dest.exists()


def test_an_unknown_init_is_refused(backbones, tmp_path):
    with pytest.raises(ValueError, match="whitened, tied"):
        convert(backbones / "llama", tmp_path / "dest", init="random")


def test_an_existing_folder_is_not_overwritten_unasked(backbones, tmp_path):
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="holds no model"):
        convert(backbones / "llama", dest, init="tied")
    assert [file.name for file in dest.iterdir()] == ["mine.txt"]
    (dest / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(backbones / "llama", dest, init="tied")
    convert(backbones / "llama", dest, init="tied", overwrite=True)
    assert (dest / "model.safetensors").is_file()
    assert not (dest / "mine.txt").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["dest"]


@pytest.fixture
def no_backbone(monkeypatch):
    module = sys.modules[_exchange.__module__]  # the package has a function of its name
    monkeypatch.setattr(module, "load_backbone", lambda source: pytest.fail("work has begun"))


def test_what_is_no_model_is_never_overwritten(no_backbone, tmp_path, monkeypatch):
    (tmp_path / "precious.txt").write_text("keep")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for dest in (".", tmp_path, "folder/.."):
        with pytest.raises(FileExistsError, match="holds no model"):
            convert("source", dest, init="tied", overwrite=True)
    for dest in ("precious.txt", "precious.txt/below"):
        with pytest.raises(NotADirectoryError, match=r"precious\.txt is a file"):
            convert("source", dest, init="tied", overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "precious.txt"]


def test_a_backbone_is_not_overwritten_by_what_is_made_of_it(no_backbone, backbones):
    with pytest.raises(ValueError, match="lies in"):
        convert(backbones / "llama", backbones / "llama", init="tied", overwrite=True)


def test_a_place_that_cannot_be_written_is_found_before_work_begins(no_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    for dest in (tmp_path / "new" / "dest", tmp_path):
        with pytest.raises(PermissionError, match="cannot be written"):
            convert("source", dest, init="tied")


def test_the_current_folder_may_be_the_destination(backbones, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    dest.mkdir()
    monkeypatch.chdir(dest)
    convert(backbones / "llama", ".", init="tied", router_layers="all")
    assert MSAConfig.from_pretrained(".").router_layers == MSAConfig.from_pretrained(dest).router_layers
    convert(backbones / "llama", ".", init="tied", router_layers=[1], overwrite=True)
    assert MSAConfig.from_pretrained(".").router_layers == MSAConfig.from_pretrained(dest).router_layers == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["dest"]


def test_an_exchange_that_fails_is_undone(tmp_path, monkeypatch):
    dest, new, old = folders = [tmp_path / name for name in ("dest", "new", "old")]
    for folder in folders:
        folder.mkdir()
    for folder in (dest, new):
        for name in ("config.json", "weights", "more"):
            (folder / name).write_text(folder.name)
    rename, moves = Path.rename, []

    def failing_at_the_sixth(self, target):
        moves.append(self)
        if len(moves) == 6:
            raise OSError("no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_at_the_sixth)
    with pytest.raises(OSError, match="no more"):
        _exchange(dest, new, old)
    # what makes a folder a model goes first and comes last
    assert (moves[0], moves[5]) == (dest / "config.json", new / "config.json")
    assert {file.name: file.read_text() for file in dest.iterdir()} == {
        "config.json": "dest",
        "weights": "dest",
        "more": "dest",
    }
    _exchange(dest, new, old)
    assert [file.read_text() for file in dest.iterdir()] == ["new"] * 3
    assert [file.read_text() for file in old.iterdir()] == ["dest"] * 3


@pytest.mark.parametrize("option", ["chunk_size", "top_k_docs"])
def test_sizes_beyond_the_context_are_refused(backbones, tmp_path, option):
    with pytest.raises(ValueError, match=rf"{option} must lie below .* got 100000000"):
        convert(backbones / "llama", tmp_path / "dest", init="tied", **{option: 100_000_000})
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_a_conversion_that_fails_leaves_nothing_behind(backbones, tmp_path, monkeypatch, existing):
    dest = tmp_path / "new" / "dest"
    if existing:
        dest.mkdir(parents=True)
        (dest / "config.json").write_text("old")

    def fail(self, folder):
        folder.joinpath("config.json").write_text("{}")  # half written
        raise OSError("disk full")

    monkeypatch.setattr(MSAModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(backbones / "llama", dest, init="tied", overwrite=True)
    assert [file.name for file in dest.parent.iterdir()] == (["dest"] if existing else [])
    if existing:
        assert [file.read_text() for file in dest.iterdir()] == ["old"]
