"""What tests of several ranks share: a script run in processes of its own, and results that are equal but for noise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def run_script(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that starts ranks and writes what they saw into ``folder``; it can import what tests can."""
    paths = [str(script.parent.parent), *filter(None, [os.getenv("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def assert_same(found: Any, expected: Any, varying: Callable[[dict[str, Any]], set[str]]) -> None:
    """Two values of JSON: equal but for the keys that ``varying`` names of an object; scores up to their last bits."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - varying(expected):
            assert_same(found[key], expected[key], varying)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, varying)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)
