"""Memories written by earlier releases stay readable; a folder here is never regenerated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bank_helpers import FINGERPRINT, SPEC, add, assert_latents_complete, document

from msa.bank import MemoryBank
from msa.errors import BankFormatError

FOLDERS = Path(__file__).parent / "historical_banks"


@pytest.mark.parametrize("read_only", [False, True])
def test_version_1_was_never_released(tmp_path: Path, read_only: bool) -> None:
    shutil.copytree(FOLDERS / "v1", tmp_path / "mem")
    before = {file: file.stat().st_size for file in (tmp_path / "mem").rglob("*")}
    with pytest.raises(BankFormatError, match=r"development version, in format 1.*reads format 2.*Add its documents"):
        MemoryBank.open(tmp_path / "mem", fingerprint=FINGERPRINT, read_only=read_only)
    assert {file: file.stat().st_size for file in (tmp_path / "mem").rglob("*")} == before


def test_version_2(tmp_path: Path) -> None:
    """An update, a deletion and a change of metadata, one segment each."""
    shutil.copytree(FOLDERS / "version_2", tmp_path / "mem")
    first = document("a", "naïve 日本 😀\x00", 5, 2, {"lang": "fr"})
    third = document("c", "third", 4, metadata={"year": 2025})
    with MemoryBank.open(tmp_path / "mem", fingerprint=FINGERPRINT) as bank:
        assert bank.spec == SPEC
        assert bank.verify() == []
        assert bank.list() == [first, third]
        assert [*bank.ids()] == ["a", "c"]
        assert (bank.get("a"), bank.get("b"), bank.get("c")) == (first, None, third)
        assert bank.content_hashes(["a", "b", "c"]) == {"a": first.content_hash, "c": third.content_hash}
        assert (bank.version, bank.next_number, len(bank.segments())) == (3, 7, 3)
        assert bank.live_numbers().tolist() == [4, 5, 6]
        assert bank.matching_numbers({"lang": "fr"}).tolist() == [5, 6]
        assert bank.matching_numbers({"year": [2024, 2025.0]}).tolist() == [4]
        assert [number for number, _ in bank.matches("third OR naïve OR words", 9)] == [4, 5]
        assert [part.text for part in bank.parts([5, 6])] == ["naïve", " 日本 😀\x00"]
        assert_latents_complete(bank)
        add(bank, document("d", "new", 7))
        bank.compact()
        assert bank.verify() == []
        assert bank.list() == [first, third, document("d", "new", 7)]
        assert_latents_complete(bank)


def test_version_2_falls_back(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "version_2", tmp_path / "mem")
    (tmp_path / "mem" / "manifest-000000000003.json").write_bytes(b"")
    with MemoryBank.open(tmp_path / "mem") as bank:
        assert bank.get("c") == document("c", "third", 4, metadata={"year": 2024, "tags": ["x", None]})
        assert bank.get("b") is None
        # its terms have no row for a member of a list
        for tags in ("x", None, ["y", "x"], [["x", None]]):
            assert bank.matching_numbers({"tags": tags}).tolist() == [4]
        for tags in ("y", [], ["y", ["x"]]):
            assert bank.matching_numbers({"tags": tags}).tolist() == []
