"""JSON lines that only grow: each is on disk once it is appended, and the half of one a killed run left is dropped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from msa.errors import EvaluationError

logger = logging.getLogger(__name__)


class BrokenLineError(ValueError):
    """A whole line that is not JSON; whoever reads the file words it for its user.

    Attributes:
        number: of the line, counted from 1.
        reason: what the parser says.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")
        self.number = number
        self.reason = reason


class LineFile:
    """A file of JSON lines; what its first line must say is for the caller to check.

    :meth:`read` may be called at any time, :meth:`append` after :meth:`open` or inside a ``with`` block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def is_new(self) -> bool:
        """Whether it has no whole line yet; half of one is what a killed run left, and :meth:`open` cuts it off."""
        return next(self._lines(), None) is None

    def read(self) -> Iterator[tuple[int, Any]]:
        """Number, counted from 1, and content of each whole line; none where there is no file. Empty lines are skipped.

        Raises:
            BrokenLineError: a line is not JSON.
        """
        for number, line in self._lines():
            yield number, _parsed(line, number)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The whole lines, with their numbers."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") and line.strip():
                    yield number, line

    def open(self) -> None:
        """Get ready to append: make the file and its folder, or cut off the half of a line that it ends with.

        Raises:
            EvaluationError: another run is writing to it; the kernel forgets one that was killed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise EvaluationError(
                f"another run is writing to {self.path}; wait until it ends, or give another --out"
            ) from error
        self._file = file
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if whole < self._file.tell():
            logger.warning("%s: the last line was cut off and is made again", self.path)
            self._file.truncate(whole)

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns.

        Raises:
            ValueError: the file is not open.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open; call open() before append()")
        # half of a surrogate pair, which a judge's reply may hold, is written as it is read back
        self._file.write(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parsed(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(number, str(error)) from error
