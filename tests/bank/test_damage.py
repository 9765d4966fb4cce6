"""What is refused at opening, what damage is found, and what a failing disk leaves behind."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import FINGERPRINT, SPEC, add, assert_latents_complete, contents, document, new_bank

from msa.bank import MemoryBank
from msa.errors import (
    BankCorruptError,
    BankError,
    BankFormatError,
    BankLockedError,
    BankMismatchError,
    BankNotFoundError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed memory of two segments."""
    with new_bank(tmp_path / "mem") as bank:
        add(bank, document("a", "first", 1))
        add(bank, document("b", "second", 2, 2))
    return tmp_path / "mem"


def segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "segments").iterdir())


def set_meta(folder: Path, key: str, value: str) -> None:
    connection = sqlite3.connect(folder / "memory.sqlite")
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
    connection.close()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BankNotFoundError, match="no such folder"):
        MemoryBank.open(tmp_path / "absent")
    assert not MemoryBank.exists(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_not_a_memory(tmp_path: Path) -> None:
    with pytest.raises(BankFormatError, match="not a memory"):
        MemoryBank.open(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BankFormatError, match="is a file"):
        MemoryBank.open(file)
    (tmp_path / "memory.sqlite").write_text("not a database at all")
    with pytest.raises(BankFormatError, match="not an SQLite file"):
        MemoryBank.open(tmp_path)
    (tmp_path / "memory.sqlite").unlink()
    sqlite3.connect(tmp_path / "memory.sqlite").execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(BankFormatError, match="not the catalog"):
        MemoryBank.open(tmp_path)


def test_create_refuses(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="already holds a memory"):
        new_bank(folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(BankFormatError, match=r"a\.jpg"):
        new_bank(tmp_path / "photos")
    with pytest.raises(BankError, match="cannot be created"):
        new_bank(tmp_path / "photos" / "a.jpg")
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]


def test_create_after_a_killed_create(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    (tmp_path / "memory.lock").write_text("1 gone\n")
    (tmp_path / ".memory.sqlite.tmp").write_bytes(b"half")
    with new_bank(tmp_path) as bank:
        assert bank.verify() == []
    assert not (tmp_path / ".memory.sqlite.tmp").exists()


def test_mismatch_names_both(folder: Path) -> None:
    with pytest.raises(BankMismatchError) as caught:
        MemoryBank.open(folder, fingerprint="sha256:bb", model_name="other")
    for word in (FINGERPRINT, "sha256:bb", "tiny", "other"):
        assert word in str(caught.value)
    MemoryBank.open(folder, fingerprint=FINGERPRINT).close()  # the refused attempt left no lock


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("format_version", "7", "version 7"), ("features", '["zip"]', "zip")],
)
def test_unknown_format(folder: Path, key: str, value: str, message: str) -> None:
    set_meta(folder, key, value)
    with pytest.raises(BankFormatError, match=message):
        MemoryBank.open(folder)


def test_damaged_meta(folder: Path) -> None:
    set_meta(folder, "spec", "{")
    with pytest.raises(BankCorruptError, match=r"memory\.sqlite"):
        MemoryBank.open(folder)


