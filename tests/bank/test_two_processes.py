"""One process adds many small documents while another reads all the time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from bank_helpers import add, assert_latents_complete, contents, document, new_bank

from msa.bank import MemoryBank

WRITER = """
import sys
from bank_helpers import add, document
from msa.bank import MemoryBank

folder, total, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with MemoryBank.open(folder) as bank:
    for first in range(1, total + 1, each):
        add(bank, *(document(f"d{number}", f"text {number}", number) for number in range(first, first + each)))
        print(first + each - 1, flush=True)
"""


@pytest.mark.parametrize(("total", "each"), [(2000, 20)])
def test_reader_beside_a_writer(tmp_path: Path, total: int, each: int) -> None:
    new_bank(tmp_path / "mem").close()
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "mem"), str(total), str(each)]
    reads, seen, version = 0, 0, -1
    with (
        acknowledged.open("w") as out,
        subprocess.Popen(command, stdout=out, cwd=Path(__file__).parent) as writer,
        MemoryBank.open(tmp_path / "mem", read_only=True) as reader,
    ):
        while writer.poll() is None:
            promised = int((["0", *acknowledged.read_text().split()])[-1])
            state = reader.state()
            assert state.manifest.version >= version
            version = state.manifest.version
            listed = reader.list()
            assert [one.text for one in listed] == [f"text {number}" for number in range(1, len(listed) + 1)]
            assert len(listed) % each == 0
            assert len(listed) >= max(seen, promised)
            # the state held is still what it was, whatever has been merged or removed since
            assert [one.part.number for one in state.parts(state.numbers[-20:])] == state.numbers[-20:].tolist()
            assert len(state.numbers) in range(seen, len(listed) + 1)
            for segment in state.segments:
                assert segment.tensor("keys", 1).shape[0] == int(segment.chunk_offsets[-1])
            seen = len(listed)
            reads += seen > 0
            time.sleep(0.01)
        assert writer.returncode == 0
        assert len(reader) == total
    assert reads > 3
    with MemoryBank.open(tmp_path / "mem") as bank:
        assert bank.verify() == []
        assert len(bank.segments()) < 8
        assert_latents_complete(bank)
        add(bank, document("d1", "changed", total + 1))
        assert contents(bank)["d1"] == "changed"
