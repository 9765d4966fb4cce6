import sys

import pytest
import torch
from tiny import tiny_model

from msa.bench import bench_encoding
from msa.bench.encoding import Works, made_up_documents, ratios
from msa.bench.twin import transformers_twin
from msa.encoding import encode_in_batches


@pytest.mark.parametrize("backbone", ["llama", "mistral", "qwen2", "qwen3"])
@torch.inference_mode()
def test_the_twin_is_the_same_network(backbone):
    model = tiny_model(backbone, attention_bias=backbone == "qwen2")
    twin = transformers_twin(model)
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(twin(ids).logits, model.lm(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "rotated"), [("smollm3", [1, 0, 1, 1]), ("smollm3", None), ("llama", [1, 0, 1, 1])]
)
@torch.inference_mode()
def test_the_twin_rotates_the_same_layers(backbone, rotated):
    model = tiny_model(backbone, no_rope_layers=rotated, attention_bias=False)
    assert model.lm.config.num_hidden_layers == 4
    twin = transformers_twin(model)
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(twin(ids).logits, model.lm(ids).logits, atol=1e-4)


def test_no_twin_where_no_family_has_the_network():
    assert transformers_twin(tiny_model("qwen3", no_rope_layers=[1, 0, 1, 1], attention_bias=False)) is None


def test_no_twin_where_biases_differ():
    model = tiny_model("llama", attention_bias=True)
    assert transformers_twin(model) is None
    works = Works(model, made_up_documents(4, "s"))
    assert "transformers_forward" not in works.by_name()
    with pytest.raises(ValueError, match="no model with the weights of 'tiny'"):
        works.transformers_forward()


def test_documents_need_no_package_of_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    documents = made_up_documents(30, "s")
    assert len({document["id"] for document in documents}) == 30
    assert documents == made_up_documents(30, "s")
    assert documents != made_up_documents(30, "t")
    assert "wandering" in " ".join(d["text"] for d in made_up_documents(30, "s", (["wandering"], [*"abcdefgh"] * 40)))


@torch.inference_mode()
def test_works_see_every_document_once(monkeypatch):
    model = tiny_model()
    works = Works(model, made_up_documents(12, "s"), batch_tokens=1500)
    assert sorted(i for group in works.bucketed for i in group) == list(range(12))
    assert [i for group in works.in_order for i in group] == list(range(12))
    read = []
    monkeypatch.setattr(model.lm, "encode_documents", lambda ids, lengths: read.append((ids.shape, int(lengths.sum()))))
    works.naive()
    assert sum(tokens for _, tokens in read) == sum(works.lengths)
    assert all(shape.numel() <= 1500 or shape[0] == 1 for shape, _ in read)


@torch.inference_mode()
def test_add_raises_when_documents_are_missing(monkeypatch):
    works = Works(tiny_model(), made_up_documents(3, "s"))
    works.add()
    monkeypatch.setattr("msa.memory.Memory.add", lambda *_: None)
    with pytest.raises(RuntimeError, match="0 of 3 documents"):
        works.add()


@torch.inference_mode()
def test_documents_need_the_layers_below_the_last_router_layer(monkeypatch):
    model = tiny_model(router_layers=[1, 2])
    works = Works(model, made_up_documents(3, "s"))
    ran = []
    for index in range(4):
        model.lm.model.layer(index).mlp.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    works.needed_layers()
    assert set(ran) == {0, 1}
    works.bare_forward()
    assert set(ran) == {0, 1, 2, 3}


def test_ratios_are_medians_over_rounds():
    found = ratios({"bare_forward": [2.0, 4.0, 9.0], "encoder": [1.0, 4.0, 3.0], "add": [4.0] * 3, "naive": [8.0] * 3})
    assert found == {
        "encoder / bare_forward": 2.0,
        "add / bare_forward": 1.0,
        "encoder / naive": 2.6666666666666665,
        "add / naive": 2.0,
    }


def test_both_figures_are_over_the_same_documents(monkeypatch):
    monkeypatch.setattr("msa.bench.encoding._WARM_UP", 8)
    model = tiny_model()
    add, encoder = bench_encoding(model, 0.001, 1)
    assert set(add.baselines) == {"bare forward", "transformers", "document order"}
    assert set(add.floors) == {"needed layers", "peak"}
    assert add.details == encoder.details
    numbered = enumerate(made_up_documents(1000, "encoding")[: add.details["documents"]], start=1)
    ids = [model.protocol.document_ids(number, document["text"]) for number, document in numbered]
    assert add.amount == sum(map(len, ids))
    assert len(encode_in_batches(model.lm, ids[:2]).chunk_offsets) == 3
