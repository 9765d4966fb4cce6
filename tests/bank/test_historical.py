"""Memories written by earlier releases stay readable; a folder here is never regenerated."""

from __future__ import annotations

import shutil
from pathlib import Path

from bank_helpers import FINGERPRINT, SPEC, add, assert_latents_complete, document

from msa.bank import MemoryBank

FOLDERS = Path(__file__).parent / "historical_banks"


def test_version_1(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "v1", tmp_path / "mem")
    with MemoryBank.open(tmp_path / "mem", fingerprint=FINGERPRINT) as bank:
        assert bank.spec == SPEC
        assert bank.verify() == []
        assert bank.list() == [document("a", "naïve 日本 😀", 1, 2, {"lang": "fr"}), document("c", "third", 4)]
        assert (bank.version, bank.next_number) == (3, 5)
        assert bank.matching_numbers({"lang": "fr"}).tolist() == [1, 2]
        assert_latents_complete(bank)
        add(bank, document("d", "new", 5))
        bank.compact()
        assert bank.verify() == []
