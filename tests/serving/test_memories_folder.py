"""Memories of a folder that others change: whatever has a name now is what is opened under it."""

import shutil

import pytest
from tiny import tiny_model

from msa import Memory
from msa.serving.errors import ApiError
from msa.serving.memories import Memories


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def served(tmp_path, model):
    memories = Memories(tmp_path, model, read_only=True)
    yield memories
    memories.close()


def make(folder, model, text):
    with Memory.open(folder, model) as memory:
        memory.add([{"id": "only", "text": text}])


def text_of(served):
    with served.lease("notes") as memory:
        return memory.bank.get("only").text


def test_one_that_was_deleted_and_made_again_is_opened_anew(served, tmp_path, model):
    for text in ("the first", "the second", "the third"):  # file systems give a new folder the number of a deleted one
        make(tmp_path / "notes", model, text)
        assert text_of(served) == text
        shutil.rmtree(tmp_path / "notes")


def test_whether_a_model_made_it_is_said_of_what_is_there_now(served, tmp_path, model):
    for maker, fits in ((model, True), (tiny_model(seed=1), False), (model, True)):
        make(tmp_path / "notes", maker, "a text")
        assert served.fits("notes") is fits
        shutil.rmtree(tmp_path / "notes")
    assert not served.fits("notes")


def test_folders_are_let_go(served, tmp_path, model):
    make(tmp_path / "notes", model, "a text")
    with served.lease("notes"):
        (entry,) = served._open.values()
        served._retire("notes", entry)
        assert entry.is_of(served._identity("notes"))  # still in use
    with pytest.raises(OSError, match="Bad file descriptor"):
        entry.is_of((0, 0))


def test_names_that_are_asked_for_leave_nothing_behind(served, tmp_path, model):
    make(tmp_path / "notes", model, "a text")
    assert text_of(served) == "a text"
    for number in range(20):
        with pytest.raises(ApiError), served.lease(f"none-{number}"):
            pass
    assert len(served._opening) == 0
