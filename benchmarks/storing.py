"""How a benchmark ends: its result on standard output and, where asked for, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def show_and_store(result: dict[str, Any], out: Path | None) -> None:
    """Print a result as JSON; ``out``: write the same there, too."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
