"""Nothing acknowledged is lost, whenever the writer is killed or a file may grow no further.

Each script forks or limits its process, so it has one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(script: str, *arguments: object) -> str:
    file = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kill_at_random_moments(tmp_path: Path) -> None:
    run("kill_writer.py", tmp_path / "mem", tmp_path / "acknowledged", 15)
    assert len((tmp_path / "acknowledged").read_text().split()) > 15  # commits happened between the kills


def test_end_at_a_sample_of_steps(tmp_path: Path) -> None:
    assert "'changed': " in run("crash_points.py", tmp_path / "root", 4)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    assert "('large', False)" in run("rlimit_writer.py", tmp_path / "root", 36_000)
