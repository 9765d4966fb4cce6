"""Descriptions of Debian packages, each with a question of packages.txt."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from calibration.entries import Entry, read_table


def package_entries(translation: Path, excluded: set[str]) -> Iterator[Entry]:
    """A package's name, its short and its long description, as one document."""
    questions = read_table("packages.txt")
    if excluded & questions.keys():
        sys.exit(f"build_calibration.py: documents of the demo: {sorted(excluded & questions.keys())}")
    descriptions: dict[str, str] = {}
    for stanza in translation.read_text("utf-8").split("\n\n"):
        match = re.match(r"Package: (\S+)\n(?:.*\n)*?Description-en: ((?:.|\n)+)", stanza)
        if match and match[1] in questions:
            descriptions.setdefault(match[1], match[2])
    missing = sorted(questions.keys() - descriptions.keys())
    if missing:
        sys.exit(f"build_calibration.py: not in the Translation-en list: {missing}")
    for package, question in questions.items():
        short, _, long = descriptions[package].partition("\n")
        yield f"{package}: {short.rstrip('.!')}.\n\n{reflow(long)}", question


def reflow(long: str) -> str:
    """A long description without its line breaks, except between paragraphs and items of lists."""
    paragraphs: list[list[str]] = [[]]
    item_indent = 0
    for line in long.split("\n"):
        body = " ".join(line.split())
        if body in ("", "."):
            paragraphs.append([])
            continue
        lines = paragraphs[-1]
        indent = len(line) - len(line.lstrip())
        is_item = re.match(r"([*+o-]|\d+[.)])\s+", body) is not None
        in_list = bool(lines) and re.match(r"([*+o-]|\d+[.)])\s+", lines[-1]) is not None
        if is_item:
            item_indent = indent
        if not lines or is_item or (indent < item_indent if in_list else indent > 1):
            lines.append(body)
        else:
            lines[-1] += f" {body}"
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)
