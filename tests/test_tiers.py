"""Where latents live changes neither what is found nor, beyond rounding, how it scores."""

import logging

import pytest
import torch
from tiny import tiny_model

from msa import Memory
from msa.errors import MemoryBudgetError
from msa.ops import RoutingSpec
from msa.routing import BankView, Tiers, bank_view
from msa.routing import tiers as tiers_module
from msa.routing.tiers import ROUTING_KEYS

TEXTS = [
    f"Document {i} is about {word} and about {i * i}." for i, word in enumerate(["rain", "iron", "tea", "law"] * 5)
]


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        for first in range(0, len(TEXTS), 7):  # several segments
            opened.add([{"id": f"d{first + i}", "text": text} for i, text in enumerate(TEXTS[first : first + 7])])
        opened.delete(["d3"])
        yield opened


def routed(view, layer, rows=3):
    generator = torch.Generator().manual_seed(layer)
    heads = 2 * view.spec.num_key_value_heads
    query = torch.randn(rows, 5, heads, view.spec.head_dim, generator=generator)
    return view.route(layer, query, torch.ones(rows, 5, dtype=torch.bool), RoutingSpec(), 6)


@pytest.mark.parametrize("routing_keys", ["exact", "half", "int8", "mapped"])
@pytest.mark.parametrize("content", ["mapped", "ram"])
def test_every_tier_finds_the_same(memory, routing_keys, content):
    reference = BankView(memory.bank)
    view = BankView(memory.bank, tiers=Tiers(routing_keys=routing_keys, content=content))
    rounding = {"exact": 0, "mapped": 0, "half": 2**-8, "int8": 2**-6}[routing_keys]
    for layer in view.spec.layers:
        expected, found = routed(reference, layer), routed(view, layer)
        assert torch.allclose(found.scores, expected.scores, rtol=0, atol=rounding)
        assert torch.equal(found.doc_scores == float("-inf"), expected.doc_scores == float("-inf"))
        if not rounding:
            assert torch.equal(found.doc_indices, expected.doc_indices)
        winners, same = view.fetch(layer, expected.doc_indices), reference.fetch(layer, expected.doc_indices)
        assert torch.equal(winners.keys, same.keys)
        assert torch.equal(winners.values, same.values)


def test_int8_of_a_memory_without_stored_int8(memory, monkeypatch):
    stored = BankView(memory.bank, tiers=Tiers(routing_keys="int8"))
    view = BankView(memory.bank)
    object.__setattr__(memory.bank.spec, "int8", False)
    made = BankView(memory.bank, tiers=Tiers(routing_keys="int8"))
    assert view.numbers.tolist() == made.numbers.tolist()
    for layer, blocks in stored.key_blocks.items():
        for one, other in zip(blocks, made.key_blocks[layer], strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.scale, other.scale)


@pytest.mark.parametrize("tiers", [Tiers(routing_keys=form) for form in ROUTING_KEYS] + [Tiers(key_share=0.5)])
def test_a_model_that_compares_otherwise_than_the_one_that_made_the_memory(memory, tmp_path, tiers):
    """What is stored ready for the other similarity is made anew from the stored keys."""
    dotted = tiny_model(routing_similarity="dot")
    assert dotted.fingerprint == memory.model.fingerprint
    with Memory.open(tmp_path / "dot", dotted) as made:
        made.add([{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)])
        made.delete(["d3"])
        expected = made.search("tea and law", top_k=30)
    with Memory.open(tmp_path / "memory", dotted, read_only=True, tiers=tiers) as opened:
        found = opened.search("tea and law", top_k=30)
        assert {hit.id for hit in found} <= {hit.id for hit in expected}
        assert tiers.key_share < 1 or [hit.id for hit in found] == [hit.id for hit in expected]
        scores = {hit.id: hit.score for hit in expected}
        assert all(hit.score == pytest.approx(scores[hit.id], rel=2**-6) for hit in found)
        assert opened.ask("What is tea?", max_new_tokens=2, retrieval="routed").sources
        # and back, as where several share the model
        dotted.lm.config.routing_similarity = "cosine"
        found, expected = ([hit.id for hit in each.search("tea and law", top_k=3)] for each in (opened, memory))
        assert tiers.key_share < 1 or found == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_page_locked_memory_without_a_gpu_is_refused_at_opening(memory, tmp_path, model):
    tiers = Tiers(content="pinned")
    with pytest.raises(ValueError, match="none is visible. Choose 'ram' or 'mapped'"):
        Memory.open(tmp_path / "new", model, tiers=tiers)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="none is visible"):
        BankView(memory.bank, tiers=tiers)


