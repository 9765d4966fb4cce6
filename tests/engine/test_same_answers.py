"""What is called exact changes no token: rounds, texts and sources are those of the plain way, from end to end.

In float32, where sums in another order do not decide between tokens.
"""

import dataclasses

import pytest

import msa
from msa import AskOptions, Engine, Memory
from msa.generation.decoding import Decoding
from msa.routing import BankView, Tiers, bank_view

QUESTIONS = [
    "What is the special magic number for wandering-age mentioned in the provided text?",
    "What are all the special magic numbers for quiet-harbour mentioned in the provided text?",
    "hello",
]
GENERATIVE = AskOptions(retrieval="generative", max_new_tokens=24)
ROUTED = AskOptions(retrieval="routed", max_new_tokens=24)


@pytest.fixture(scope="module")
def model():
    return msa.load("msa-tiny", dtype="float32")


@pytest.fixture(scope="module")
def memory(model, tmp_path_factory):
    with Memory.open(tmp_path_factory.mktemp("same") / "memory", model) as opened:
        opened.add(
            [
                {"id": "ages", "text": "One of the special magic numbers for wandering-age is: 4216093."},
                {"id": "harbour", "text": "One of the special magic numbers for quiet-harbour is: 7711002."},
            ]
        )
        for first in range(0, 40, 10):  # several segments
            opened.add([{"id": f"d{i}", "text": f"Document {i} speaks of moons."} for i in range(first, first + 10)])
        yield opened


def answers(engine, options):
    """What does not depend on how long it took; of scores their order."""
    found = [engine.ask([question], options)[0] for question in QUESTIONS]
    return [
        dataclasses.replace(answer, timings={}, sources=[(source.id, source.read) for source in answer.sources])
        for answer in found
    ]


@pytest.fixture(scope="module")
def plain(model, memory):
    """Every round from its first layer, every token through the modules, keys compared as they lie on disk."""
    engine = Engine(model, BankView(memory.bank, tiers=Tiers(routing_keys="mapped")))
    model.lm.separate_projections()
    with pytest.MonkeyPatch.context() as patch:
        begun_anew(patch)
        found = {options.retrieval: answers(engine, options) for options in (GENERATIVE, ROUTED)}
    model.lm.fuse_projections()
    rounds = [len(answer.rounds) for answer in found["generative"]]
    assert max(rounds) > 1  # something is there to be used again
    assert any("4216093" in answer.text for answer in found["generative"])
    return found


def begun_anew(patch):
    """Let no round use what the one before has computed."""
    init = Decoding.__init__
    patch.setattr(Decoding, "__init__", lambda self, *given, **named: init(self, *given, **(named | {"earlier": None})))


@pytest.mark.parametrize("options", [GENERATIVE, ROUTED], ids=["generative", "routed"])
@pytest.mark.parametrize("keys", ["exact", "half", "int8", "mapped"])
@pytest.mark.parametrize("content", ["mapped", "ram"])
def test_wherever_latents_live(model, memory, plain, keys, content, options):
    engine = Engine(model, BankView(memory.bank, tiers=Tiers(routing_keys=keys, content=content)))
    assert answers(engine, options) == plain[options.retrieval]


@pytest.mark.parametrize("options", [GENERATIVE, ROUTED], ids=["generative", "routed"])
def test_whichever_of_the_fast_ways_is_taken(model, memory, plain, options, monkeypatch):
    engine = Engine(model, BankView(memory.bank))
    model.lm.separate_projections()  # lower layers used again, no token pass
    assert answers(engine, options) == plain[options.retrieval]
    model.lm.fuse_projections()
    with monkeypatch.context() as patch:
        begun_anew(patch)  # a token pass, every round from its first layer
        assert answers(engine, options) == plain[options.retrieval]
    monkeypatch.setattr(bank_view, "joins_segments", lambda *_: True)  # as on a GPU
    joined = BankView(memory.bank)
    assert all(len(blocks) == 1 for blocks in joined.key_blocks.values())
    assert answers(Engine(model, joined), options) == plain[options.retrieval]
