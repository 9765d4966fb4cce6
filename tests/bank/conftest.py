from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bank_helpers import new_bank

from msa.bank import MemoryBank


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with new_bank(tmp_path / "mem") as bank:
        yield bank
