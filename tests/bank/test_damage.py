"""What damage is found, what of the rest stays, and how a memory is healed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import (
    add,
    assert_latents_complete,
    change_manifest,
    contents,
    document,
    new_bank,
    newest_manifest,
)

from msa.bank import MemoryBank
from msa.bank.compact import FAN_OUT
from msa.errors import (
    BankCorruptError,
)


def files_of(folder: Path, ending: str) -> list[Path]:
    """Files of the segments, oldest first."""
    return sorted((folder / "segments").glob(f"*.{ending}"))


@pytest.mark.parametrize(
    "changes", [{"spec": {}}, {"segments": [{}]}, {"segments": 3}, {"fingerprint": None, "spec": None}, {"version": 7}]
)
def test_manifest_that_makes_no_sense(folder: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    change_manifest(folder, **changes)
    with MemoryBank.open(folder, read_only=True) as bank:
        assert contents(bank) == {"a": "first"}
    assert newest_manifest(folder).name in caplog.text


def test_damaged_manifest_falls_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = newest_manifest(folder)
    file.write_bytes(file.read_bytes().replace(b"first", b"fisrt")[:-2])
    with caplog.at_level(logging.WARNING), MemoryBank.open(folder) as bank:
        assert contents(bank) == {"a": "first"}
        assert any(str(file) in problem for problem in bank.verify())
        assert f"{file} is damaged" in caplog.text
        assert "Version 1 is used instead" in caplog.text
        # work goes on from there, and the damaged manifest is soon replaced
        for i in range(3):
            add(bank, document(f"c{i}", "third", bank.next_number))
        assert bank.version == 5
        assert not file.exists()
        assert bank.verify() == []
        assert list(contents(bank)) == ["a", "c0", "c1", "c2"]


@pytest.mark.parametrize("compacted", [False, True])
def test_what_a_damaged_manifest_committed_stays_until_it_is_restored(folder: Path, compacted: bool) -> None:
    if compacted:
        with MemoryBank.open(folder) as bank:
            bank.compact()
            add(bank, document("c", "third", 4))
    file = newest_manifest(folder)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + b"]")
    with MemoryBank.open(folder) as bank:  # a writer sweeps the folder
        assert len(bank) == (2 if compacted else 1)
        assert len(bank.verify()) == 1
    file.write_bytes(sound)
    with MemoryBank.open(folder) as bank:
        assert list(contents(bank)) == (["a", "b", "c"] if compacted else ["a", "b"])
        assert bank.verify() == []
        assert_latents_complete(bank)


@pytest.mark.parametrize("commits", [1, 2, 3, 5])
@pytest.mark.parametrize("compacted", [False, True])
def test_lost_manifest_is_named(
    tmp_path: Path, commits: int, compacted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with new_bank(tmp_path / "mem") as bank:
        for number in range(1, commits + 1):
            add(bank, document(f"d{number}", "text", number))
        if compacted:
            bank.compact()
    for lost in sorted((tmp_path / "mem").glob("manifest-*.json")):
        folder = tmp_path / lost.stem
        shutil.copytree(tmp_path / "mem", folder)
        is_newest = lost.name == newest_manifest(folder).name
        (folder / lost.name).unlink()
        caplog.clear()
        with MemoryBank.open(folder) as bank:
            assert any(lost.name in problem for problem in bank.verify())
            assert lost.name in caplog.text
            assert len(bank) == commits - (is_newest and not compacted)
            add(bank, document("new", "text", bank.next_number))
            bank.compact()
            assert bank.verify() == []


def test_lost_manifests(folder: Path) -> None:
    for file in folder.glob("manifest-*.json"):
        file.unlink()
    with pytest.raises(BankCorruptError, match="manifests .* are missing"):
        MemoryBank.open(folder)
    with pytest.raises(BankCorruptError, match="Restore"):
        new_bank(folder)


def flip(file: Path, find: bytes, position: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(find) + position] ^= 1
    file.write_bytes(data)


def test_damaged_latents_are_named_and_added_again(folder: Path) -> None:
    file = files_of(folder, "safetensors")[1]
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
        assert contents(bank) == {"a": "first", "b": "second", "c": "third"}
        with pytest.raises(BankCorruptError, match="was removed"):
            bank.backup(folder.parent / "copy")
        assert not (folder.parent / "copy").exists()
        add(bank, document("b", "second", 5, 2))
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert contents(bank) == {"a": "first", "b": "second", "c": "third"}
        assert_latents_complete(bank)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def ruin_header(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


def rename_tensor(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"layers.1.keys", b"layers.9.keys"))


@pytest.mark.parametrize("damage", [truncate, Path.unlink, ruin_header, rename_tensor])
def test_unreadable_latents_are_named_and_the_rest_stays(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = files_of(folder, "safetensors")
    damage(bad)
    with caplog.at_level(logging.WARNING), MemoryBank.open(folder) as bank:
        assert bad.name in caplog.text
        (problem,) = bank.verify()
        assert str(bad) in problem
        assert "'a'" in problem
        assert [segment.name for segment in bank.segments() if segment.has_latents] == [good.name.split(".")[0]]
        # texts stay; that the latents are lost shows in the content hash, so that adding encodes again
        assert contents(bank) == {"a": "first", "b": "second"}
        assert (bank.content_hash("a"), bank.content_hash("b")) == (None, "hash of second")
        add(bank, document("a", "first", 4))
        assert bank.content_hash("a") == "hash of first"
        with pytest.raises(BankCorruptError, match=f"{bad.name}.*drop_damaged"):
            bank.compact()
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert list(contents(bank)) == ["a", "b"]
        assert_latents_complete(bank)


def test_compaction_keeps_texts_whose_latents_are_lost(folder: Path) -> None:
    files_of(folder, "safetensors")[0].unlink()
    with MemoryBank.open(folder) as bank:
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert contents(bank) == {"a": "first", "b": "second"}
        lost = bank.get("a")
        assert lost is not None
        assert (lost.parts, lost.content_hash) == ((), "")
        assert_latents_complete(bank)
        add(bank, document("a", "first", 4))
        assert contents(bank) == {"a": "first", "b": "second"}
        assert bank.live_numbers().tolist() == [2, 3, 4]


@pytest.mark.parametrize("damage", [truncate, Path.unlink, ruin_header])
def test_unreadable_texts_are_named_and_the_rest_stays(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    bad, _ = files_of(folder, "sqlite")
    damage(bad)
    with caplog.at_level(logging.WARNING), MemoryBank.open(folder) as bank:
        assert bad.name in caplog.text
        assert any(str(bad) in problem for problem in bank.verify())
        assert bank.get("b") == document("b", "second", 2, 2)
        for read in (lambda: bank.get("a"), bank.list, lambda: list(bank.ids())):  # nothing is left out silently
            with pytest.raises(BankCorruptError, match=bad.name):
                read()
        assert bank.content_hash("a") is None
        add(bank, document("a", "first", 4))
        assert bank.get("a") == document("a", "first", 4)
        with pytest.raises(BankCorruptError, match=f"{bad.name}.*drop_damaged"):
            bank.compact()
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert contents(bank) == {"a": "first", "b": "second"}
        assert_latents_complete(bank)


def test_deleted_and_replaced_stay_so_when_the_file_that_says_so_is_damaged(tmp_path: Path) -> None:
    with new_bank(tmp_path / "mem") as bank:
        add(bank, document("a", "old", 1), document("b", "secret", 2), document("c", "third", 3))
        add(bank, document("a", "new", 4), delete=["b"])
    for ending in ("sqlite", "safetensors"):
        folder = tmp_path / ending
        shutil.copytree(tmp_path / "mem", folder)
        files_of(folder, ending)[1].unlink()
        with MemoryBank.open(folder) as bank:
            assert ("b" in bank, bank.live_numbers().tolist()) == (False, [3] if ending == "sqlite" else [3, 4])
            assert bank.get("c") == document("c", "third", 3)
            bank.compact(drop_damaged=True)
            assert contents(bank) == {"c": "third"} | ({} if ending == "sqlite" else {"a": "new"})


def test_both_files_of_a_segment_damaged(folder: Path) -> None:
    texts, vectors = files_of(folder, "sqlite")[1], files_of(folder, "safetensors")[1]
    texts.unlink()
    truncate(vectors)
    for read_only in (True, False):
        with pytest.raises(BankCorruptError) as caught:
            MemoryBank.open(folder, read_only=read_only)
        assert texts.name in str(caught.value)
        assert vectors.name in str(caught.value)


def test_damaged_text_is_named_and_added_again(folder: Path) -> None:
    file = files_of(folder, "sqlite")[1]
    flip(file, b"second")
    with MemoryBank.open(folder) as bank:
        assert any("'b'" in problem and str(file) in problem for problem in bank.verify())
        for read in (lambda: bank.get("b"), bank.list, lambda: bank.parts([2])):
            with pytest.raises(BankCorruptError, match=f"{file.name}.*'b'"):
                read()
        assert bank.get("a") == document("a", "first", 1)
        assert (bank.content_hash("b"), bank.content_hash("a")) == (None, "hash of first")
        assert "b" in bank
        add(bank, document("b", "second", 4, 2))
        assert contents(bank) == {"a": "first", "b": "second"}
        assert len(bank) == 2
        with pytest.raises(BankCorruptError, match=file.name):
            bank.compact()
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert contents(bank) == {"a": "first", "b": "second"}


@pytest.mark.parametrize("then", ["nothing", "update", "delete", "delete and add"])
@pytest.mark.parametrize("merged", ["not", "before restoring", "after restoring", "compacted"])
def test_texts_restored_after_they_were_added_again(
    folder: Path, then: str, merged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is listed twice, and what was changed or deleted meanwhile stays so."""
    # as if the oldest segment were too large to be merged with the others
    monkeypatch.setattr("msa.bank.compact.small_run", lambda infos: 1 if len(infos) > FAN_OUT else None)
    lost = files_of(folder, "sqlite")[0]
    copy = shutil.copy(lost, folder.parent / "copy")
    lost.unlink()
    expected = {"b": "second", "a": "first"}  # the new one has a place of its own
    with MemoryBank.open(folder) as bank:
        add(bank, document("a", "first", 4))
        if then == "update":
            add(bank, document("a", "changed", 5))
            expected["a"] = "changed"
        elif then != "nothing":
            bank.commit(delete=["a"])
            del expected["a"]
        if then == "delete and add":
            add(bank, document("a", "once more", 5))
            expected["a"] = "once more"
        if merged == "before restoring":
            fill(bank, expected)
    shutil.copy(copy, lost)
    with MemoryBank.open(folder, read_only=True) as reader, MemoryBank.open(folder) as bank:
        assert contents(bank) == contents(reader) == expected
        assert (len(bank), [*bank.ids()], "a" in bank) == (len(expected), [*expected], "a" in expected)
        assert 1 not in bank.live_numbers().tolist()
        if merged == "after restoring":
            fill(bank, expected)
        elif merged == "compacted":
            bank.compact()
        assert contents(bank) == contents(reader) == expected
        assert bank.verify() == []
        add(bank, document("a", "last", bank.next_number))
        assert contents(bank) == contents(reader) == expected | {"a": "last"}
        bank.commit(delete=["a"])
        assert "a" not in bank
        assert "a" not in reader
    with MemoryBank.open(folder) as bank:
        assert "a" not in bank
        bank.compact()
        assert list(contents(bank)) == [id_ for id_ in expected if id_ != "a"]
        assert_latents_complete(bank)


