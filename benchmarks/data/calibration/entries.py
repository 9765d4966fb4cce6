"""What every kind of calibration text shares: entries, their lengths, tables of questions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MIN_CHARACTERS, MAX_CHARACTERS = 200, 900

Entry = tuple[str, str]  # text, question


def read_table(name: str) -> dict[str, str]:
    """Name → question of a table beside this module, a file of ``name | question`` lines."""
    table = Path(__file__).with_name(name).read_text("utf-8")
    return dict(line.split(" | ", 1) for line in table.strip().split("\n"))


def fit(paragraphs: Iterable[str], limit: int, separator: str = "\n\n") -> str:
    """As many of the first paragraphs as are at most ``limit`` characters long together."""
    text = ""
    for paragraph in paragraphs:
        longer = f"{text}{separator}{paragraph}" if text else paragraph
        if len(longer) > limit:
            break
        text = longer
    return text
