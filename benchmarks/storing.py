"""How a benchmark ends: its result on standard output and, where asked for, in a file; and what made it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from msa.evaluation.environment import version_stamp


def made_by() -> dict[str, str]:
    """Date, commit and command of this run; an absolute path is told by its last name, for others have another one."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return {**version_stamp(), "command": shlex.join(["python", *words])}


def show_and_store(result: dict[str, Any], out: Path | None) -> None:
    """Print a result as JSON; ``out``: write the same there, too."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
