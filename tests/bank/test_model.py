"""Any sequence of changes, against a plain dictionary."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import SPEC, add, assert_latents_complete, document, latents, new_bank
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from msa.bank import MemoryBank, StoredDocument
from msa.bank.compact import FAN_OUT
from msa.bank.state import State
from msa.errors import BankError

IDS = st.sampled_from(["a", "b", "c", "d", "é", "x y", "0"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.sampled_from([None, True, 1, 1.5, "1", [1, {"k": []}]])
METADATA = st.dictionaries(st.sampled_from(["lang", "n", 'o"dd']), VALUES, max_size=2)

STATE_ARRAYS = ("places", "place_segments", "numbers", "part_segments", "part_places", "part_tokens", "part_chunks")


def equal_as_json(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def fulfils(value: Any, wanted: Any) -> bool:
    """Whether a document's value is the one wanted, or a list with it."""
    return any(equal_as_json(each, wanted) for each in [value, *(value if isinstance(value, list) else [])])


def assert_as_from_scratch(state: State) -> None:
    """A state that was made from the one before is what all its segments say."""
    scratch = State(state.manifest, state.segments)
    for name in STATE_ARRAYS:
        found, expected = getattr(state, name), getattr(scratch, name)
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist()), name


class MemoryMachine(RuleBasedStateMachine):
    """A writer and a reader of one memory; ``expected`` is what must be in it, in order."""

    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.expected: dict[str, StoredDocument] = {}
        self.next_number = 1
        self.copies = 0
        self.bank = new_bank(self.root / "mem")
        self.reader = MemoryBank.open(self.root / "mem", read_only=True)

    def made(self, id_: str, text: str, num_parts: int, metadata: dict[str, Any]) -> StoredDocument:
        new = document(id_, text, self.next_number, num_parts, metadata)
        self.next_number += num_parts
        return new

    @rule(
        given=st.lists(st.tuples(IDS, TEXTS, st.integers(1, 3), METADATA), max_size=3, unique_by=lambda each: each[0]),
        deleted=st.lists(IDS, max_size=2),
    )
    def put(self, given: list[tuple[str, str, int, dict[str, Any]]], deleted: list[str]) -> None:
        new = [self.made(*each) for each in given]
        deleted = [id_ for id_ in deleted if id_ not in {each.id for each in new}]
        version = self.bank.version
        if new:
            assert add(self.bank, *new, delete=deleted) == version + 1
        else:
            assert self.bank.commit(delete=deleted) == version + bool(self.expected.keys() & set(deleted))
        for id_ in deleted:
            self.expected.pop(id_, None)
        self.expected.update((each.id, each) for each in new)  # an update keeps its place

    @rule(times=st.integers(1, FAN_OUT), id_=IDS)
    def put_often(self, times: int, id_: str) -> None:
        for _ in range(times):
            self.expected[id_] = self.made(id_, f"text {self.next_number}", 1, {"n": 1})
            add(self.bank, self.expected[id_])

    @rule(id_=IDS, metadata=METADATA, kept=st.integers(1, 3))
    def change_metadata(self, id_: str, metadata: dict[str, Any], kept: int) -> None:
        if id_ in self.expected:
            old = self.expected[id_]
            self.expected[id_] = replace(old, metadata=metadata, parts=old.parts[:kept])
            self.bank.commit(put=[self.expected[id_]])

    @rule(id_=IDS)
    def refuse(self, id_: str) -> None:
        """A commit that is refused changes nothing."""
        version = self.bank.version
        unknown = document(id_, "no latents", self.next_number)
        with pytest.raises(ValueError, match="no latents"):
            self.bank.commit(put=[unknown])
        if self.next_number > 1:
            used = document(id_, "number used", self.next_number - 1)
            with pytest.raises(ValueError, match="never reused"):
                self.bank.commit(put=[used], latents=latents([used]))
        with pytest.raises(BankError, match="read-only"):
            self.reader.commit(delete=[id_])
        assert self.bank.version == version

    @rule()
    def reopen(self) -> None:
        self.bank.close()
        self.bank = MemoryBank.open(self.root / "mem")

    @rule()
    def reopen_reader(self) -> None:
        self.reader.close()
        self.reader = MemoryBank.open(self.root / "mem", read_only=True)

    @rule()
    def compact(self) -> None:
        self.bank.compact()
        assert len(self.bank.segments()) <= 1
        assert self.bank.stats()["deleted_parts"] == 0

    @rule(restore=st.booleans())
    def back_up(self, restore: bool) -> None:
        """The copy holds the same; going on with it in place of the memory changes nothing."""
        self.copies += 1
        copy = self.root / f"copy {self.copies}"
        self.bank.backup(copy)
        with MemoryBank.open(copy) as bank:
            assert (bank.list(), bank.next_number) == ([*self.expected.values()], self.next_number)
            assert (bank.verify(), bank.version) == ([], self.bank.version)
        if restore:
            self.bank.close()
            self.reader.close()
            shutil.rmtree(self.root / "mem")
            copy.rename(self.root / "mem")
            self.bank = MemoryBank.open(self.root / "mem")
            self.reader = MemoryBank.open(self.root / "mem", read_only=True)

    @rule(key=st.sampled_from(["lang", "n", 'o"dd']), value=VALUES, other=VALUES)
    def filter(self, key: str, value: Any, other: Any) -> None:
        for where, wanted in (({key: [value]}, [value]), ({key: [value, other]}, [value, other])):
            numbers = [
                part.number
                for each in self.expected.values()
                if key in each.metadata and any(fulfils(each.metadata[key], one) for one in wanted)
                for part in each.parts
            ]
            assert self.reader.matching_numbers(where).tolist() == sorted(numbers)

    @rule(limit=st.integers(0, 4))
    def page(self, limit: int) -> None:
        listed: list[StoredDocument] = []
        while page := self.reader.list(limit=limit, after=listed[-1].id if listed else None):
            assert len(page) <= limit
            listed += page
        assert listed == ([*self.expected.values()] if limit else [])

    @invariant()
    def same(self) -> None:
        parts = sorted((part.number, each) for each in self.expected.values() for part in each.parts)
        for bank in (self.bank, self.reader):
            assert bank.list() == [*self.expected.values()]
            assert [*bank.ids()] == [*self.expected]
            assert bank.live_numbers().tolist() == [number for number, _ in parts]
            assert bank.next_number == self.next_number
            assert_as_from_scratch(bank.state())
            assert len(bank) == len(self.expected)
            for id_ in ("a", "é", "x y", "absent"):
                assert bank.get(id_) == self.expected.get(id_)
                assert (id_ in bank) == (id_ in self.expected)
        assert self.bank.content_hashes([*"abcd"]) == {
            id_: self.expected[id_].content_hash for id_ in "abcd" if id_ in self.expected
        }
        found = self.reader.parts([number for number, _ in parts])
        assert [(each.part.number, each.document_id) for each in found] == [(n, each.id) for n, each in parts]
        assert len(self.bank.segments()) < FAN_OUT

    def teardown(self) -> None:
        if hasattr(self, "root"):
            assert self.reader.verify() == self.bank.verify() == []
            assert_latents_complete(self.reader)
            assert self.reader.spec == SPEC
            self.bank.close()
            self.reader.close()
            shutil.rmtree(self.root)


def test_against_a_dictionary() -> None:
    chosen = settings(
        max_examples=15,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(MemoryMachine, settings=chosen)
