"""Kill a writer again and again at random moments and compare the folder with what it acknowledged.

Run by test_kill.py in a process of its own, because it forks. Every commit's content follows from its index, so
the expected state after any number of commits is known.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from bank_helpers import add, assert_latents_complete, contents, document, new_bank

from msa.bank import MemoryBank


def text_of(index: int) -> str:
    return f"text {index} " * (1 + 400 * (index % 5))


def expected_after(index: int) -> dict[str, str]:
    """The state after commits 1..index: each puts ``d{i % 7}`` and ``last``, and deletes ``d{(i + 3) % 7}``."""
    state: dict[str, str] = {}
    for i in range(1, index + 1):
        state[f"d{i % 7}"] = state["last"] = text_of(i)
        state.pop(f"d{(i + 3) % 7}", None)
    return state


def index_of(bank: MemoryBank) -> int:
    last = bank.get("last")
    return int(last.text.split()[1]) if last else 0


def write_for_ever(folder: Path, log: int) -> None:
    with MemoryBank.open(folder) as bank:
        index = index_of(bank)
        while True:
            index += 1
            number = bank.next_number
            add(
                bank,
                document(f"d{index % 7}", text_of(index), number, 3),
                document("last", text_of(index), number + 3),
                delete=[f"d{(index + 3) % 7}"],
            )
            os.write(log, f"{index}\n".encode())
            if index % 6 == 0:
                bank.compact()


def main(folder: Path, acknowledged: Path, kills: int) -> None:
    rng = random.Random(0)
    new_bank(folder).close()
    log = os.open(acknowledged, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for _ in range(kills):
        child = os.fork()
        if not child:
            try:
                write_for_ever(folder, log)
            finally:
                os._exit(1)
        end = time.monotonic() + rng.uniform(0.02, 0.25)
        with MemoryBank.open(folder, read_only=True) as reader:
            while time.monotonic() < end:
                state = contents(reader)
                assert state == expected_after(int(state["last"].split()[1]) if state else 0)
                time.sleep(0.005)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "the writer failed by itself"
            check(reader, acknowledged)  # a reader alone recovers from an interrupted commit
        with MemoryBank.open(folder) as bank:
            check(bank, acknowledged)
            assert bank.verify() == []


def check(bank: MemoryBank, acknowledged: Path) -> None:
    lines = acknowledged.read_text().split()
    promised = int(lines[-1]) if lines else 0
    found = index_of(bank)
    assert found in (promised, promised + 1), f"acknowledged {promised}, found {found}"
    assert contents(bank) == expected_after(found)
    assert bank.next_number == 1 + 4 * found
    assert_latents_complete(bank)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
