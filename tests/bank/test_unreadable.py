"""Files that cannot be read at the moment, or not any more, while a memory is open."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_helpers import add, assert_latents_complete, contents, document

import msa.bank.documents
import msa.bank.latents
import msa.bank.opening
from msa.bank import MemoryBank
from msa.errors import BankCorruptError, BankError, BankUnreadableError


def files_of(folder: Path, ending: str) -> list[Path]:
    """Files of the segments, oldest first."""
    return sorted((folder / "segments").glob(f"*.{ending}"))


def test_a_file_cut_short_while_it_is_open(folder: Path) -> None:
    """Reading a mapped page behind the end of a file would end the process."""
    (file, _) = files_of(folder, "safetensors")
    with MemoryBank.open(folder, read_only=True) as bank:
        held = bank.segments()[0].latents
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        os.truncate(file, header)
        problems = [*held.problems()]
        assert len(problems) > 3
        assert all(file.name in problem for problem in problems)
        assert any(file.name in problem for problem in bank.verify())
        assert contents(bank) == {"a": "first", "b": "second"}
        file.unlink()
        assert [*held.problems()] == [f"{file} cannot be read (No such file or directory)"]


def test_what_was_opened_is_loaded_after_its_file_is_gone(folder: Path) -> None:
    """A writer removes the files of segments that it has merged; who reads the version before goes on reading."""
    (file, _) = files_of(folder, "safetensors")
    with MemoryBank.open(folder, read_only=True) as bank:
        held = bank.segments()[0].latents
        layer = bank.spec.layers[0]
        expected = held.tensor("routing_keys", layer).clone()
        file.unlink()
        assert torch.equal(held.load("routing_keys", layer, 0, len(expected)), expected)
        assert torch.equal(held.rows("routing_keys", layer, torch.arange(len(expected))), expected)


@pytest.mark.parametrize("ending", ["sqlite", "safetensors"])
def test_a_file_that_could_not_be_read_for_a_moment(folder: Path, ending: str) -> None:
    """From the next change on it is read again, without opening the memory anew."""
    with MemoryBank.open(folder) as bank, MemoryBank.open(folder, read_only=True) as reader:
        file = files_of(folder, ending)[0]
        data = file.read_bytes()
        file.unlink()
        add(bank, document("c", "third", 4))
        with MemoryBank.open(folder, read_only=True) as late:
            assert late.state().damage
            file.write_bytes(data)
            bank.commit(delete=["b"])
            for each in (bank, reader, late):
                assert contents(each) == {"a": "first", "c": "third"}
                assert not each.state().damage
                assert_latents_complete(each)


def test_latents_that_cannot_be_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: Any) -> None:
        raise RuntimeError(f"unable to open file <{name}> in read-only mode: Input/output error (5)")

    monkeypatch.setattr("msa.bank.latents.safe_open", refuse)
    with MemoryBank.open(folder, read_only=True) as bank:
        assert contents(bank) == {"a": "first", "b": "second"}
        for file in files_of(folder, "safetensors"):
            assert any(file.name in str(problem) for problem in bank.state().damage)


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """So many files can be opened inside, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while held[-1] < highest:  # no gaps below
        held.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held[-1], highest) + 1 + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
@pytest.mark.parametrize("when", ["opened", "open"])
def test_too_many_open_files(folder: Path, when: str) -> None:
    """However many are free: all of the memory is read, or the error says why, and nothing is taken for damaged."""
    read, count = False, -1
    while not read:
        count += 1
        with MemoryBank.open(folder) as writer, MemoryBank.open(folder, read_only=True) as early:
            if when == "open":
                add(writer, document(f"c{count}", "third", writer.next_number))
            expected = contents(writer)
            with free_descriptors(count), contextlib.ExitStack() as opened:
                try:
                    bank = opened.enter_context(MemoryBank.open(folder, read_only=True)) if when == "opened" else early
                    assert contents(bank) == expected
                    assert [*bank.content_hashes(expected)] == [*expected]
                    read = True
                except BankError as error:
                    assert not isinstance(error, BankCorruptError), str(error)  # noqa: PT017
                    assert "Too many open files" in str(error)  # noqa: PT017
            assert contents(early) == expected
            assert not early.state().damage
    assert count > 3


