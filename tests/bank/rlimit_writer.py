"""Commit and compact under every limit on the size of a file, from nothing to enough: a full disk, without root.

``python tests/bank/rlimit_writer.py FOLDER STEP``, FOLDER not existing yet, STEP in bytes.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bank_helpers import add, assert_latents_complete, contents, document, new_bank
from disk_faults import NEW, OLD, assert_nothing_left, change, prepare

from msa.bank import MemoryBank
from msa.errors import BankError

LONG = {"long": "many words of a long text " * 2000}


def limited(num_bytes: int, work: Callable[[], object]) -> bool:
    """Do work while no file may grow beyond so many bytes; whether it could be done."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
    try:
        work()
        return True
    except BankError as error:
        assert "File too large" in str(error) or "disk" in str(error) or "full" in str(error), error  # noqa: PT017
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main(root: Path, step: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    root.mkdir()
    prepare(root / "small")
    with new_bank(root / "large") as bank:
        add(bank, document("long", LONG["long"], 1, 5))
        bank.commit(delete=["absent"])
        add(bank, document("d0", "text", 6))
    outcomes: Counter[tuple[str, bool]] = Counter()
    for name, work, before, after in (
        ("small", change, OLD, NEW),
        ("small", lambda bank: bank.compact(), OLD, OLD),
        ("large", lambda bank: bank.compact(), {**LONG, "d0": "text"}, {**LONG, "d0": "text"}),
    ):
        limit, done = 0, False
        while not done:
            folder = root / "limited"
            shutil.copytree(root / name, folder)
            with MemoryBank.open(folder) as bank:
                done = limited(limit, lambda work=work, bank=bank: work(bank))
                assert contents(bank) == (after if done else before), f"{name}: limit {limit:,}"
                assert bank.verify() == [], f"{name}: limit {limit:,}: {bank.verify()}"
                assert_latents_complete(bank)
                add(bank, document("next", "next", bank.next_number))
                assert contents(bank) == {**(after if done else before), "next": "next"}
            assert_nothing_left(folder)
            shutil.rmtree(folder)
            outcomes[name, done] += 1
            limit += step
    print(dict(outcomes))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
