"""The tables of keys in docs/training.md, written from the dataclasses' docstrings and defaults.

    python benchmarks/training_reference.py

A test compares the page with them, so that a key that is added, changed or not described does not go unseen.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from msa.training.config import FileData, LoraConfig, Phase, TrainConfig
from msa.training.data.copies import CopyConfig
from msa.training.data.needles import NeedleConfig
from msa.training.data.recalls import RecallConfig
from msa.training.data.variables import VariableConfig
from msa.training.objective import LossWeights

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
BEGIN, END = "<!-- keys: written by benchmarks/training_reference.py -->\n", "<!-- end of keys -->\n"
SECTIONS = {
    "The run": TrainConfig,
    "Each of `phases`": Phase,
    "`files` of a phase: samples that you have": FileData,
    "`needles` of a phase: made-up memories of RULER's kind": NeedleConfig,
    "`variables` of a phase: chains of assignments": VariableConfig,
    "`copies` of a phase: rows to copy": CopyConfig,
    "`recalls` of a phase: rows of several questions about one text": RecallConfig,
    "`weights` of a phase's losses": LossWeights,
    "`lora`": LoraConfig,
}


def reference() -> str:
    """One table per dataclass."""
    return "\n".join(f"**{title}**\n\n{table(kind)}" for title, kind in SECTIONS.items())


def table(kind: type[Any]) -> str:
    """Keys, defaults and meanings of a dataclass as a Markdown table.

    Raises:
        ValueError: a field that its docstring does not describe, or something described that is no field.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    described = descriptions(kind)
    names = [name for group in described for name in group]
    if sorted(names) != sorted(fields):
        raise ValueError(f"{kind.__name__} has the fields {', '.join(fields)}, described are {', '.join(names)}")
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for group, meaning in described.items():
        defaults = list(dict.fromkeys(default(fields[name]) for name in group))
        lines.append(f"| {', '.join(f'`{name}`' for name in group)} | {', '.join(defaults)} | {meaning} |")
    return "\n".join(lines) + "\n"


def descriptions(kind: type[Any]) -> dict[tuple[str, ...], str]:
    """Names described together → what the docstring's ``Attributes`` say of them."""
    attributes = (inspect.getdoc(kind) or "").split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    found: dict[tuple[str, ...], str] = {}
    for entry in re.split(r"\n(?=    \w)", f"\n{attributes}")[1:]:
        names, meaning = entry.split(":", 1)
        found[tuple(names.strip().split(", "))] = " ".join(meaning.split()).replace("``", "`")
    return found


def default(field: dataclasses.Field[Any]) -> str:
    """A field's default as YAML would have it."""
    if field.default_factory is not dataclasses.MISSING:
        return "as below"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}`"


def updated(page: str) -> str:
    """The page with the tables as they are now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + reference() + "\n" + END + rest.split(END)[1]


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
