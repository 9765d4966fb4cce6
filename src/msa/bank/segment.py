"""A segment as it is open: its two files, as far as they are sound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from msa.bank.documents import DocumentsFile
from msa.bank.latents import LatentsFile
from msa.bank.manifest import SegmentInfo
from msa.bank.schema import BankSpec, Kind
from msa.errors import BankCorruptError, BankFileError, BankUnreadableError

SEGMENTS = "segments"


class Segment:
    """An open segment.

    Attributes:
        info: what the manifest says of it.
        name: the segment's.
        damage: what is wrong with its files, or why they cannot be read at present; empty: nothing is wrong.
        stamps: what tells each of its files from another of the same name, or from none.

    Raises:
        BankFileError: both files are of no use, so that nobody knows what newer commits had changed.
        BankError: the process or the machine is short of what it takes to open files.
    """

    def __init__(self, folder: Path, info: SegmentInfo, spec: BankSpec) -> None:
        self.info, self.name = info, info.name
        self.stamps = [_stamp(folder / SEGMENTS / name) for name in info.file_names]  # first: they may change meanwhile
        self.damage: list[BankFileError] = []
        self._documents: DocumentsFile | None = None
        self._latents: LatentsFile | None = None
        try:
            self._documents = DocumentsFile(folder / SEGMENTS, info)
        except BankFileError as error:
            self.damage.append(error)
        try:
            self._latents = LatentsFile(folder / SEGMENTS, info, spec)
        except BankFileError as error:
            self.damage.append(error)
        if len(self.damage) == 2:
            kind = BankUnreadableError if self.is_unreadable else BankCorruptError
            raise kind(f"{self.damage[0]}; and {self.damage[1]}")

    @property
    def is_unreadable(self) -> bool:
        """Whether it has a file that cannot be read at present, and need not be damaged."""
        return any(isinstance(problem, BankUnreadableError) for problem in self.damage)

    def may_be_sound_by_now(self, folder: Path) -> bool:
        """Whether to open it anew: what was damaged has changed since, or could not be read, and perhaps can be now."""
        now = [_stamp(folder / SEGMENTS / name) for name in self.info.file_names]
        return bool(self.damage) and (self.is_unreadable or self.stamps != now)

    @property
    def has_documents(self) -> bool:
        """Whether the texts are readable."""
        return self._documents is not None

    @property
    def has_latents(self) -> bool:
        """Whether the latents are readable."""
        return self._latents is not None

    @property
    def documents(self) -> DocumentsFile:
        """Texts, metadata, parts and indexes.

        Raises:
            BankFileError: they are damaged, or cannot be read.
        """
        if self._documents is None:
            raise self.damage[0]
        return self._documents

    @property
    def latents(self) -> LatentsFile:
        """Routing keys, content keys and values.

        Raises:
            BankFileError: they are damaged, or cannot be read.
        """
        if self._latents is None:
            raise self.damage[0]
        return self._latents

    @property
    def superseded(self) -> NDArray[np.int64]:
        """Places whose documents in older segments this one replaces or deletes ``[s]``; either file tells."""
        if self._documents is not None:
            return self._documents.superseded
        array: NDArray[np.int64] = self.latents.superseded.numpy()
        return array

    @property
    def numbers(self) -> Tensor:
        """Part numbers of the latents ``[n]`` int64, ascending; deleted ones stay listed until compaction."""
        return self.latents.numbers

    @property
    def chunk_offsets(self) -> Tensor:
        """``[n + 1]`` int64; part ``i`` owns chunks ``chunk_offsets[i]:chunk_offsets[i + 1]``."""
        return self.latents.chunk_offsets

    def tensor(self, kind: Kind, layer: int) -> Tensor:
        """One kind of one layer, memory-mapped; see :meth:`LatentsFile.tensor`."""
        return self.latents.tensor(kind, layer)


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes with a file's content, name or permissions; empty: it is not there."""
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
