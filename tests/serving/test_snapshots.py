"""Snapshots that are deleted while others look at them, and by servers that are killed meanwhile."""

import os
import shutil
import threading

import pytest
from tiny import tiny_model

from msa import Memory
from msa.serving import memories as memories_module
from msa.serving.errors import ApiError
from msa.serving.memories import STATE_FOLDER, Memories
from msa.serving.operations import Operation
from msa.serving.snapshots import Snapshots


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def snapshots(tmp_path, model):
    """Those of a memory ``notes``."""
    with Memory.open(tmp_path / "notes", model) as memory:
        memory.add([{"id": "only", "text": "a text"}])
    memories = Memories(tmp_path, model)
    yield Snapshots(tmp_path / STATE_FOLDER, memories)
    memories.close()


def make(snapshots):
    operation = Operation("op", "notes", "snapshot", {"snapshot": snapshots.new_id()})
    return snapshots.run_create(operation)["id"]


def listed(snapshots):
    return [about["id"] for about in snapshots.list("notes")]


def refused(work, *arguments):
    with pytest.raises(ApiError) as error:
        work(*arguments)
    return error.value.code


def test_of_two_deletions_one_says_that_there_is_none(snapshots):
    snapshot, other = make(snapshots), make(snapshots)
    both, answers = threading.Barrier(2), []
    found = snapshots.get

    def get(*arguments):
        about = found(*arguments)
        both.wait(10)
        return about

    def delete():
        try:
            answers.append(snapshots.delete("notes", snapshot) or "deleted")
        except ApiError as error:
            answers.append(error.code)

    snapshots.get = get
    threads = [threading.Thread(target=delete) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == ["deleted", "snapshot_not_found"]
    assert listed(snapshots) == [other]
    assert sorted(os.listdir(snapshots._root / "notes")) == sorted([other, f"{other}.about.json"])


def test_one_that_goes_while_they_are_listed_is_left_out(snapshots, monkeypatch):
    kept, gone = sorted(make(snapshots) for _ in range(2))
    listdir = os.listdir

    def names(folder):
        found = listdir(folder)
        (snapshots._root / "notes" / f"{gone}.about.json").unlink()
        return found

    monkeypatch.setattr(os, "listdir", names)
    assert listed(snapshots) == [kept]
    monkeypatch.setattr(os, "listdir", listdir)
    assert snapshots.delete_all("notes") == 1
    assert listed(snapshots) == []


def test_of_a_deletion_that_was_cut_off_nothing_can_be_seen(snapshots, monkeypatch, tmp_path):
    snapshot = make(snapshots)

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledError):
        snapshots.delete("notes", snapshot)
    monkeypatch.undo()
    assert listed(snapshots) == []
    assert not (snapshots._root / "notes" / snapshot).exists()
    assert len([*(tmp_path / STATE_FOLDER / "building").iterdir()]) == 1, "which every start removes"
    assert refused(snapshots.delete, "notes", snapshot) == "snapshot_not_found"


def test_one_that_is_deleted_while_a_memory_is_made_of_it(snapshots, monkeypatch):
    snapshot = make(snapshots)
    restore = Operation("op", "restored", "restore", {"source": "notes", "snapshot": snapshot})
    opened = memories_module.MemoryBank.open

    def late(*arguments, **options):
        snapshots.delete("notes", snapshot)
        return opened(*arguments, **options)

    monkeypatch.setattr(memories_module.MemoryBank, "open", late)
    assert refused(snapshots.run_restore, restore) == "snapshot_not_found"
