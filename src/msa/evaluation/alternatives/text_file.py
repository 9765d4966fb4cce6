"""Texts a row reads from: in a file, as a memory's are, so that a large corpus does not stand in RAM."""

from __future__ import annotations

import tempfile
from array import array


class TextFile:
    """Texts by number, in a temporary file that goes with this object. Lone surrogates come back as they went in."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="msa-evaluation-")  # noqa: SIM115
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, text: str) -> None:
        """Keep a text; its number is how many there were before."""
        self._file.seek(self._ends[-1])
        self._ends.append(self._ends[-1] + self._file.write(text.encode("utf-8", "surrogatepass")))

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a text from 0 to {len(self) - 1}, found {number}")
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode("utf-8", "surrogatepass")

    def resident_bytes(self) -> int:
        """Bytes in RAM: where each text begins."""
        return self._ends.itemsize * len(self._ends)