def test_flipped_byte_is_named(folder: Path) -> None:
    file = segment_files(folder)[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with MemoryBank.open(folder) as bank:
        (problem,) = bank.verify()
        assert str(file) in problem
        assert "'b'" in problem
        add(bank, document("c", "third", 4))
        with pytest.raises(BankCorruptError, match=file.name):
            bank.compact()
        bank.commit(delete=["b"])
        bank.compact()
        assert bank.verify() == []
        assert contents(bank) == {"a": "first", "c": "third"}
        assert_latents_complete(bank)


@pytest.mark.parametrize("damage", ["truncate", "delete", "header", "other"])
def test_unreadable_segment_is_named_and_the_rest_stays(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = segment_files(folder)
    data = bad.read_bytes()
    if damage == "truncate":
        bad.write_bytes(data[:-1])
    elif damage == "delete":
        bad.unlink()
    elif damage == "header":
        bad.write_bytes(b"\xff" * len(data))
    else:
        bad.write_bytes(data.replace(b"layers.1.keys", b"layers.9.keys"))
    with MemoryBank.open(folder, read_only=True) as bank:
        with pytest.raises(BankCorruptError, match=bad.name):
            bank.segments()
        (problem,) = bank.verify()
        assert str(bad) in problem
        with caplog.at_level(logging.WARNING):
            (rest,) = bank.segments(skip_damaged=True)
        assert bad.name in caplog.text
        assert rest.name == good.name.removesuffix(".safetensors")
        assert contents(bank) == {"a": "first", "b": "second"}


def test_damaged_text_is_named(folder: Path) -> None:
    file = folder / "memory.sqlite"
    file.write_bytes(file.read_bytes().replace(b"second", b"sekond", 1))
    with MemoryBank.open(folder) as bank:
        assert any("'b'" in problem and str(file) in problem for problem in bank.verify())


@pytest.mark.parametrize("page", range(1, 12))
def test_damaged_catalog_pages(folder: Path, page: int) -> None:
    file = folder / "memory.sqlite"
    data = bytearray(file.read_bytes())
    if page * 4096 >= len(data):
        pytest.skip("no such page")
    data[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    file.write_bytes(data)
    try:
        with MemoryBank.open(folder, read_only=True) as bank:
            problems = bank.verify()
    except BankCorruptError as error:
        problems = [str(error)]
    assert problems
    assert all("memory.sqlite" in problem and "\n" not in problem for problem in problems)


def test_missing_catalog(folder: Path) -> None:
    (folder / "memory.sqlite").unlink()
    with pytest.raises(BankCorruptError, match="holds segments"):
        MemoryBank.open(folder)
    with pytest.raises(BankCorruptError, match="Restore"):
        new_bank(folder)


def test_leftovers(folder: Path) -> None:
    temporary = folder / "segments" / ".0000000009-00000000.safetensors.tmp"
    orphan = folder / "segments" / "0000000009-00000000.safetensors"
    notes = folder / "segments" / "notes.txt"
    for file in (temporary, orphan, notes):
        file.write_bytes(b"half")
    with MemoryBank.open(folder, read_only=True) as reader:
        assert len(reader.verify()) == 3
    with MemoryBank.open(folder) as bank:
        assert not temporary.exists()
        assert not orphan.exists()
        (problem,) = bank.verify()
        assert str(notes) in problem
    assert notes.exists()


def test_second_writer_names_the_first(folder: Path) -> None:
    code = (
        "import sys\nfrom msa.bank import MemoryBank\n"
        f"with MemoryBank.open({str(folder)!r}) as bank:\n    print('open', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BankLockedError, match=rf"process {other.pid}\."):
            MemoryBank.open(folder)
        with MemoryBank.open(folder, read_only=True) as reader:
            assert len(reader) == 2
        other.kill()
        other.wait()
    with MemoryBank.open(folder) as bank:
        with pytest.raises(BankLockedError, match="this process"):
            MemoryBank.open(folder)
        assert bank.verify() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_for_an_ordinary_user(folder: Path) -> None:
    files = [folder, *folder.rglob("*")]
    for file in files:
        file.chmod(0o555 if file.is_dir() else 0o444)
    try:
        with MemoryBank.open(folder, read_only=True) as reader:
            assert_latents_complete(reader)
            assert reader.verify() == []
        with pytest.raises(BankError, match="read_only=True"):
            MemoryBank.open(folder)
    finally:
        for file in files:
            file.chmod(0o755)


def test_copied_folder_opens(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    with MemoryBank.open(tmp_path / "copy", fingerprint=FINGERPRINT) as bank:
        assert bank.verify() == []
        assert_latents_complete(bank)


@pytest.mark.parametrize("call", ["fsync", "replace", "second fsync", "write"])
@pytest.mark.parametrize("change", ["commit", "compact"])
def test_failing_disk_leaves_the_previous_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, change: str
) -> None:
    with MemoryBank.open(folder) as bank:
        files = segment_files(folder)
        calls = []

        def fail(*_: Any, **__: Any) -> None:
            calls.append(1)
            if call != "second fsync" or len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            if call == "write":
                patch.setattr("msa.bank.segment._bytes", fail)
            else:
                patch.setattr(os, call.split()[-1], fail)
            with pytest.raises(BankError, match="No space left"):
                bank.compact() if change == "compact" else add(bank, document("a", "changed", 4), delete=["b"])
        assert segment_files(folder) == files
        assert contents(bank) == {"a": "first", "b": "second"}
        assert (bank.version, bank.next_number, bank.verify()) == (2, 4, [])
        add(bank, document("a", "changed", 4), delete=["b"])
        assert contents(bank) == {"a": "changed"}


def test_failing_catalog_leaves_the_previous_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryBank.open(folder) as bank:
        files = segment_files(folder)

        def fail(*_: Any) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr("msa.bank.records.apply_changes", fail)
            with pytest.raises(BankError, match=r"memory\.sqlite.*disk I/O error"):
                add(bank, document("c", "third", 4))
        assert segment_files(folder) == files
        assert (bank.version, bank.next_number, bank.verify()) == (2, 4, [])


def test_full_catalog_leaves_the_previous_state(folder: Path) -> None:
    with MemoryBank.open(folder) as bank:
        files = segment_files(folder)
        with bank._catalog.read() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(BankError, match="full"):
            add(bank, document("c", "x" * 100_000, 4))
        assert segment_files(folder) == files
        assert (bank.version, bank.next_number, bank.verify()) == (2, 4, [])


def test_snapshot_survives_a_compaction_in_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msa.bank.bank as module

    real = module.Segment
    with MemoryBank.open(folder) as bank, MemoryBank.open(folder, read_only=True) as reader:

        def compact_first(*args: Any) -> Any:
            monkeypatch.setattr(module, "Segment", real)
            bank.compact()
            return real(*args)

        monkeypatch.setattr(module, "Segment", compact_first)
        snapshot = reader.snapshot()
        assert (snapshot.version, len(snapshot.segments)) == (3, 1)


def test_spec_of_the_folder_wins(folder: Path) -> None:
    with MemoryBank.open(folder, read_only=True) as bank:
        assert (bank.spec, bank.fingerprint, bank.read_only) == (SPEC, FINGERPRINT, True)
