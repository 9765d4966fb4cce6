"""Compaction: one new segment without deleted parts in place of all old ones, in one commit."""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa.bank.catalog import Catalog, insert_segment, read_counter, write_counter
from msa.bank.schema import BankSpec, Kind
from msa.bank.segment import SEGMENTS, Segment, SegmentInfo, file_checksum, write_segment
from msa.errors import BankCorruptError, BankError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A segment with the parts to keep: their numbers ``[n]``, chunk counts ``[n]`` and runs of chunks."""

    segment: Segment
    numbers: Tensor
    num_chunks: Tensor
    runs: tuple[tuple[int, int], ...]


def compact(folder: Path, catalog: Catalog, spec: BankSpec) -> dict[str, Any]:
    """Merge all segments into one without deleted parts and shrink the catalog; see ``MemoryBank.compact``."""
    segments = catalog.segments()
    num_parts, live = _live_by_segment(catalog)
    removed = sum(info.num_parts for info in segments.values()) - num_parts
    rewritten = bool(segments) and (removed > 0 or len(segments) > 1)
    bytes_before = _bytes_on_disk(catalog, segments)
    if rewritten:
        _rewrite(folder, catalog, spec, segments, live)
    vacuumed = _vacuum(catalog)
    after = catalog.segments()
    message = "nothing to do: no deleted parts, at most one segment"
    if rewritten:
        message = f"removed {removed} deleted parts, merged {len(segments)} segments into {len(after)}"
    elif vacuumed:
        message = "gave unused pages of the catalog back to the file system"
    return {
        "compacted": rewritten or vacuumed,
        "message": message,
        "removed_parts": removed,
        "segments_before": len(segments),
        "segments_after": len(after),
        "bytes_before": bytes_before,
        "bytes_after": _bytes_on_disk(catalog, after),
        "version": catalog.counter("version"),
    }


def _rewrite(
    folder: Path, catalog: Catalog, spec: BankSpec, segments: dict[int, SegmentInfo], live: dict[int, list[int]]
) -> None:
    sources = [_source(folder, spec, info, live[row]) for row, info in segments.items() if row in live]
    info = None
    if sources:
        info = _merge(folder, spec, new_name(catalog), sources)
    try:
        with catalog.write() as connection:
            if info:
                connection.execute("UPDATE parts SET segment = ?", (insert_segment(connection, info),))
            connection.executemany("DELETE FROM segments WHERE row = ?", [(row,) for row in segments])
            write_counter(connection, "version", read_counter(connection, "version") + 1)
    except BaseException:
        if info:
            discard(folder, catalog, info)
        raise
    for old in segments.values():
        remove(folder / old.file_name)


def _live_by_segment(catalog: Catalog) -> tuple[int, dict[int, list[int]]]:
    live: dict[int, list[int]] = {}
    with catalog.read() as connection:
        rows = connection.execute("SELECT segment, number FROM parts ORDER BY number").fetchall()
    for segment, number in rows:
        live.setdefault(segment, []).append(number)
    return len(rows), live


def _source(folder: Path, spec: BankSpec, info: SegmentInfo, live: list[int]) -> _Source:
    segment = Segment(folder, info, spec)
    # Rewriting a damaged file would give the damage a valid checksum.
    if file_checksum(folder / info.file_name) != info.checksum:
        raise BankCorruptError(
            f"{folder / info.file_name} is damaged: its SHA-256 differs from the catalog. "
            "Delete the documents that verify names, then compact again"
        )
    rows = torch.isin(segment.numbers, torch.tensor(live)).nonzero().flatten()
    if len(rows) != len(live):
        raise BankCorruptError(f"{folder / info.file_name} lacks parts that the catalog places in it")
    runs: list[tuple[int, int]] = []
    for row in rows.tolist():
        begin, end = segment.chunk_offsets[row : row + 2].tolist()
        if runs and runs[-1][1] == begin:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    return _Source(
        segment=segment, numbers=segment.numbers[rows], num_chunks=segment.chunk_offsets.diff()[rows], runs=tuple(runs)
    )


def _merge(folder: Path, spec: BankSpec, name: str, sources: list[_Source]) -> SegmentInfo:
    def pieces(kind: Kind, layer: int) -> Iterator[Tensor]:
        for source in sources:
            tensor = source.segment.tensor(kind, layer)
            for begin, end in source.runs:
                yield tensor[begin:end]

    # Each commit's numbers exceed all earlier ones, so segments in order of age are in order of numbers.
    numbers = torch.cat([source.numbers for source in sources])
    num_chunks = torch.cat([source.num_chunks for source in sources])
    offsets = torch.cat([num_chunks.new_zeros(1), num_chunks.cumsum(0)])
    return write_segment(folder, name, spec=spec, numbers=numbers, chunk_offsets=offsets, pieces=pieces)


def _vacuum(catalog: Catalog) -> bool:
    try:
        return catalog.vacuum()
    except BankError as error:
        if isinstance(error, BankCorruptError):
            raise
        # The segments are compacted by now; a catalog that keeps its unused pages is still a good catalog.
        logger.warning("the catalog was not shrunk: %s", error)
        return False


def _bytes_on_disk(catalog: Catalog, segments: dict[int, SegmentInfo]) -> int:
    return catalog.file.stat().st_size + sum(info.num_bytes for info in segments.values())


def new_name(catalog: Catalog) -> str:
    """Return a name for the next commit's segment; random digits keep it unique after a restored backup."""
    return f"{catalog.counter('version') + 1:010d}-{secrets.token_hex(4)}"


def discard(folder: Path, catalog: Catalog, info: SegmentInfo) -> None:
    """Remove the file of a commit that failed, unless the catalog lists it after all."""
    try:
        listed = {each.name for each in catalog.segments().values()}
    except (BankError, sqlite3.Error):
        return  # the next writer removes the file if it is not needed
    if info.name not in listed:
        remove(folder / info.file_name)


def remove(file: Path) -> None:
    """Delete a file that is no longer needed; failure only wastes space, so it is logged and not raised."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("could not remove %s: %s", file, error)


def remove_leftovers(folder: Path, catalog: Catalog) -> None:
    """Remove the segment files that killed writers left: temporary ones and ones the catalog does not list."""
    for file in unreferenced_files(folder, catalog):
        if file.suffix in (".safetensors", ".tmp"):
            logger.info("removing %s, left by an interrupted write", file)
            remove(file)


def unreferenced_files(folder: Path, catalog: Catalog) -> list[Path]:
    """Return the files of the segments folder that no commit refers to."""
    # Listed before the catalog is read: what a later commit adds is not mistaken for a leftover.
    files = sorted((folder / SEGMENTS).glob("*"))
    listed = {folder / info.file_name for info in catalog.segments().values()}
    return [file for file in files if file not in listed]
