"""Nothing acknowledged is lost when the writer is killed at any moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_kill_at_random_moments(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_writer.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "mem"), str(tmp_path / "acknowledged"), "15"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "acknowledged").read_text().split()) > 15  # commits happened between the kills
