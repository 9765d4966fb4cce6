"""Where a result was made and by what: machine, versions, commit, date and command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def version_stamp() -> dict[str, str]:
    """Date and commit, of what a run leaves while it goes on."""
    return {"date": date.today().isoformat(), "commit": _commit()}


def environment(device: str | None = None) -> dict[str, Any]:
    """Machine, versions, commit, date and command of a result.

    Args:
        device: kind of the model's device (``cpu``, ``cuda``, …); None: a GPU where there is one.
    """
    return {
        **version_stamp(),
        "machine": _processor(),
        "threads": torch.get_num_threads(),
        "device": _device_name(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("memory-sparse-attention", "torch", "transformers")},
        "command": _command(),
    }


def _device_name(kind: str) -> str:
    """A GPU's own name; others are named by their kind."""
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _command() -> str:
    """The command line as a user would give it: ``msa eval …``, ``python script.py …`` or ``python -m package …``."""
    program, *arguments = sys.argv
    path = Path(program)
    begin = [path.name]
    if path.suffix == ".py":
        begin = ["python", "-m", path.parent.name] if path.name == "__main__.py" else ["python", program]
    return shlex.join([*begin, *arguments])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.machine()


def _commit() -> str:
    """The commit of the checkout this package runs from; an empty string for an installed one."""
    try:
        run = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()
