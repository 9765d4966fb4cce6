from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bank_helpers import add, document, new_bank

from msa.bank import MemoryBank


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with new_bank(tmp_path / "mem") as bank:
        yield bank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed memory of two segments."""
    with new_bank(tmp_path / "mem") as bank:
        add(bank, document("a", "first", 1))
        add(bank, document("b", "second", 2, 2))
    return tmp_path / "mem"