def fill(bank: MemoryBank, expected: dict[str, str]) -> None:
    """Commit until small segments have been merged, or would have been."""
    for _ in range(FAN_OUT):
        number = bank.next_number
        add(bank, document(f"n{number}", "new", number))
        expected[f"n{number}"] = "new"


def test_a_reader_that_still_reads_the_lost_texts_lists_them_once(folder: Path) -> None:
    with MemoryBank.open(folder, read_only=True) as reader:
        assert len(reader) == 2
        files_of(folder, "sqlite")[0].unlink()
        with MemoryBank.open(folder) as bank:
            add(bank, document("a", "first", 4))
            assert [*reader.ids()] == ["b", "a"]


def test_damaged_document_can_be_deleted(folder: Path) -> None:
    flip(files_of(folder, "sqlite")[1], b"second")
    with MemoryBank.open(folder) as bank:
        bank.commit(delete=["b"])
        assert contents(bank) == {"a": "first"}


def test_damage_never_makes_a_document_seem_absent(folder: Path) -> None:
    """Ids are looked up in a checked table: were they not, adding ``b`` again would give it a second place."""
    file = files_of(folder, "sqlite")[1]
    data = file.read_bytes()
    for index in range(data.count(b"b")):
        position = [i for i, byte in enumerate(data) if byte == ord("b")][index]
        file.write_bytes(data[:position] + b"x" + data[position + 1 :])
        with MemoryBank.open(folder, read_only=True) as bank:
            try:
                assert bank.get("b") == document("b", "second", 2, 2)
            except BankCorruptError as error:
                assert file.name in str(error)  # noqa: PT017
            assert "x" not in bank
            assert bank.content_hash("b") in (None, "hash of second")


@pytest.mark.parametrize("page", range(11))
def test_damaged_pages_of_texts(folder: Path, page: int) -> None:
    file = files_of(folder, "sqlite")[0]
    data = bytearray(file.read_bytes())
    data[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    assert len(data) == file.stat().st_size
    file.write_bytes(data)
    with MemoryBank.open(folder, read_only=True) as bank:
        problems = bank.verify()
        assert bank.get("b") == document("b", "second", 2, 2)
    assert problems
    assert all(file.name in problem and "\n" not in problem for problem in problems)
