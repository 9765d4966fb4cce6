"""One writer, whatever becomes of the lock file and of processes that were forked from a writer."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import add, contents, document, new_bank

from msa.bank import MemoryBank
from msa.errors import BankError, BankLockedError

# opens FOLDER, forks a child that outlives it by far, and is killed
ORPHAN = """
import os, signal, sys, time
from msa.bank import MemoryBank

bank = MemoryBank.open(sys.argv[1])
child = os.fork()
if not child:
    os.close(1)
    time.sleep(300)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_removed_lock_file_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MemoryBank.open(folder) as bank:
        (folder / "memory.lock").unlink()
        add(bank, document("c", "third", 4))
        assert "memory.lock was removed" in caplog.text
        assert bank.verify() == []
        with pytest.raises(BankLockedError, match="this process"):
            MemoryBank.open(folder)
        bank.compact()
    with MemoryBank.open(folder) as bank:
        assert list(contents(bank)) == ["a", "b", "c"]


def test_two_writers_after_the_lock_file_was_removed(folder: Path) -> None:
    with MemoryBank.open(folder) as first:
        (folder / "memory.lock").unlink()
        with MemoryBank.open(folder) as second:
            add(second, document("c", "third", 4))
            for change in (lambda: add(first, document("d", "fourth", 4)), first.compact):
                with pytest.raises(BankLockedError, match="is being written by process"):
                    change()
            assert contents(first) == contents(second)
        # the second has gone: the first goes on, from what it left
        add(first, document("d", "fourth", first.next_number))
        assert list(contents(first)) == ["a", "b", "c", "d"]
        assert first.verify() == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = rf"cannot be locked for writing \({os.strerror(number)}\).*read_only=True"
    with pytest.raises(BankError, match=said):
        MemoryBank.open(folder)
    with pytest.raises(BankError, match=said):
        new_bank(tmp_path / "new")
    with MemoryBank.open(folder, read_only=True) as reader:
        assert list(contents(reader)) == ["a", "b"]


def test_a_forked_child_is_no_writer(folder: Path) -> None:
    with MemoryBank.open(folder) as bank:
        child = os.fork()
        if not child:
            code = 1
            try:
                with bank:  # leaving must not give away what the parent holds
                    bank.commit(delete=["a"])
            except BankLockedError as error:
                code = 0 if f"process {os.getppid()}" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(BankLockedError):
            MemoryBank.open(folder)
        add(bank, document("c", "third", 4))
        assert list(contents(bank)) == ["a", "b", "c"]


def test_a_child_does_not_hold_the_lock_of_a_dead_writer(folder: Path) -> None:
    run = subprocess.run([sys.executable, "-c", ORPHAN, str(folder)], stdout=subprocess.PIPE, text=True, check=False)
    orphan = int(run.stdout)
    try:
        with MemoryBank.open(folder) as bank:
            assert list(contents(bank)) == ["a", "b"]
    finally:
        os.kill(orphan, 9)
