"""How often a question reads a memory's routing keys, in the forms and by the looks that answer real questions.

Not seconds but counts: a change that reads all keys twice fails here.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from tiny import tiny_model

from msa import Engine, Memory
from msa.evaluation.cost import counted_flops
from msa.ops.route import ExactKeys, HalfKeys, QuantizedKeys, tiled
from msa.ops.route.products import fast_product
from msa.routing import BankView, Tiers
from msa.routing.segment_latents import _Rows

NUM_DOCUMENTS = 300


@dataclass
class KeyBytes:
    """Of the routing keys of a memory's ``blocks``, by why they were read."""

    blocks: list = field(default_factory=list, repr=False)
    first_look: int = 0
    whole: int = 0
    again: int = 0
    stored: int = 0

    def of(self, block, start, stop, *_):
        """0 for a block of single chunks: those were counted when they were taken."""
        return block.keys[start:stop].nbytes if any(block is each for each in self.blocks) else 0


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    model = tiny_model(head_dim=16, chunk_size=16)
    model.lm.to(torch.bfloat16)
    with Memory.open(tmp_path_factory.mktemp("keys") / "memory", model) as opened:
        opened.add([{"id": f"d{i}", "text": f"Document {i} of {i * i} speaks of moons."} for i in range(NUM_DOCUMENTS)])
        yield opened


@pytest.fixture
def seen(monkeypatch):
    """Instruments on every form of keys; and questions of any size get a first look."""
    found = KeyBytes()

    def count(kind, method, reason, num_bytes):
        plain = getattr(kind, method)

        def watched(self, *given, **named):
            setattr(found, reason, getattr(found, reason) + num_bytes(self, *given))
            return plain(self, *given, **named)

        monkeypatch.setattr(kind, method, watched)

    for kind in (ExactKeys, HalfKeys, QuantizedKeys):
        count(kind, "fast_rows", "first_look", found.of)
        count(kind, "rows", "whole", found.of)
        count(kind, "take", "again", lambda block, rows: len(rows) * block.keys[0].nbytes)

    def of_disk(keys, rows):
        return 2 * len(rows) * math.prod(keys.shape[1:]) if keys.kind == "routing_keys" else 0

    count(_Rows, "__getitem__", "stored", of_disk)
    monkeypatch.setattr(tiled, "_FIRST_LOOK_PRODUCTS", 0)
    return found


@pytest.mark.parametrize("form", ["exact", "half", "int8", "mapped"])
def test_a_question_reads_every_key_once_and_few_of_them_again(memory, seen, form):
    dtype = torch.int8 if form == "int8" else torch.bfloat16
    if fast_product(dtype) is None:
        pytest.skip(f"this machine has no fast product of {dtype}")
    view = BankView(memory.bank, tiers=Tiers(routing_keys=form))
    engine = Engine(memory.model, view)
    seen.blocks = [block for blocks in view.key_blocks.values() for block in blocks]
    every = sum(block.keys.nbytes for block in seen.blocks)
    assert every > 0
    engine.search(["Which document?"], 3)
    if form == "mapped":  # not measured when they were opened: compared in float32 throughout
        assert (seen.whole, seen.first_look, seen.again, seen.stored) == (every, 0, 0, 0)
        return
    assert (seen.first_look, seen.whole) == (every, 0)
    assert 0 < seen.again < 0.2 * every
    assert (seen.stored > 0) == (form != "exact")  # what was rounded takes its last look at them
    assert seen.stored < 0.2 * 2 * every


def test_products_of_int8_and_of_packed_weights_are_counted(memory):
    rows, keys = torch.ones(17, 32, dtype=torch.int8), torch.ones(40, 32, dtype=torch.int8)
    assert counted_flops(lambda: torch._int_mm(rows, keys.T)) == 2 * 17 * 32 * 40
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this machine has no packed weights of bfloat16")
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(40, 32, dtype=torch.bfloat16), None)
    x = torch.ones(3, 32, dtype=torch.bfloat16)
    product = torch.ops.mkldnn._linear_pointwise
    assert counted_flops(lambda: product(x, weight, None, "none", [], "")) == 2 * 3 * 32 * 40