def test_a_change_loads_only_what_is_new(memory):
    before = BankView(memory.bank)
    memory.add([{"id": "new", "text": "Something new."}])
    after = BankView(memory.bank, previous=before)
    for layer, blocks in before.key_blocks.items():
        assert all(one is other for one, other in zip(blocks, after.key_blocks[layer], strict=False))
        assert len(after.key_blocks[layer]) == len(blocks) + 1
    assert after.numbers.tolist() == [*before.numbers.tolist(), int(after.numbers[-1])]


@pytest.mark.parametrize("routing_keys", ["exact", "half", "int8"])
def test_joined_segments_route_as_they_do_apart(memory, monkeypatch, routing_keys):
    tiers = Tiers(routing_keys=routing_keys)
    apart = BankView(memory.bank, tiers=tiers)
    monkeypatch.setattr(bank_view, "joins_segments", lambda *_: True)  # as on a GPU
    view = BankView(memory.bank, tiers=tiers)
    memory.add([{"id": "new", "text": "Something new."}])
    later, expected = BankView(memory.bank, tiers=tiers, previous=view), BankView(memory.bank, tiers=tiers)
    for layer, blocks in view.key_blocks.items():
        assert len(apart.key_blocks[layer]) > len(blocks) == 1
        assert len(later.key_blocks[layer]) == 2
        assert later.key_blocks[layer][0].keys.data_ptr() == blocks[0].keys.data_ptr()
        for one, other in ((apart, view), (expected, later)):
            for name, tensor in vars(routed(one, layer)).items():
                assert torch.equal(vars(routed(other, layer))[name], tensor), name


def test_answers_from_every_tier(memory, model, tmp_path):
    expected = memory.ask("What is tea?", max_new_tokens=4)
    for routing_keys in ("half", "int8", "mapped"):
        tiers = Tiers(routing_keys=routing_keys)
        with Memory.open(tmp_path / "memory", model, read_only=True, tiers=tiers) as other:
            assert other.ask("What is tea?", max_new_tokens=4).rounds[0].numbers == expected.rounds[0].numbers


def test_a_damaged_segment_is_left_out(memory, caplog):
    file = max((memory.bank.path / "segments").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for place in range(header + 500, len(data), 16):
        data[place] ^= 1
    file.write_bytes(data)
    with Memory.open(memory.bank.path, memory.model, read_only=True) as damaged, caplog.at_level(logging.WARNING):
        hits = damaged.search("tea", top_k=30)
    assert file.name in caplog.text
    assert 0 < len(hits) < len(memory)


def test_too_little_memory_is_said_before_loading(memory, monkeypatch):
    monkeypatch.setattr(tiers_module, "free_host_bytes", lambda: 1000)
    with pytest.raises(MemoryBudgetError) as caught:
        BankView(memory.bank)
    for word in ("exact", "half", "int8", "mapped", "pinned", "free"):
        assert word in str(caught.value)
    BankView(memory.bank, tiers=Tiers(routing_keys="mapped"))
    with pytest.raises(ValueError, match="routing_keys"):
        Tiers(routing_keys="nowhere")


def test_needs_are_those_of_the_tensors(memory):
    stats = memory.stats()
    view = BankView(memory.bank, tiers=Tiers(routing_keys="int8"))
    stored = sum(segment.info.num_chunks for segment in view.state.segments)
    held = sum(block.keys.nbytes + block.scale.nbytes for blocks in view.key_blocks.values() for block in blocks)
    assert Tiers(routing_keys="int8").needed_bytes(view.spec, stored)[0] == held
    assert stored >= stats["chunks"]
