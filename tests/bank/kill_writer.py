"""Kill a writer again and again at random moments and compare the folder with what it acknowledged.

A process of its own, because it forks: ``python tests/bank/kill_writer.py FOLDER LOG KILLS``, the first two not existing
yet. Every commit's content follows from its index, so the expected state after any number of commits is known.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bank_helpers import assert_latents_complete, document, latents, new_bank

from msa.bank import MemoryBank, StoredDocument
from msa.bank.compact import FAN_OUT

Contents = dict[str, tuple[str, dict[str, Any]]]
COMPACT_EVERY = 50
# three states of at most a level of small segments each, and what they were merged into
MOST_FILES = 2 * 3 * FAN_OUT
MOST_BYTES = 8 << 20


def text_of(index: int) -> str:
    return f"text {index} " * (1 + 400 * (index % 11 == 5))


def apply(state: Contents, index: int) -> None:
    """What commit ``index`` does: add or update two documents, change the metadata of one, delete one."""
    state[f"d{index % 7}"] = text_of(index), {"index": index}
    state["last"] = text_of(index), {"index": index}
    if f"d{(index + 1) % 7}" in state:
        state[f"d{(index + 1) % 7}"] = state[f"d{(index + 1) % 7}"][0], {"seen": index}
    state.pop(f"d{(index + 3) % 7}", None)


_states: list[Contents] = [{}]


def expected_after(index: int) -> Contents:
    while len(_states) <= index:
        state = dict(_states[-1])
        apply(state, len(_states))
        _states.append(state)
    return _states[index]


def found_in(bank: MemoryBank) -> tuple[int, Contents]:
    """The index of the last commit that is in the memory, and all there is."""
    contents = {each.id: (each.text, each.metadata) for each in bank.list()}
    return (contents["last"][1]["index"] if contents else 0), contents


def write_for_ever(folder: Path, log: int) -> None:
    with MemoryBank.open(folder) as bank:
        index, _ = found_in(bank)
        while True:
            index += 1
            number = bank.next_number
            new: list[StoredDocument] = [
                document(f"d{index % 7}", text_of(index), number, 3, {"index": index}),
                document("last", text_of(index), number + 3, 1, {"index": index}),
            ]
            other = bank.get(f"d{(index + 1) % 7}")
            touched = [replace(other, metadata={"seen": index})] if other else []
            bank.commit(put=[*new, *touched], latents=latents(new), delete=[f"d{(index + 3) % 7}"])
            os.write(log, f"{index}\n".encode())
            if index % COMPACT_EVERY == 0:
                bank.compact()


def main(folder: Path, acknowledged: Path, kills: int) -> None:
    rng = random.Random(0)
    new_bank(folder).close()
    log = os.open(acknowledged, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    most_files = most_bytes = 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            try:
                write_for_ever(folder, log)
            finally:
                os._exit(1)
        with MemoryBank.open(folder, read_only=True) as reader:
            read_until(reader, acknowledged, rng.choice((0, 0, 1, 2, 4, 8)))
            time.sleep(rng.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "the writer failed by itself"
            check(reader, acknowledged)  # a reader alone sees a whole state after an interrupted commit
        with MemoryBank.open(folder) as bank:
            index = check(bank, acknowledged)
            os.write(log, f"{index}\n".encode())  # from here on it must not be lost, acknowledged or not
            assert bank.verify() == []
            version = bank.version
        files = [file for file in folder.rglob("*") if file.is_file()]
        most_files, most_bytes = (
            max(most_files, len(files)),
            max(most_bytes, sum(file.stat().st_size for file in files)),
        )
        assert most_files <= MOST_FILES, f"{most_files} files"
        assert most_bytes <= MOST_BYTES, f"{most_bytes:,} bytes"
    merges = version - index - 2 * (index // COMPACT_EVERY)
    assert merges > 0 or index < FAN_OUT, "small segments were never merged"
    print(  # noqa: T201
        f"{kills} kills, {index} commits, at least {merges} merges, {index // COMPACT_EVERY} compactions; "
        f"at most {most_files} files and {most_bytes:,} bytes"
    )


def read_until(reader: MemoryBank, acknowledged: Path, more: int) -> None:
    """Read what the writer writes until it has acknowledged so many commits more."""
    size, end = lines_in(acknowledged), time.monotonic() + 60
    while lines_in(acknowledged) < size + more:
        index, contents = found_in(reader)
        assert contents == expected_after(index)
        assert time.monotonic() < end, "the writer hangs"
        time.sleep(0.005)


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def check(bank: MemoryBank, acknowledged: Path) -> int:
    lines = acknowledged.read_text().split()
    promised = int(lines[-1]) if lines else 0
    found, contents = found_in(bank)
    assert found in (promised, promised + 1), f"acknowledged {promised}, found {found}"
    assert contents == expected_after(found)
    assert bank.next_number == 1 + 4 * found
    assert_latents_complete(bank)
    if found:
        (last,) = {part.document_id for part in bank.parts(bank.matching_numbers({"index": found}).tolist()[-1:])}
        assert last == "last"
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
