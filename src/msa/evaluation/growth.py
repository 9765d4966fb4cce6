"""What a memory that grows holds, and what each size cost: one line of ``growth.jsonl`` a size, kept at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.environment import version_stamp
from msa.evaluation.line_file import BrokenLineError, LineFile

GROWTH_NAME = "growth.jsonl"
_BATCH_CHARACTERS = 1_000_000  # about four commits of a memory


def batches(documents: Iterable[tuple[str, str]], characters: int = _BATCH_CHARACTERS) -> Iterator[dict[str, str]]:
    """Documents in groups (id → text) of about so many characters: all that is held of a corpus at a time.

    >>> list(batches([("a", "xx"), ("b", "x"), ("c", "x")], characters=3))
    [{'a': 'xx', 'b': 'x'}, {'c': 'x'}]
    """
    batch: dict[str, str] = {}
    size = 0
    for name, text in documents:
        batch[name] = text
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def check_not_beyond(folder: Path, held: int, wanted: int, size: int) -> None:
    """Refuse a memory that holds more documents than a size that is to be asked.

    Raises:
        EvaluationError: it does.
    """
    if held > wanted:
        raise EvaluationError(
            f"the memory in {folder} holds {held:,} documents, more than the {wanted:,} of {size:,} tokens; "
            "a size can only be asked before the memory grows beyond it. Give another --out"
        )


def check_grown(folder: Path, held: int, wanted: int) -> None:
    """Refuse a memory that has grown to something else than a size.

    Raises:
        EvaluationError: it holds another number of documents.
    """
    if held != wanted:
        raise EvaluationError(
            f"the memory in {folder} holds {held:,} documents where {wanted:,} belong; "
            "it was made for something else. Give another --out"
        )


def note_growth(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add what a size cost to ``growth.jsonl``, with date and commit: a run may go on with another one."""
    with LineFile(folder / GROWTH_NAME) as file:
        file.append({**entry, **version_stamp()})


def read_growth(folder: Path) -> list[dict[str, Any]]:
    """What each size cost, in the order they were reached.

    Raises:
        EvaluationError: the file is damaged before its last line.
    """
    path = folder / GROWTH_NAME
    entries = []
    try:
        for number, entry in LineFile(path).read():
            if not isinstance(entry, dict) or "size" not in entry:
                raise BrokenLineError(number, "it names no size")
            entries.append(entry)
    except BrokenLineError as error:
        raise EvaluationError(f"{path} is damaged ({error}); remove the line that is not JSON") from error
    return entries
