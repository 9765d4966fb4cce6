"""Any byte flipped, any file cut or gone: what is read is what was stored, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_files import flip_bytes, ruin, specimen


def test_flipped_bytes(tmp_path: Path) -> None:
    """A sample; damage_files.py as a script flips every byte."""
    outcomes = flip_bytes(specimen(tmp_path / "mem", commits=3), step=83, padding_step=4001)
    assert set(outcomes) == {"all readable", "some reads refused", "fell back"}


@pytest.mark.parametrize(("commits", "compact_after"), [(1, 0), (3, 0), (4, 3)])
def test_ruined_files(tmp_path: Path, commits: int, compact_after: int) -> None:
    outcomes = ruin(specimen(tmp_path / "mem", commits=commits, compact_after=compact_after), tmp_path)
    assert set(outcomes) == {"all readable", "some reads refused", "fell back"}
