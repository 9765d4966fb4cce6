"""End a writer at every single step of a commit, merge, compaction and copy; what is left is the state before or after.

A process of its own, because it forks: ``python tests/bank/crash_points.py FOLDER [EVERY]``, FOLDER not existing yet;
at every so many steps only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bank_helpers import assert_latents_complete, contents, new_bank
from disk_faults import NEW, OLD, STEPS, assert_nothing_left, change, end_process, fault, prepare

from msa.bank import MemoryBank


def crash(step: str, nth: int, work: Callable[[], None]) -> bool:
    """Whether the work was ended at the n-th call of the step; it had fewer otherwise."""
    child = os.fork()
    if not child:
        with fault(step, nth, end_process):
            work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 77), f"{step} {nth}: the writer ended with {status}"
    return status == 77


def changed(folder: Path) -> None:
    with MemoryBank.open(folder) as bank:
        change(bank)


def compacted(folder: Path) -> None:
    with MemoryBank.open(folder) as bank:
        bank.compact()


def reopened(folder: Path) -> None:
    MemoryBank.open(folder).close()


def main(root: Path, every: int = 1) -> None:
    root.mkdir()
    prepare(root / "before")
    crashes: Counter[str] = Counter()
    for work, after in ((changed, NEW), (compacted, OLD), (reopened, OLD)):
        for step in STEPS.keys() - {"write tensors"}:  # many calls, all of them on one unfinished file
            nth = 1 - every
            while True:
                nth += every
                folder = root / "crashed"
                shutil.copytree(root / "before", folder)
                if work is reopened:  # recovery itself can be interrupted
                    for name in (".0000000099-00000000.documents.sqlite.tmp", "0000000099-00000000.documents.sqlite"):
                        (folder / "segments" / name).touch()
                    (folder / ".manifest-000000000099.json.tmp").touch()
                ended = crash(step, nth, lambda work=work, folder=folder: work(folder))
                for read_only in (True, False):
                    with MemoryBank.open(folder, read_only=read_only) as bank:
                        assert contents(bank) in (OLD, after), f"{work.__name__}: {step} {nth}"
                        assert_latents_complete(bank)
                        assert read_only or bank.verify() == [], f"{work.__name__}: {step} {nth}: {bank.verify()}"
                assert_nothing_left(folder)
                shutil.rmtree(folder)
                if not ended:
                    break
                crashes[work.__name__] += 1
    for step in STEPS:
        nth, folder = 1, root / "made"
        while crash(step, nth, lambda folder=folder: new_bank(folder).close()):
            with MemoryBank.open(folder) if MemoryBank.exists(folder) else new_bank(folder) as bank:
                assert (bank.verify(), contents(bank)) == ([], {}), f"creating: {step} {nth}"
            shutil.rmtree(folder)
            crashes["created"] += 1
            nth += 1
        shutil.rmtree(folder)
    print(dict(crashes))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
