"""What commands write: lines and tables on standard output, status and progress on standard error.

Styles, spinners and progress bars appear on terminals only, so that piped output is plain.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from msa.generation.types import Hit

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SNIPPET_CHARACTERS = 200


def is_terminal(stream: TextIO) -> bool:
    """Whether a person is looking at ``stream``."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False


def console(*, error: bool = False) -> Console:
    """A console that prints text as it is: no markup, no highlighting, no wrapping."""
    from rich.console import Console

    return Console(stderr=error, markup=False, highlight=False, emoji=False, soft_wrap=True)


def write(text: str) -> None:
    """Write to standard output as it is and show it at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_line(text: str = "", style: str | None = None) -> None:
    """Write one line to standard output; styled on a terminal."""
    if style and is_terminal(sys.stdout):
        console().print(text, style=style)
    else:
        sys.stdout.write(f"{text}\n")


def write_json(value: Any) -> None:
    r"""Write one JSON document: indented on a terminal, else on one line.

    What standard output has no characters for, and what would steer a terminal, is written as ``\uXXXX``.
    """
    indent = 2 if is_terminal(sys.stdout) else None
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def write_note(text: str) -> None:
    """Write one short line to standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody can be told: no reason to stop
        sys.stderr.write(one_line(text) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """``text`` without characters that would steer a terminal.

    >>> printable("red" + chr(27) + "[31m")
    'red\ufffd[31m'
    """
    return _CONTROL.sub("\ufffd", text)


def shown(text: str) -> str:
    """``text`` as it is when piped, :func:`printable` on a terminal."""
    return printable(text) if is_terminal(sys.stdout) else text


def one_line(text: str, limit: int | None = None) -> str:
    """``text`` on one line, at most ``limit`` characters long.

    >>> one_line("a text of two\\n lines", limit=9)
    'a text o…'
    """
    line = " ".join(printable(text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def shown_id(doc_id: str) -> str:
    r"""A document's id so that it can be given back: as it is if that is plain to see, else as a JSON string.

    Quoted are an empty id, one that begins with a double quote, and one with invisible or bidirectional characters, or
    with blanks at an end or in a row. :func:`msa.cli.options.document_id` reads both.

    >>> shown_id("notes/a b.md"), shown_id("two\nlines"), shown_id("a  b")
    ('notes/a b.md', '"two\\nlines"', '"a \\u0020b"')
    """
    if doc_id.isprintable() and doc_id == one_line(doc_id) and doc_id and doc_id[0] != '"':
        return doc_id
    return json.dumps(doc_id).replace("  ", r" \u0020")


def snippet(text: str) -> str:
    """The beginning of a document, on one line."""
    return one_line(text[: 2 * _SNIPPET_CHARACTERS], _SNIPPET_CHARACTERS)


def write_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), whole: int = 0) -> None:
    """Write rows of cells in aligned columns; on a terminal a line ends where the window does.

    Args:
        rows: cells, the same number in each row.
        right: columns aligned to the right.
        whole: so many first columns are shown in full, also where that needs a longer line.
    """
    from rich.cells import cell_len, set_cell_size

    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*cells, strict=True)]
    window = console().width if is_terminal(sys.stdout) else None
    for row in cells:
        padded = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if index in right else cell + space)
        line = "  ".join(padded).rstrip()
        least = cell_len("  ".join(padded[:whole]).rstrip())
        if window and cell_len(line) > window > least + 2:
            line = set_cell_size(line, window - 1) + "…"
        sys.stdout.write(line + "\n")


def write_fields(fields: Mapping[str, Any]) -> None:
    """Write ``name  value`` lines."""
    write_table([[name, value if isinstance(value, str) else f"{value:,}"] for name, value in fields.items()])


def place_of(hit: Hit) -> str:
    """Title or path of a hit, and which part of the document it is when that was cut, such as
    ``A (part 2 of 3, from character 1,500)``.
    """
    name = hit.title if hit.title != hit.id else ""
    if hit.parts == 1:
        return name
    place = f"part {hit.part} of {hit.parts}, from character {hit.offset:,}"
    return f"{name} ({place})" if name else place


def size(num_bytes: int) -> str:
    """Bytes for people.

    >>> size(0), size(2048), size(5_000_000)
    ('0 B', '2.0 KiB', '4.8 MiB')
    """
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "round"), count(2000, "document")
    ('1 round', '2,000 documents')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextlib.contextmanager
def working(message: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with ``message`` on standard error, if that is a terminal.

    Yields:
        A function that shows another message.
    """
    if not is_terminal(sys.stderr):
        yield lambda message: None
        return
    with console(error=True).status(message) as status:
        yield lambda message: status.update(one_line(message))
