"""Results stored in ``benchmarks/results`` as Markdown: where each came from, tables, and numbers with units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# what measures what older files hold, which do not name their command
COMMANDS = {
    "encode_decode_2cpu_202611": "python benchmarks/encode_decode.py",
    "routing_memory_2cpu_202611": "python benchmarks/routing_memory.py",
    "bank_scale_2cpu_202611": "python benchmarks/bank_scale.py --folder F --tokens 1000000 10000000 100000000",
}


def load(name: str) -> dict[str, Any]:
    """One stored result."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def stored(name: str) -> bool:
    """Whether there is such a result."""
    return (RESULTS / f"{name}.json").is_file()


def link(name: str) -> str:
    """To a stored result, from a page in docs/."""
    return f"[`{name}.json`](../benchmarks/results/{name}.json)"


def origin(name: str) -> str:
    """Command, machine, date and commit; what of them the file does not name is said."""
    content = load(name)
    made = content.get("environment", content)
    machine = made["machine"] + (f", {made['threads']} threads" if "threads" in made else "")
    command = content.get("command") or made.get("command")
    when = f"{made['date']}{unnamed(command, made.get('commit'))}"
    return f"{link(name)}: `{command or COMMANDS[name]}`; {machine}; {when}."


def unnamed(command: str | None, commit: str | None) -> str:
    """The commit, and what of both a file does not name.

    >>> unnamed("python x.py", "abc"), unnamed("python x.py", ""), unnamed(None, None)
    (', commit abc', ' (the file names no commit)', ' (the file names no command and no commit)')
    """
    missing = [what for what, found in (("command", command), ("commit", commit)) if not found]
    note = f" (the file names no {' and no '.join(missing)})" if missing else ""
    return (f", commit {commit}" if commit else "") + note


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all but the first column to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float) -> str:
    """Tokens in a second, three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(ratio: float) -> str:
    """A ratio with enough digits to be compared with a target."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"


def span(values: Iterable[float]) -> str:
    """The least and the greatest of several ratios."""
    ordered = sorted(values)
    return f"{times(ordered[0]).removesuffix('×')}–{times(ordered[-1])}"
