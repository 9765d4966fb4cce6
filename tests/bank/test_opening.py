"""What is refused at opening, who may open, and what else is in the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import (
    FINGERPRINT,
    SPEC,
    add,
    assert_latents_complete,
    change_manifest,
    contents,
    document,
    new_bank,
    newest_manifest,
)

import msa.bank.backup
import msa.bank.opening
from msa.bank import MemoryBank
from msa.errors import (
    BankCorruptError,
    BankError,
    BankFormatError,
    BankLockedError,
    BankMismatchError,
    BankNotFoundError,
)


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
    manifest = tmp_path / "manifest-000000000000.json"
    manifest.write_text("not JSON at all")
    with pytest.raises(BankCorruptError, match=manifest.name):
        MemoryBank.open(tmp_path)
    manifest.write_text('{"name": "a web app", "icons": []}')
    with pytest.raises(BankCorruptError, match=manifest.name):
        MemoryBank.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", '{"manifest": 3, "checksum": ""}'])
def test_manifest_that_is_hostile(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = newest_manifest(folder)
    file.write_text(text)
    with MemoryBank.open(folder, read_only=True) as bank:
        assert contents(bank) == {"a": "first"}
        assert any(file.name in problem for problem in bank.verify())
    assert f"{file} is damaged" in caplog.text


@pytest.mark.parametrize("features", [3, None])
def test_features_that_are_no_list(folder: Path, features: Any, caplog: pytest.LogCaptureFixture) -> None:
    change_manifest(folder, features=features)
    with MemoryBank.open(folder, read_only=True) as bank:
        assert contents(bank) == {"a": "first"}
    assert newest_manifest(folder).name in caplog.text


def test_empty_memory_without_its_folder_of_segments(tmp_path: Path) -> None:
    """As a tool leaves it that does not copy empty folders."""
    new_bank(tmp_path / "mem").close()
    (tmp_path / "mem" / "segments").rmdir()
    with MemoryBank.open(tmp_path / "mem", max_bytes=1_000_000) as bank:
        assert (bank.stats()["documents"], bank.verify()) == (0, [])
        add(bank, document("a", "first", 1))
        assert contents(bank) == {"a": "first"}


def test_another_format_of_manifest(folder: Path) -> None:
    change_manifest(folder, format="something else")
    with pytest.raises(BankFormatError, match="not the manifest of a memory"):
        MemoryBank.open(folder)


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
    (tmp_path / ".manifest-000000000000.json.tmp").write_bytes(b"half")
    with new_bank(tmp_path) as bank:
        assert bank.verify() == []
    assert not (tmp_path / ".manifest-000000000000.json.tmp").exists()


def test_mismatch_names_both(folder: Path) -> None:
    with pytest.raises(BankMismatchError) as caught:
        MemoryBank.open(folder, fingerprint="sha256:bb", model_name="other")
    for word in (FINGERPRINT, "sha256:bb", "tiny", "other"):
        assert word in str(caught.value)
    MemoryBank.open(folder, fingerprint=FINGERPRINT).close()  # the refused attempt left no lock


@pytest.mark.parametrize(("changes", "message"), [({"format_version": 7}, "version 7"), ({"features": ["zip"]}, "zip")])
def test_unknown_format_is_refused_not_passed_over(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(folder, **changes)
    for read_only in (True, False):
        with pytest.raises(BankFormatError, match=rf"{newest_manifest(folder).name}.*{message}"):
            MemoryBank.open(folder, read_only=read_only)


def test_leftovers(folder: Path) -> None:
    segments = folder / "segments"
    gone = [segments / ".0000000009-00000000.latents.safetensors.tmp", folder / ".manifest-000000000003.json.tmp"]
    gone += [segments / f"0000000009-00000000.{kind}" for kind in ("documents.sqlite", "latents.safetensors")]
    notes = segments / "notes.txt"
    for file in (*gone, notes):
        file.write_bytes(b"half")
    with MemoryBank.open(folder, read_only=True) as reader:
        problems = reader.verify()
        assert len(problems) == 5
        assert all(any(str(file) in problem for problem in problems) for file in (*gone, notes))
    with MemoryBank.open(folder) as bank:
        assert not any(file.exists() for file in gone)
        (problem,) = bank.verify()
        assert str(notes) in problem
        assert contents(bank) == {"a": "first", "b": "second"}
    assert notes.exists()


def test_lost_lock_file_is_named_and_made_again(folder: Path) -> None:
    (folder / "memory.lock").unlink()
    with MemoryBank.open(folder, read_only=True) as reader:
        (problem,) = reader.verify()
        assert "memory.lock" in problem
    with MemoryBank.open(folder) as bank:
        assert bank.verify() == []


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


def test_what_a_writer_removes_while_it_is_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryBank.open(folder) as writer:
        read, scan, busy = msa.bank.opening.read_manifest, os.scandir, True

        def compacted() -> None:
            nonlocal busy
            if not busy:
                busy = True
                add(writer, document("c", "third", writer.next_number))
                writer.compact()

        def read_late(*arguments: Any) -> Any:
            compacted()
            return read(*arguments)

        def scan_late(path: Path) -> Any:
            @contextlib.contextmanager
            def entries() -> Iterator[Any]:
                with scan(path) as found:
                    listed = list(found)
                    compacted()
                    yield listed

            return entries()

        monkeypatch.setattr(msa.bank.opening, "read_manifest", read_late)
        monkeypatch.setattr(os, "scandir", scan_late)
        busy = False
        with MemoryBank.open(folder, read_only=True) as reader:
            assert list(contents(reader)) == ["a", "b", "c"]
            assert reader.version == writer.version == 5
            busy = False
            assert reader.stats()["documents"] == 3
            assert reader.version == 8
        assert caplog.text == ""


def test_copied_folder_opens(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    with MemoryBank.open(tmp_path / "copy", fingerprint=FINGERPRINT) as bank:
        assert bank.verify() == []
        assert_latents_complete(bank)


def test_backup_is_a_memory(folder: Path, tmp_path: Path) -> None:
    with MemoryBank.open(folder) as bank:
        bank.backup(tmp_path / "copy")
        with pytest.raises(BankError, match="not empty"):
            bank.backup(tmp_path / "copy")
        (tmp_path / "file").write_text("kept")
        with pytest.raises(BankError, match="is a file"):
            bank.backup(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "kept"
        for inside in (folder / "copy", folder / "segments" / "copy", folder / "segments" / ".." / "copy"):
            with pytest.raises(BankError, match="lies inside the memory"):
                bank.backup(inside)
        assert bank.verify() == []
        add(bank, document("c", "later", 4))
    with MemoryBank.open(tmp_path / "copy", fingerprint=FINGERPRINT) as copy:
        assert (copy.verify(), copy.version, copy.next_number) == ([], 2, 4)
        assert contents(copy) == {"a": "first", "b": "second"}
        assert_latents_complete(copy)


@pytest.mark.parametrize("nth", [1, 2])
def test_backup_while_the_writer_removes_what_is_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    real, calls = msa.bank.backup.written_durably, 0
    with MemoryBank.open(folder) as bank:

        def compacted_before(file: Path) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                add(bank, document("c", "third", 4))
                bank.compact()
            return real(file)

        monkeypatch.setattr(msa.bank.backup, "written_durably", compacted_before)
        bank.backup(tmp_path / "copy")
    with MemoryBank.open(tmp_path / "copy") as copy:
        assert (copy.verify(), copy.version) == ([], 5)
        assert list(contents(copy)) == ["a", "b", "c"]
        assert_latents_complete(copy)


@pytest.mark.parametrize("change", ["compact", "merge"])
def test_compaction_between_a_readers_listing_and_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    import msa.bank.opening as module

    real = module.newest_manifest
    with MemoryBank.open(folder) as bank:

        def compact_after(*args: Any) -> Any:
            monkeypatch.setattr(module, "newest_manifest", real)
            manifest = real(*args)
            if change == "compact":
                bank.compact()
            else:
                for number in range(5, 15):
                    add(bank, document("c", "text", number))
            return manifest

        with MemoryBank.open(folder, read_only=True) as reader:
            add(bank, document("z", "third", bank.next_number))
            monkeypatch.setattr(module, "newest_manifest", compact_after)
            assert contents(reader) == contents(bank)
            assert_latents_complete(reader)
            assert reader.version == bank.version


def test_spec_of_the_folder_wins(folder: Path) -> None:
    with MemoryBank.open(folder, read_only=True) as bank:
        assert (bank.spec, bank.fingerprint, bank.read_only) == (SPEC, FINGERPRINT, True)


def test_a_version_that_is_used_again_after_it_was_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryBank.open(folder) as bank, MemoryBank.open(folder, read_only=True) as reader:
        seen = []

        def fails(_: Path) -> None:
            seen.append(list(contents(reader)))
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("msa.bank.manifest.fsync_folder", fails)
            with pytest.raises(BankError, match="Input/output error"):
                add(bank, document("gone", "third", 4))
        assert seen == [["a", "b", "gone"]]
        add(bank, document("c", "third", 4))
        for each in (bank, reader):
            assert (each.version, list(contents(each))) == (3, ["a", "b", "c"])
            assert_latents_complete(each)


def test_a_folder_that_is_deleted_and_made_anew(folder: Path) -> None:
    with MemoryBank.open(folder, read_only=True) as reader:
        assert list(contents(reader)) == ["a", "b"]
        shutil.rmtree(folder)
        with new_bank(folder) as bank:
            add(bank, document("c", "first", 1))
            add(bank, document("d", "second", 2))
            assert reader.version == bank.version == 2
            assert list(contents(reader)) == ["c", "d"]
            assert_latents_complete(reader)
        shutil.rmtree(folder)
        MemoryBank.create(folder, fingerprint="sha256:bb", spec=SPEC).close()
        with pytest.raises(BankMismatchError, match=f"sha256:bb, before by tiny with {FINGERPRINT}"):
            reader.list()
