"""A full check of a memory folder against its checksums."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from msa.bank import records
from msa.bank.catalog import Catalog
from msa.bank.compact import unreferenced_files
from msa.bank.lock import writer_is_active
from msa.bank.schema import BankSpec
from msa.bank.segment import Segment, SegmentInfo, file_checksum
from msa.errors import BankCorruptError, BankError


def verify(folder: Path, catalog: Catalog, spec: BankSpec, *, owns_lock: bool) -> list[str]:
    """Return every problem as one line naming its file; see ``MemoryBank.verify``."""
    problems: list[str] = []
    try:
        problems += _catalog_problems(catalog)
        for row, info in catalog.segments().items():
            found = list(_segment_problems(folder, catalog, spec, row, info))
            # A compaction meanwhile removes files of the state being checked: no damage.
            if found and info in catalog.segments().values():
                problems += found
        # The file of a commit under way is not referenced yet.
        if owns_lock or not writer_is_active(folder):
            problems += [f"{file}: not part of the memory; remove it" for file in unreferenced_files(folder, catalog)]
    except (BankError, sqlite3.Error) as error:
        problems.append(f"{catalog.file}: {error}")
    return [" ".join(problem.split()) for problem in problems]


def _catalog_problems(catalog: Catalog) -> Iterator[str]:
    with catalog.read() as connection:
        for (line,) in connection.execute("PRAGMA integrity_check").fetchall():
            if line != "ok":
                yield f"{catalog.file}: {line}"
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchall():
            yield f"{catalog.file}: row {row} of table {table} refers to a missing row of {parent}"
        yield from records.check_documents(connection, catalog.file)


def _segment_problems(folder: Path, catalog: Catalog, spec: BankSpec, row: int, info: SegmentInfo) -> Iterator[str]:
    file = folder / info.file_name
    with catalog.read() as connection:
        affected = records.affected_ids(connection, row)
        expected: dict[int, int] = dict(
            connection.execute("SELECT number, num_chunks FROM parts WHERE segment = ?", (row,))
        )
    try:
        segment = Segment(folder, info, spec)
        if file_checksum(file) != info.checksum:
            yield f"{file}: SHA-256 differs from the catalog; {affected}"
            return
    except (BankCorruptError, OSError) as error:
        yield f"{error}; {affected}"
        return
    found = dict(zip(segment.numbers.tolist(), segment.chunk_offsets.diff().tolist(), strict=True))
    wrong = sorted(number for number, num_chunks in expected.items() if found.get(number) != num_chunks)
    if wrong:
        yield f"{file}: does not hold the parts the catalog places in it, first of them part {wrong[0]}; {affected}"
