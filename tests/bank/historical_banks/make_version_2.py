"""How ``version_2`` was made, once; a later format gets a folder and a script of its own.

``python tests/bank/historical_banks/make_version_2.py FOLDER``, FOLDER not existing yet. SQLite's pages are made small,
so that the folder is.
"""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from bank_helpers import FINGERPRINT, SPEC, add, document

from msa.bank import MemoryBank


def connect(*args: Any, _real: Any = sqlite3.connect, **keywords: Any) -> sqlite3.Connection:
    connection = _real(*args, **keywords)
    connection.execute("PRAGMA page_size = 512")
    return connection  # type: ignore[no-any-return]


def main(folder: Path) -> None:
    with (
        mock.patch("sqlite3.connect", connect),
        MemoryBank.create(folder, fingerprint=FINGERPRINT, spec=SPEC) as bank,
    ):
        third = document("c", "third", 4, metadata={"year": 2024, "tags": ["x", None]})
        add(bank, document("a", "old words", 1, 2), document("b", "to be deleted", 3), third)
        add(bank, document("a", "naïve 日本 😀\x00", 5, 2, {"lang": "fr"}), delete=["b"])
        bank.commit(put=[replace(third, metadata={"year": 2025})])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
