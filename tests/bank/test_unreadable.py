"""Files that cannot be read at the moment, or not any more, while a memory is open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_helpers import add, assert_latents_complete, contents, document

from msa.bank import MemoryBank


def files_of(folder: Path, ending: str) -> list[Path]:
    """Files of the segments, oldest first."""
    return sorted((folder / "segments").glob(f"*.{ending}"))


def test_a_file_cut_short_while_it_is_open(folder: Path) -> None:
    """Reading a mapped page behind the end of a file would end the process."""
    (file, _) = files_of(folder, "safetensors")
    with MemoryBank.open(folder, read_only=True) as bank:
        held = bank.segments()[0].latents
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        os.truncate(file, header)
        problems = [*held.problems()]
        assert len(problems) > 3
        assert all(file.name in problem for problem in problems)
        assert any(file.name in problem for problem in bank.verify())
        assert contents(bank) == {"a": "first", "b": "second"}
        file.unlink()
        assert [*held.problems()] == [f"{file} cannot be read (No such file or directory)"]


def test_what_was_opened_is_loaded_after_its_file_is_gone(folder: Path) -> None:
    """A writer removes the files of segments that it has merged; who reads the version before goes on reading."""
    (file, _) = files_of(folder, "safetensors")
    with MemoryBank.open(folder, read_only=True) as bank:
        held = bank.segments()[0].latents
        layer = bank.spec.layers[0]
        expected = held.tensor("routing_keys", layer).clone()
        file.unlink()
        assert torch.equal(held.load("routing_keys", layer, 0, len(expected)), expected)
        assert torch.equal(held.rows("routing_keys", layer, torch.arange(len(expected))), expected)


@pytest.mark.parametrize("ending", ["sqlite", "safetensors"])
def test_a_file_that_could_not_be_read_for_a_moment(folder: Path, ending: str) -> None:
    """From the next change on it is read again, without opening the memory anew."""
    with MemoryBank.open(folder) as bank, MemoryBank.open(folder, read_only=True) as reader:
        file = files_of(folder, ending)[0]
        data = file.read_bytes()
        file.unlink()
        add(bank, document("c", "third", 4))
        with MemoryBank.open(folder, read_only=True) as late:
            assert late.state().damage
            file.write_bytes(data)
            bank.commit(delete=["b"])
            for each in (bank, reader, late):
                assert contents(each) == {"a": "first", "c": "third"}
                assert not each.state().damage
                assert_latents_complete(each)


def test_latents_that_cannot_be_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: Any) -> None:
        raise RuntimeError(f"unable to open file <{name}> in read-only mode: Input/output error (5)")

    monkeypatch.setattr("msa.bank.latents.safe_open", refuse)
    with MemoryBank.open(folder, read_only=True) as bank:
        assert contents(bank) == {"a": "first", "b": "second"}
        for file in files_of(folder, "safetensors"):
            assert any(file.name in str(problem) for problem in bank.state().damage)
