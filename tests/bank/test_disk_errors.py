"""A failing or full disk at every step leaves the state before or after; the next change works."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import FINGERPRINT, SPEC, add, assert_latents_complete, contents, document, new_bank
from disk_faults import NEW, OLD, STEPS, assert_nothing_left, change, fail, fault, prepare

from msa.bank import MemoryBank
from msa.errors import BankCorruptError, BankError, BankFullError

Work = Callable[[MemoryBank], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path / "mem")
    return tmp_path / "mem"


def compact(bank: MemoryBank) -> None:
    bank.compact()


def back_up(bank: MemoryBank) -> None:
    bank.backup(bank.path.parent / "copy")


@pytest.mark.parametrize(
    ("step", "for_good"), [*((step, False) for step in STEPS), ("sync", True), ("rename", True), ("remove", True)]
)
@pytest.mark.parametrize(("work", "after"), [(change, NEW), (compact, OLD), (back_up, OLD)])
def test_each_step_can_fail(folder: Path, step: str, for_good: bool, work: Work, after: dict[str, str]) -> None:
    prepared, nth, failed = folder, 0, 0
    while nth == failed:
        nth += 1
        folder = prepared.parent / f"{nth}" / "mem"
        shutil.copytree(prepared, folder)
        with MemoryBank.open(folder) as bank:
            if work is back_up:
                bank.compact()  # fewer files, so fewer steps
            with fault(step, nth, fail, for_good=for_good) as calls:
                try:
                    work(bank)
                    done = True
                except BankError as error:
                    assert "No space left" in str(error)  # noqa: PT017
                    done = False
            failed += calls[0] >= nth
            allowed = [after] if done else [OLD]
            assert contents(bank) in allowed, f"{step} {nth}"
            assert_latents_complete(bank)
            assert not (folder.parent / "copy").exists() or done
            if step != "remove":  # what could not be removed goes at the next chance
                assert bank.verify() == [], f"{step} {nth}"
            change(bank)
            assert contents(bank)["new"] == "new"
        assert_nothing_left(folder)
    assert failed or step in ("make", "write tensors", "remove")


def test_compaction_interrupted_between_its_manifests(folder: Path) -> None:
    with MemoryBank.open(folder) as bank:
        with fault("rename", 4, fail), pytest.raises(BankError):  # two files, a manifest, the second manifest
            bank.compact()
        assert contents(bank) == OLD
        assert (len(bank.segments()), bank.verify()) == (1, [])
    assert_nothing_left(folder)


@pytest.mark.parametrize("work", [change, compact])
def test_sqlite_runs_out_of_pages(folder: Path, monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    real, pages = sqlite3.connect, 0
    with MemoryBank.open(folder) as bank:
        while True:
            pages += 1

            def connect(*args: Any, pages: int = pages, **keywords: Any) -> sqlite3.Connection:
                connection = real(*args, **keywords)
                connection.execute(f"PRAGMA max_page_count = {pages}")
                return connection

            with monkeypatch.context() as patch:
                patch.setattr(sqlite3, "connect", connect)
                try:
                    work(bank)
                    break
                except BankError as error:
                    assert "full" in str(error)  # noqa: PT017
            assert contents(bank) == OLD
            assert (bank.verify(), bank.version) == ([], len(OLD))
    assert pages > 5
    assert_nothing_left(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (sqlite3.OperationalError, "disk I/O error"),
        (sqlite3.OperationalError, "database or disk is full"),
        (sqlite3.OperationalError, "unable to open database file"),
        (sqlite3.DatabaseError, "database disk image is malformed"),  # what it read back of its own was not to be read
    ],
)
def test_sqlite_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[sqlite3.Error], message: str) -> None:
    def fails(*_: Any) -> None:
        raise kind(message)

    with MemoryBank.open(folder) as bank:
        for work in (change, compact):
            with monkeypatch.context() as patch:
                patch.setattr("msa.bank.documents._insert", fails)
                with pytest.raises(BankError, match=rf"documents\.sqlite failed \({message}\)"):
                    work(bank)
            assert contents(bank) == OLD
            assert (bank.verify(), bank.version) == ([], len(OLD))
    assert_nothing_left(folder)


def test_failed_merge_costs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MemoryBank.open(folder) as bank:
        with fault("sync", 7, fail):  # six for the commit itself
            change(bank)
        assert "small segments were not merged" in caplog.text
        assert contents(bank) == NEW
        assert (bank.verify(), len(bank.segments())) == ([], len(OLD) + 1)
        add(bank, document("next", "next", bank.next_number))
        assert len(bank.segments()) == 1
    assert_nothing_left(folder)


def test_full_memory_stays_readable(tmp_path: Path) -> None:
    with new_bank(tmp_path / "mem") as bank:
        add(bank, document("a", "text", 1))
    with MemoryBank.open(tmp_path / "mem", max_bytes=400_000) as bank:
        with pytest.raises(BankFullError, match="400,000"):
            add(bank, document("b", "x" * 400_000, 2))
        number = 2
        with contextlib.suppress(BankFullError):
            while number < 10:
                add(bank, document(f"d{number}", "y" * 20_000, number))
                number += 1
        assert 3 < number < 10
        assert (len(bank), bank.verify(), bank.next_number) == (number - 1, [], number)
        assert bank.get("a") == document("a", "text", 1)
        bank.commit(delete=[id_ for id_ in bank.ids() if id_ != "a"])
        bank.compact()
        add(bank, document("b", "z" * 20_000, number))  # there is room again
        assert len(bank) == 2
        assert bank.stats()["bytes_on_disk"] < 400_000


@pytest.mark.parametrize(("size", "most"), [(0, 600_000), (150_000, 1_500_000)])
def test_a_folder_never_grows_beyond_its_limit(tmp_path: Path, size: int, most: int) -> None:
    """Metadata and ids count as texts do, and so does what merging small segments takes."""
    with MemoryBank.create(tmp_path / "mem", fingerprint=FINGERPRINT, spec=SPEC, max_bytes=most) as bank:
        number, refused = 1, 0
        while refused < 2:
            try:
                add(bank, document(f"{number}" * 20, f"text {number}", number, metadata={"m": "x" * size}))
                number += 1
            except BankFullError as error:
                assert f"{most:,}" in str(error)  # noqa: PT017
                refused += 1
            assert bank.stats()["bytes_on_disk"] <= most
        assert number > 2
        assert (len(bank), bank.verify(), bank.next_number) == (number - 1, [], number)
        assert_latents_complete(bank)
        bank.compact()
        add(bank, document("small", "text", number))
        assert bank.stats()["bytes_on_disk"] <= most


def test_a_new_manifest_that_can_neither_be_synced_nor_removed(folder: Path) -> None:
    """The change cannot be taken back then: it must stay whole."""
    with MemoryBank.open(folder) as bank:
        version, calls = bank.version, []

        def refuse(path: Path) -> None:
            calls.append(path)
            raise OSError(errno.EIO, "Input/output error")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("msa.bank.manifest.fsync_folder", refuse)
            patch.setattr("msa.bank.manifest.remove", calls.append)
            with pytest.raises(BankError, match="the change is made"):
                change(bank)
        assert len(calls) == 2
        assert (bank.version, contents(bank), bank.verify()) == (version + 1, NEW, [])
        assert_latents_complete(bank)
    assert_nothing_left(folder)


def test_a_copy_that_cannot_begin_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def refuse(path: Path, *args: Any, **keywords: Any) -> None:
        if path.name == "segments":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **keywords)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with MemoryBank.open(folder, read_only=True) as bank, pytest.raises(BankError, match="No space left"):
        bank.backup(folder.parent / "copy")
    assert not (folder.parent / "copy").exists()


def test_a_copy_whose_source_cannot_be_read_names_the_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FileIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("msa.bank.backup.FileIO", Failing)
    with MemoryBank.open(folder, read_only=True) as bank:
        with pytest.raises(BankError) as caught:
            bank.backup(folder.parent / "copy")
        said = str(caught.value)
        assert said.startswith(str(folder / "segments"))
        assert "cannot be read (Input/output error)" in said
        assert not isinstance(caught.value, BankCorruptError)
    assert not (folder.parent / "copy").exists()


def test_the_names_of_new_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a folder whose name was not synced is gone with all that is in it."""
    synced: list[Path] = []
    monkeypatch.setattr("msa.bank.files.fsync_folder", synced.append)
    with new_bank(tmp_path / "a" / "b" / "mem") as bank:
        assert synced == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
        deep, beside = [tmp_path / "c" / "d", tmp_path / "c", tmp_path], [tmp_path / "a"]
        for copy, expected in ((tmp_path / "c" / "d" / "copy", deep), (tmp_path / "a" / "copy", beside)):
            synced.clear()
            bank.backup(copy)
            assert synced == expected
