"""Where no document can be selected nothing is answered: a filter that matches none, and latents that are damaged."""

import os

import pytest

from msa import Memory
from msa.errors import BankCorruptError, NoDocumentsError

TEXTS = {"moon": "The moon is made of rock.", "bridge": "The bridge was opened in 1932."}
RECORDS = [{"id": name, "text": text, "metadata": {"lang": "en"}} for name, text in TEXTS.items()]
MODES = (
    {"retrieval": "generative"},
    {"retrieval": "generative", "max_rounds": 0},
    {"retrieval": "routed"},
    {"hybrid": True},
)


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        opened.add(RECORDS[:1])
        opened.add(RECORDS[1:])
        yield opened


def ways(memory, **options):
    """Every way to ask, each with a question that is answered only when the answer is looked at."""
    return (
        lambda: memory.ask("Why?", **options),
        lambda: memory.ask_many(["Why?", "Where?"], **options),
        lambda: [*memory.stream("Why?", **options)],
        lambda: [*memory.steps("Why?", **options)],
    )


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_filter_that_matches_no_document_is_named(memory, mode):
    for ask in ways(memory, where={"lang": "zz"}, max_new_tokens=2, **mode):
        with pytest.raises(NoDocumentsError, match=r'no documents found with this metadata: \{"lang": "zz"\}'):
            ask()
    assert memory.search("Why?", where={"lang": "zz"}) == []
    assert memory.ask("Why?", where={"lang": "en"}, max_new_tokens=2, **mode).finish_reason


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def flip(file):
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + 500  # behind the numbers, which opening checks
    data[start:] = bytes(255 - byte for byte in data[start:])
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_damaged_latents_are_said_and_can_be_made_again(memory, model, damage):
    first, *others = sorted((memory.bank.path / "segments").glob("*.safetensors"))
    assert others
    path = memory.bank.path
    memory.close()
    damage(first)
    with Memory.open(path, model, read_only=True) as partly:
        assert [hit.id for hit in partly.search("moon")] == ["bridge"]
    for file in others:
        damage(file)
    with Memory.open(path, model) as damaged:
        asking = [ask for mode in MODES for ask in ways(damaged, max_new_tokens=2, **mode)]
        for use in (*asking, lambda: damaged.search("moon"), lambda: damaged.ask("Why?", where={"lang": "zz"})):
            with pytest.raises(BankCorruptError, match="no document can be routed to") as caught:
                use()
            assert first.name in str(caught.value)
        assert len(damaged.verify()) >= 2
        damaged.delete(TEXTS)
        damaged.add(RECORDS)
        assert {hit.id for hit in damaged.search("moon")} == set(TEXTS)
        assert damaged.ask("Why?", max_new_tokens=2).finish_reason
