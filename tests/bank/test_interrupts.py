"""An interrupt (Ctrl-C) at any line of a commit, merge or compaction leaves the state before or after."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from bank_helpers import assert_latents_complete, contents
from disk_faults import NEW, OLD, assert_nothing_left, change, prepare

import msa.bank.commit
from msa.bank import MemoryBank

PACKAGE = str(Path(msa.bank.commit.__file__).parent)
EVERY = 331  # lines


class Interrupt:
    """A trace function that raises ``KeyboardInterrupt`` at the n-th line run in the bank's modules."""

    def __init__(self, nth: int) -> None:
        self.nth, self.lines = nth, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        if self.lines == self.nth:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.line


def interrupted(nth: int, work: Callable[[], object]) -> bool:
    """Whether the work was interrupted at the n-th line; it had fewer otherwise."""
    before = sys.gettrace()
    sys.settrace(Interrupt(nth))
    try:
        work()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("work", "after"), [(change, NEW), (MemoryBank.compact, OLD)], ids=["change", "compact"])
def test_each_line_can_be_the_last(tmp_path: Path, work: Callable[[MemoryBank], Any], after: dict[str, str]) -> None:
    prepare(tmp_path / "before")
    nth, folder, found = 1, tmp_path / "mem", set()
    while True:
        shutil.copytree(tmp_path / "before", folder)
        with MemoryBank.open(folder) as bank:
            stopped = interrupted(nth, lambda bank=bank: work(bank))  # type: ignore[misc]
            found.add(tuple(contents(bank).items()))
        with MemoryBank.open(folder) as bank:
            assert contents(bank) in (OLD, after), f"line {nth}"
            assert_latents_complete(bank)
            assert bank.verify() == [], f"line {nth}"
        assert_nothing_left(folder)
        shutil.rmtree(folder)
        if not stopped:
            break
        nth += EVERY
    assert nth > 10 * EVERY
    assert len(found) == 1 + (after != OLD)


def test_an_interrupt_between_the_rename_and_its_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is in place then, so the files that it names must stay."""
    prepare(tmp_path / "mem")
    real = msa.bank.commit.write_manifest

    def write(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    with MemoryBank.open(tmp_path / "mem") as bank:
        monkeypatch.setattr(msa.bank.commit, "write_manifest", write)
        with pytest.raises(KeyboardInterrupt):
            change(bank)
        monkeypatch.undo()
        assert contents(bank) == NEW
        assert_latents_complete(bank)
    assert_nothing_left(tmp_path / "mem")
