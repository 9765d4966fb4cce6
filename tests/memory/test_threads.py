"""One process: threads that change a memory beside threads that read and ask it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ask_while_adding import Asker, check_finished, text_of, write
from tiny import tiny_model

import msa.bank.bank
import msa.memory.memory
from msa import Memory
from msa.errors import BankError, BankLockedError, MemoryBudgetError
from msa.routing import BankView


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        yield opened


def test_a_version_that_fits_only_alone(memory, monkeypatch):
    """After a compaction nothing of the old version is used again, and there may be no room for both."""
    memory.add([{"id": f"d{n}", "text": text_of(n)} for n in range(4)])
    assert memory.search("d1")
    opened = []

    def room_for_one(bank, device, tiers, previous, similarity):
        opened.append(previous)
        if previous is not None:
            raise MemoryBudgetError("no room for both")
        return BankView(bank, device, tiers, None, similarity)

    monkeypatch.setattr(memory, "open_view", room_for_one)
    memory.delete(["d0"])
    memory.compact()
    assert {hit.id for hit in memory.search("d1")} == {"d1", "d2", "d3"}
    assert [view is None for view in opened] == [False, True]


@pytest.mark.parametrize("same", [True, False], ids=["the same object", "one of its own"])
def test_asking_in_one_thread_while_another_adds(memory, model, same):
    total, each = 60, 6
    added, answered = [0], threading.Event()

    def wrote(number):
        """Let at least one question come between two commits, however slow the machine is."""
        added.append(number)
        answered.clear()
        answered.wait(timeout=60)

    asked = memory if same else Memory.open(memory.bank.path, model, read_only=True)
    with asked, ThreadPoolExecutor() as threads:
        writing = threads.submit(write, memory, total, each, wrote)
        asker = Asker(asked, total)
        versions = set()
        while not writing.done():
            if added[-1]:
                asker.ask(added[-1])
                answered.set()
                versions.add(asker.version)
                assert asked.stats()["documents"] <= total
                assert len(asked.list(limit=5)) == 5
        writing.result()
        asker.ask(total)
        check_finished(asked, total)
    assert asker.questions >= total / each
    assert len(versions) > 3


def test_several_threads_add_and_ask_one_memory(memory):
    """Numbers are given once, nothing is lost, and each answer is the one that a single thread gets."""
    memory.add([{"id": f"first{i}", "text": text_of(i)} for i in range(9)])
    options = {"retrieval": "routed", "max_new_tokens": 3, "where": {"old": True}}
    memory.add([{"id": "old", "text": "An old document.", "metadata": {"old": True}}])
    expected = memory.ask("Which is old?", **options).text
    start = threading.Barrier(6)

    def add(worker):
        start.wait()
        for i in range(6):
            memory.add([{"id": f"{worker}-{i}", "text": f"Number {i} of {worker}."}, {"id": "common", "text": "Same."}])
            assert memory.delete([f"first{worker * 3 + i % 3}"]) == ([f"first{worker * 3 + i % 3}"] if i < 3 else [])

    def ask():
        start.wait()
        for _ in range(6):
            assert memory.ask("Which is old?", **options).text == expected
            assert [hit.id for hit in memory.search("old", where={"old": True})] == ["old"]

    with ThreadPoolExecutor(6) as threads:
        for work in [*(threads.submit(add, worker) for worker in range(3)), *(threads.submit(ask) for _ in range(3))]:
            work.result()
    assert {document.id for document in memory.list()} == {
        "old", "common", *(f"{worker}-{i}" for worker in range(3) for i in range(6))
    }  # fmt: skip
    assert memory.stats()["parts"] == len(memory) == 20
    assert memory.verify() == []


def test_what_is_deleted_while_a_window_is_encoded_stays_deleted(memory):
    memory.add([{"id": "a", "text": "first"}, {"id": "b", "text": "second"}])
    deleted = []

    def delete_at_first(progress):
        if not deleted:
            deleted.extend(memory.delete(["a"]))  # needs not wait for the encoding

    memory.add(
        [
            {"id": "a", "text": "first", "metadata": {"new": True}},
            {"id": "b", "text": "second", "metadata": {"new": True}},
            {"id": "c", "text": "third"},
        ],
        progress=delete_at_first,
    )
    assert deleted == ["a"]
    assert [(document.id, document.metadata) for document in memory.list()] == [("b", {"new": True}), ("c", {})]
    assert memory.verify() == []


def test_closing_waits_for_the_commit_at_work(memory, model, monkeypatch):
    committing, go_on = threading.Event(), threading.Event()
    publish = msa.bank.bank.publish

    def slowly(*arguments):
        committing.set()
        assert go_on.wait(60)
        publish(*arguments)

    monkeypatch.setattr(msa.bank.bank, "publish", slowly)
    with ThreadPoolExecutor() as threads:
        adding = threads.submit(memory.add, [{"id": "a", "text": "first"}])
        assert committing.wait(60)
        closing = threads.submit(memory.close)
        time.sleep(0.05)
        assert not closing.done()
        with pytest.raises(BankLockedError):
            Memory.open(memory.bank.path, model)
        go_on.set()
        assert adding.result() == ["a"]
        closing.result()
    with pytest.raises(BankError, match="is closed"):
        memory.add(["more"])
    with Memory.open(memory.bank.path, model) as again:
        assert [document.id for document in again.list()] == ["a"]


def test_a_model_is_loaded_once_for_all_threads(tmp_path, model, monkeypatch):
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add(["text"])
    loaded = []

    def slowly(name):
        loaded.append(name)
        time.sleep(0.1)
        return tiny_model()

    monkeypatch.setattr(msa.memory.memory, "load", slowly)
    with Memory.open(tmp_path / "memory") as memory, ThreadPoolExecutor(3) as threads:
        found = [threads.submit(memory.search, "text") for _ in range(2)]
        added = threads.submit(memory.add, ["other"])
        assert all(each.result() for each in [*found, added])
    assert loaded == ["tiny"]
