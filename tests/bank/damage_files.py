"""Damage a memory byte by byte and file by file: what is then read is what was stored, or an error that names the file.

The tests take a sample; to flip every byte run ``python tests/bank/damage_files.py FOLDER``, FOLDER not existing yet;
with two numbers behind it only every so many of the bytes in use, and of the padding.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bank_helpers import FINGERPRINT, SPEC, document, latents

from msa.bank import MemoryBank, StoredDocument
from msa.errors import BankCorruptError, BankError

TINY = replace(SPEC, layers=(1,), num_key_value_heads=1, head_dim=2)
WORD = "word"

State = dict[str, StoredDocument]


class Specimen:
    """A closed memory with what it holds.

    Attributes:
        folder: of the memory.
        newest: its documents in order; previous: those of the state before; newest_manifest: its file name.
        segment_of: segment by document id; every_id: of all documents it ever held.
    """

    def __init__(self, folder: Path, states: list[State]) -> None:
        self.folder = folder
        self.newest_manifest = max(file.name for file in folder.glob("manifest-*.json"))
        self.newest = states[-1]
        self.previous = states[-2] if len(states) > 1 else {}
        self.every_id = sorted({id_ for state in states for id_ in state})
        with MemoryBank.open(folder, read_only=True) as bank:
            state = bank.state()
            names = [segment.name for segment in state.segments]
            ids = dict(zip(bank.ids(), state.place_segments.tolist(), strict=True))
            self.segment_of = {id_: names[index] for id_, index in ids.items()}
            assert {each.id: each for each in bank.list()} == self.newest
            assert bank.verify() == []

    @property
    def files(self) -> list[Path]:
        return sorted(file for file in self.folder.rglob("*") if file.is_file())


def specimen(folder: Path, *, commits: int = 3, compact_after: int = 0) -> Specimen:
    """A memory of an update, a deletion and a change of metadata, in one segment a commit."""
    first = [document("a", f"{WORD} one of a", 1, 2, {"n": 1}), document("b", f"{WORD} b", 3, 1, {"n": 1})]
    first += [document("c", f"{WORD} c", 4, metadata={"n": 2}), document("e", f"{WORD} e", 5, metadata={"n": 3})]
    changes: list[tuple[list[StoredDocument], list[str]]] = [
        (first, []),
        ([document("a", f"{WORD} two of a", 6, 2, {"n": 4})], ["b"]),
        ([replace(first[2], metadata={"n": 1, "new": [1, None]}), document("d", f"{WORD} d", 8)], []),
        ([document("f", f"{WORD} f", 9), document("e", f"{WORD} two of e", 10)], ["c"]),
    ]
    states: list[State] = [{}]
    with MemoryBank.create(folder, fingerprint=FINGERPRINT, spec=TINY) as bank:
        for index, (put, delete) in enumerate(changes[:commits], start=1):
            new = [each for each in put if each.parts[0].number >= bank.next_number]
            bank.commit(put=put, latents=latents(new, TINY), delete=delete)
            state = {**states[-1], **{each.id: each for each in put}}
            states.append({id_: each for id_, each in state.items() if id_ not in delete})
            if index == compact_after:
                bank.compact()
                states.append(states[-1])
    return Specimen(folder, states)


def check(memory: Specimen, damaged: Path, *, folder: Path | None = None, read_only: bool = True) -> str:
    """Open the damaged memory and read everything; how it went, in a word."""
    name = damaged.name
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("msa")
    logger.addHandler(handler)
    try:
        with MemoryBank.open(folder or memory.folder, read_only=read_only) as bank:
            fell_back = name == memory.newest_manifest
            expected = memory.previous if fell_back else memory.newest
            problems = bank.verify()
            if name != "memory.lock" or read_only:  # the writer has made it again
                assert any(name in problem for problem in problems), f"verify does not name {name}: {problems}"
            if fell_back:
                assert any(name in warning for warning in warnings), f"no warning about {name}: {warnings}"
            refused = _read_all(bank, memory, expected, name)
            return "fell back" if fell_back else "some reads refused" if refused else "all readable"
    except BankError as error:
        _assert_names(error, name)
        return "opening refused"
    finally:
        logger.removeHandler(handler)


def _assert_names(error: BankError, name: str) -> None:
    assert name in str(error), f"the error does not name {name}: {error}"


def _read_all(bank: MemoryBank, memory: Specimen, expected: State, damaged: str) -> int:
    """Compare all that can be read; how much could not."""
    refused = 0

    def reading(call: Callable[[], Any]) -> Any:
        nonlocal refused
        try:
            return call()
        except BankCorruptError as error:
            _assert_names(error, damaged)
            refused += 1
            return None

    for id_ in memory.every_id:
        before = refused
        found = reading(lambda id_=id_: bank.get(id_))
        if refused == before:
            assert found == expected.get(id_), f"get({id_!r}) gave {found}"
        elif id_ in expected and expected is memory.newest:
            assert damaged.startswith(memory.segment_of[id_]), f"{id_!r} is not in {damaged}, it must stay readable"
        assert id_ in expected or id_ not in bank
    listed = reading(bank.list)
    assert listed is None or listed == [*expected.values()], f"list() gave {listed}"
    ids = reading(lambda: [*bank.ids()])
    assert ids is None or ids == [*expected], f"ids() gave {ids}"
    owner = {part.number: (each, part) for each in expected.values() for part in each.parts}
    for number in owner:
        before = refused
        try:
            found = reading(lambda number=number: bank.parts([number]))
        except KeyError:
            assert listed is None, f"part {number} is gone"
            continue
        if refused == before:
            each, part = owner[number]
            assert (found[0].document_id, found[0].part) == (each.id, part)
            assert (found[0].text, found[0].metadata) == (each.text[part.start : part.end], each.metadata)
    assert owner.keys() >= set(bank.live_numbers().tolist())
    reading(lambda: bank.matches(WORD, 10))
    reading(lambda: bank.matching_numbers({"n": 1}))
    sound = reading(lambda: bank.sound_documents(memory.every_id)) or {}
    assert all(expected[id_] == each for id_, each in sound.items())
    assert bank.content_hashes(memory.every_id).keys() <= expected.keys()
    return refused


def flip_bytes(memory: Specimen, step: int = 1, padding_step: int = 1) -> Counter[str]:
    """Flip bits in one byte after the other; how often it went how.

    Args:
        memory: undamaged, as it is again afterwards.
        step: every so many bytes of those in use.
        padding_step: every so many bytes of zeros far from any other, most of an SQLite file.
    """
    outcomes: Counter[str] = Counter()
    for file in memory.files:
        with open(file, "rb+", buffering=0) as stream:
            for offset in _offsets(file.read_bytes(), step, padding_step):
                (byte,) = os.pread(stream.fileno(), 1, offset)
                flipped = byte ^ random.Random(offset).randrange(1, 256)
                os.pwrite(stream.fileno(), bytes([flipped]), offset)
                try:
                    outcomes[check(memory, file)] += 1
                except BaseException as error:
                    error.add_note(f"{file.name}: byte {offset} was {byte}, set to {flipped}")
                    raise
                finally:
                    os.pwrite(stream.fileno(), bytes([byte]), offset)
    return outcomes


def _offsets(data: bytes, step: int, padding_step: int) -> list[int]:
    in_use = [any(data[max(0, offset - 8) : offset + 9]) for offset in range(len(data))]
    used = [offset for offset, is_used in enumerate(in_use) if is_used]
    padding = [offset for offset, is_used in enumerate(in_use) if not is_used]
    return sorted(used[::step] + padding[::padding_step])


def ruin_files(memory: Specimen) -> Iterator[tuple[Path, str, Callable[[Path], object]]]:
    """Each file with each way to ruin it as a whole."""
    for file in memory.files:
        size = file.stat().st_size
        for length in sorted({0, size // 2, size - 1} & {*range(size)}):
            yield file, f"cut to {length}", lambda path, length=length: os.truncate(path, length)
        if size:  # the lock file is empty while nobody holds it
            yield file, "appended to", lambda path: path.write_bytes(path.read_bytes() + b"\0")
            yield file, "zeroed", lambda path: path.write_bytes(bytes(path.stat().st_size))
        yield file, "deleted", lambda path: path.unlink()


def ruin(memory: Specimen, copies: Path) -> Counter[str]:
    """Ruin each file in each way in a copy of its own, for a reader and then a writer, which must be able to go on."""
    outcomes: Counter[str] = Counter()
    for index, (file, how, action) in enumerate(ruin_files(memory)):
        for read_only in (True, False):
            copy = copies / f"{index}-{read_only}"
            shutil.copytree(memory.folder, copy)
            damaged = copy / file.relative_to(memory.folder)
            action(damaged)
            try:
                outcome = check(memory, damaged, folder=copy, read_only=read_only)
                if not read_only and outcome != "opening refused":
                    _goes_on(copy)
            except BaseException as error:
                error.add_note(f"{file.name} {how}, read_only={read_only}")
                raise
            outcomes[outcome] += 1
            shutil.rmtree(copy)
    return outcomes


def _goes_on(folder: Path) -> None:
    """A writer adds a document, heals the memory without what is damaged, and has it all."""
    with MemoryBank.open(folder) as bank:
        new = document("new", "new", bank.next_number)
        bank.commit(put=[new], latents=latents([new], TINY))
        assert bank.get("new") == new
        bank.compact(drop_damaged=True)
        assert bank.verify() == []
        assert bank.get("new") == new
        lost = [each for each in bank.list() if not each.content_hash]
        for each in lost:
            again = document(each.id, each.text, bank.next_number)
            bank.commit(put=[again], latents=latents([again], TINY))
            assert bank.content_hash(each.id) == again.content_hash
        assert bank.verify() == []


if __name__ == "__main__":
    # two segments, the second of which updates and deletes what is in the first
    memory = specimen(Path(sys.argv[1]), commits=4, compact_after=3)
    print({file.name: file.stat().st_size for file in memory.files}, flip_bytes(memory, *map(int, sys.argv[2:])))  # noqa: T201
