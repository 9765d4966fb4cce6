"""Make the n-th call of something that touches the disk fail, or end the process there."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from bank_helpers import add, contents, document, new_bank

from msa.bank import MemoryBank
from msa.bank.compact import FAN_OUT

# what a commit, a merge, a compaction and a copy do to the disk, one call of Python's each
STEPS: dict[str, tuple[Any, str]] = {
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
    "make": (Path, "touch"),
    "write": (Path, "write_text"),
    "write tensors": (__import__("msa.bank.latents", fromlist=["_write"]), "_write"),
    "remove": (Path, "unlink"),
}
OLD = {f"d{i}": f"text {i}" for i in range(FAN_OUT - 1)}
NEW = {**{f"d{i}": OLD[f"d{i}"] for i in range(2, FAN_OUT - 1)}, "d0": "changed", "new": "new"}


def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def end_process(*_: Any) -> None:
    os._exit(77)


@contextlib.contextmanager
def fault(step: str, nth: int, action: Callable[..., None], *, for_good: bool = False) -> Iterator[list[int]]:
    """Do ``action`` in place of the n-th call of a step, and of every later one if ``for_good``; counts the calls."""
    owner, name = STEPS[step]
    real = getattr(owner, name)
    calls = [0]

    def call(*args: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth or (for_good and calls[0] > nth):
            action()
        return real(*args, **keywords)

    with mock.patch.object(owner, name, call):
        yield calls


def prepare(folder: Path) -> None:
    """A memory of as many small segments as it can have: the next commit merges them."""
    with new_bank(folder) as bank:
        for i, (id_, text) in enumerate(OLD.items()):
            add(bank, document(id_, text, i + 1))


def change(bank: MemoryBank) -> None:
    """One commit that updates, adds and deletes."""
    number = bank.next_number
    add(bank, document("d0", "changed", number, 2), document("new", "new", number + 2), delete=["d1"])


def assert_nothing_left(folder: Path) -> None:
    """Opened for writing the memory is sound and holds nothing else; it can be changed."""
    with MemoryBank.open(folder) as bank:
        assert bank.verify() == []
        assert not [*folder.rglob("*.tmp")]
        assert len([*folder.glob("manifest-*.json")]) <= 3
        before = contents(bank)
        add(bank, document("later", "later", bank.next_number))
        assert contents(bank) == {**before, "later": "later"}
        bank.compact()
        assert bank.verify() == []
        assert len([*(folder / "segments").iterdir()]) == 2
