"""A memory with a file that cannot be read for a while: the rest is asked meanwhile, and nothing is encoded again."""

import errno
import os

import pytest

import msa.bank.latents
import msa.memory.adding
import msa.memory.memory
from msa import Memory
from msa.errors import BankUnreadableError

TEXTS = {"moon": "The moon is made of rock.", "sun": "The sun is a star."}


@pytest.fixture
def folder(tmp_path, model):
    """Two segments of one document each."""
    with Memory.open(tmp_path / "memory", model) as memory:
        for name, text in TEXTS.items():
            memory.add([{"id": name, "text": text}])
    return tmp_path / "memory"


@pytest.fixture
def bad(folder):
    """The older segment's latents."""
    return min((folder / "segments").glob("*.safetensors"))


def found(memory):
    return {hit.id for hit in memory.search("What is the moon?")}


def test_latents_that_cannot_be_opened(folder, bad, model, monkeypatch):
    real, encoded = msa.bank.latents._checked_header, []

    def checked(file, *args):
        if file == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(file, *args)

    monkeypatch.setattr(msa.memory.adding, "encode_in_batches", lambda *_, **__: encoded.append(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msa.bank.latents, "_checked_header", checked)
        memory = Memory.open(folder, model)
        assert found(memory) == {"sun"}
        with pytest.raises(BankUnreadableError, match="need not be damaged"):
            memory.add([{"id": "moon", "text": TEXTS["moon"]}])
    with memory:  # it can be read again
        told = []
        memory.add([{"id": name, "text": text} for name, text in TEXTS.items()], progress=told.append)
        assert (told[-1].unchanged, encoded, memory.bank.version) == (2, [], 2)
        assert found(memory) == {*TEXTS}


def test_latents_that_cannot_be_loaded(folder, bad, model, monkeypatch):
    monkeypatch.setattr(msa.memory.memory, "_PAUSE_S", 0.0)
    real, number = os.preadv, bad.stat().st_ino

    def read(descriptor, *args):
        if os.fstat(descriptor).st_ino == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, *args)

    with Memory.open(folder, model) as memory:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", read)
            assert found(memory) == {"sun"}
        assert found(memory) == {*TEXTS}
        assert (memory.bank.version, memory.verify()) == (2, [])