def failing(monkeypatch: pytest.MonkeyPatch, file: Path, number: int) -> None:
    """This file cannot be read."""
    header, connect, whole = msa.bank.latents._checked_header, sqlite3.connect, msa.bank.documents.file_checksum

    def refused(path: Path) -> None:
        if path == file:
            raise OSError(number, os.strerror(number), str(path))

    def checked(path: Path, *args: Any) -> Any:
        refused(path)
        return header(path, *args)

    def connected(name: str, **keywords: Any) -> sqlite3.Connection:
        if file.name in name:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return connect(name, **keywords)

    def summed(path: Path) -> str:
        refused(path)
        return whole(path)

    monkeypatch.setattr(msa.bank.latents, "_checked_header", checked)
    monkeypatch.setattr(sqlite3, "connect", connected)
    monkeypatch.setattr(msa.bank.documents, "file_checksum", summed)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("ending", ["sqlite", "safetensors"])
def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str, number: int
) -> None:
    (file, _) = files_of(folder, ending)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, file, number)
        bank = MemoryBank.open(folder)
        (problem,) = bank.state().damage
        assert str(problem).startswith(f"{file} cannot be read ({os.strerror(number)})")
        assert bank.state() is bank.state()
        assert [*bank.sound_documents(["b"])] == [*bank.content_hashes(["b"])] == ["b"]
        refused = [
            lambda: bank.sound_documents(["b", "a"]),
            lambda: bank.content_hashes(["a"]),
            lambda: bank.compact(drop_damaged=True),
        ]
        if ending == "sqlite":
            refused += [lambda: bank.get("a"), bank.list, lambda: bank.sound_documents(["new"])]
        else:
            assert contents(bank) == {"a": "first", "b": "second"}
            assert bank.sound_documents(["new"]) == {}
        for call in refused:
            with pytest.raises(BankUnreadableError, match="need not be damaged"):
                call()
        assert [line for line in bank.verify() if not line.startswith(f"{file} cannot be read")] == []
    with bank:  # as soon as it can be read again, without any change
        assert contents(bank) == {"a": "first", "b": "second"}
        assert (bank.verify(), bank.version, bank.state().damage) == ([], 2, [])
        assert_latents_complete(bank)


@pytest.mark.parametrize("ending", ["sqlite", "safetensors"])
def test_a_damaged_file_is_looked_at_again_when_it_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (file, _) = files_of(folder, ending)
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with MemoryBank.open(folder, read_only=True) as bank:
        state, opened = bank.state(), []
        real = msa.bank.opening.Segment
        monkeypatch.setattr(msa.bank.opening, "Segment", lambda *args: opened.append(args) or real(*args))
        assert state.damage
        assert (bank.state() is state, opened) == (True, [])
        file.unlink()
        (problem,) = bank.state().damage
        assert "is missing" in str(problem)
        assert (bank.state() is bank.state(), len(opened)) == (True, 1)
        file.write_bytes(data)
        assert contents(bank) == {"a": "first", "b": "second"}
        assert not bank.state().damage
        assert_latents_complete(bank)


def test_a_disk_that_fails_while_latents_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with MemoryBank.open(folder, read_only=True) as bank:
        held = bank.segments()[0].latents
        monkeypatch.setattr(os, "preadv", refuse)
        for read in (
            lambda: held.load("keys", bank.spec.layers[0], 0, 1),
            lambda: held.rows("keys", bank.spec.layers[0], torch.tensor([0])),
        ):
            with pytest.raises(BankUnreadableError, match="Input/output error"):
                read()


@pytest.mark.parametrize("damaged", [False, True])
def test_memory_that_a_query_cannot_get(folder: Path, damaged: bool) -> None:
    """Damage can make SQLite ask for more than there is; the checksum tells."""

    class Short:
        def execute(self, *_: Any) -> None:
            raise MemoryError

        def close(self) -> None:
            pass

    with MemoryBank.open(folder, read_only=True) as bank:
        file = bank.segments()[0].documents
        if damaged:
            file.file.write_bytes(file.file.read_bytes()[:-1] + b"?")
        file._connection = Short()  # type: ignore[assignment]
        with pytest.raises(BankError, match="is damaged" if damaged else "Cannot allocate memory") as caught:
            bank.list()
        assert isinstance(caught.value, BankCorruptError) == damaged


def test_a_disk_that_fails_while_texts_are_read(folder: Path) -> None:
    class Failing:
        def execute(self, *_: Any) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
            raise error

        def close(self) -> None:
            pass

    with MemoryBank.open(folder, read_only=True) as bank:
        bank.segments()[0].documents._connection = Failing()  # type: ignore[assignment]
        for call in (bank.list, lambda: bank.sound_documents(["a"]), lambda: bank.content_hashes(["a"])):
            with pytest.raises(BankUnreadableError, match=r"cannot be read \(disk I/O error\)"):
                call()
        assert [*bank.sound_documents(["b"])] == ["b"]
