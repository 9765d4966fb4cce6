"""Merging segments: all of them by hand, small ones by themselves, so that a long-lived memory has few."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msa.bank.commit import next_manifest, prune, publish, sound_manifests, write_segment
from msa.bank.documents import Row, batches
from msa.bank.files import folder_bytes
from msa.bank.manifest import SegmentInfo
from msa.bank.schema import Kind
from msa.bank.segment import SEGMENTS, Segment
from msa.bank.state import State
from msa.errors import BankCorruptError, BankError

logger = logging.getLogger(__name__)

# a merge of so many neighbours of about one size makes one of the next size
FAN_OUT = 8
_SMALLEST_BYTES = 4 << 20
LARGEST_MERGE_BYTES = 1 << 30
_ROWS = 100
_CHUNKS = 4096  # a few MiB of one tensor


def compact(
    folder: Path, read_state: Callable[[], State], *, drop_damaged: bool, check: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Merge all segments and let go of older states; see :meth:`MemoryBank.compact`."""
    state, before = read_state(), folder_bytes(folder, folder / SEGMENTS)
    removed = sum(info.num_parts for info in state.manifest.segments) - len(state.numbers)
    fragmented = bool(state.damage) or removed > 0 or len(state.segments) > 1
    if fragmented:
        merged = merge(folder, state, 0, len(state.segments), drop_damaged=drop_damaged, check=check)
        publish(folder, next_manifest(state, [merged] if merged else []), merged)
    older = any(manifest.segments != state.manifest.segments for manifest in sound_manifests(folder))
    if fragmented or older:
        # the older states go; a second manifest of the new one is there to fall back to
        new = read_state()
        publish(folder, next_manifest(new, new.manifest.segments), None)
        prune(folder, keep=2)
    after = read_state().manifest
    message = "nothing to do: no deleted parts, at most one segment"
    if fragmented:
        message = f"removed {removed} deleted parts, merged {len(state.segments)} segments into {len(after.segments)}"
    elif older:
        message = "removed the files of older states"
    return {
        "compacted": fragmented or older,
        "message": message,
        "removed_parts": removed,
        "segments_before": len(state.segments),
        "segments_after": len(after.segments),
        "bytes_before": before,
        "bytes_after": folder_bytes(folder, folder / SEGMENTS),
        "version": after.version,
    }


def merge(
    folder: Path,
    state: State,
    first: int,
    end: int,
    *,
    drop_damaged: bool = False,
    check: Callable[[], None] = lambda: None,
) -> SegmentInfo | None:
    """Write segments ``first:end`` of a state as one, without what is no longer present; None: nothing is.

    Args:
        folder: of the memory.
        state: a state; it is not changed.
        first, end: neighbours in order of age.
        drop_damaged: leave out what cannot be read. Documents whose latents are lost keep their texts and metadata,
            without parts and with an empty content hash, so that adding them encodes them.
        check: called between two blocks that are read or written; if it raises, nothing was changed.

    Raises:
        BankCorruptError: a file is damaged; nothing was written.
        BankUnreadableError: one cannot be read, which is no reason to drop what is in it.
        BankError: the disk failed; nothing is left behind.
    """
    sources = state.segments[first:end]
    for segment in sources:
        if segment.is_unreadable:  # whatever is to be dropped, it need not be damaged
            raise segment.damage[0]
    if not drop_damaged:
        _check_sound(state.segments[:first], sources, check)
    kept = [_Kept(segment, state.numbers) for segment in sources if segment.has_latents]
    places = state.places[(state.place_segments >= first) & (state.place_segments < end)]
    if not len(places) and not any(len(source.rows) for source in kept):
        return None
    numbers = torch.cat([torch.zeros(0, dtype=torch.int64), *(source.numbers for source in kept)])
    counts = torch.cat([torch.zeros(0, dtype=torch.int64), *(source.counts for source in kept)])

    def pieces(kind: Kind, layer: int) -> Iterator[Tensor]:
        for source in kept:
            for piece in source.pieces(kind, layer):
                check()
                yield piece

    return write_segment(
        folder,
        state,
        numbers=numbers,
        chunk_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        pieces=pieces,
        rows=lambda: _rows(state, places, check),
        superseded=_superseded(state, first, end),
    )


def _check_sound(older: Sequence[Segment], sources: Sequence[Segment], check: Callable[[], None]) -> None:
    """Rewriting a damaged file would give the damage a valid checksum.

    Nor may the sources be merged that say what was added again, and perhaps deleted since, of an ``older`` file that
    cannot be read now: once it is restored, that must still be known.
    """
    for segment in older:
        if not segment.has_documents:
            raise segment.damage[0]
    for segment in sources:
        problems = [str(error) for error in segment.damage]
        problems += problems or [*filter(None, [segment.documents.problem()]), *segment.latents.problems(check)]
        if problems:
            raise BankCorruptError(
                f"{problems[0]}. Nothing was changed; restore the file from a copy, "
                "or compact without what is damaged (drop_damaged)"
            )


class _Kept:
    """What of a segment's latents is still present: numbers ``[n]``, chunk counts ``[n]``, and runs of chunks."""

    def __init__(self, segment: Segment, present: NDArray[np.int64]) -> None:
        self.segment = segment
        self.rows = torch.from_numpy(np.isin(segment.numbers.numpy(), present)).nonzero().flatten()
        self.numbers = segment.numbers[self.rows]
        self.counts = segment.chunk_offsets.diff()[self.rows]
        self.runs: list[tuple[int, int]] = []
        for begin, end in zip(
            segment.chunk_offsets[self.rows].tolist(), segment.chunk_offsets[self.rows + 1].tolist(), strict=True
        ):
            if self.runs and self.runs[-1][1] == begin:
                self.runs[-1] = (self.runs[-1][0], end)
            else:
                self.runs.append((begin, end))

    def pieces(self, kind: Kind, layer: int) -> Iterator[Tensor]:
        tensor = self.segment.tensor(kind, layer)
        for begin, end in self.runs:
            for first in range(begin, end, _CHUNKS):
                yield tensor[first : min(first + _CHUNKS, end)]


def _rows(state: State, places: NDArray[np.int64], check: Callable[[], None]) -> Iterator[Row]:
    for page in batches(places.tolist(), _ROWS):
        check()
        for place, document in zip(page, state.documents(page), strict=True):
            if place in state.unroutable_places:
                document = replace(document, parts=(), content_hash="")
            yield place, document


def _superseded(state: State, first: int, end: int) -> NDArray[np.int64]:
    """What the merged segment replaces or deletes in segments older than itself."""
    nothing = np.zeros(0, np.int64)
    said = (segment.superseded for segment in state.segments[first:end])
    superseded = np.unique(np.concatenate([state.abandoned, *said]))
    older = state.segments[:first]
    if not all(segment.has_documents for segment in older):
        return superseded
    places = np.concatenate([nothing, *(segment.documents.places for segment in older)])
    return superseded[np.isin(superseded, places)]


def merge_small(folder: Path, read_state: Callable[[], State], max_bytes: int | None) -> None:
    """Keep the segments few; failure, or no room beside what is merged, costs nothing but speed, and is logged."""
    try:
        while (first := small_run((state := read_state()).manifest.segments)) is not None:
            more = sum(info.num_bytes for info in state.manifest.segments[first:])
            if max_bytes is not None and folder_bytes(folder, folder / SEGMENTS) + more > max_bytes:
                logger.info("small segments of %s were not merged: that takes %s bytes more", folder, f"{more:,}")
                return
            merged = merge(folder, state, first, len(state.segments))
            segments = [*state.manifest.segments[:first], *([merged] if merged else [])]
            publish(folder, next_manifest(state, segments), merged)
    except BankError as error:
        logger.warning("small segments were not merged: %s", error)


def small_run(segments: Sequence[SegmentInfo]) -> int | None:
    """Where the newest segments that should become one begin; None: there are few.

    Sizes grow by :data:`FAN_OUT` from level to level, so each byte is rewritten once a level, and a memory has at most
    about ``FAN_OUT`` segments a level, besides those too large to be rewritten unasked.
    """
    levels = [_level(segment.num_bytes) for segment in segments]
    for level in range(max(levels, default=-1) + 1):
        first = len(levels)
        while first > 0 and levels[first - 1] <= level:
            first -= 1
        run = segments[first:]
        if len(run) >= FAN_OUT and sum(segment.num_bytes for segment in run) <= LARGEST_MERGE_BYTES:
            return first
    return None


def _level(num_bytes: int) -> int:
    level = 0
    while num_bytes > _SMALLEST_BYTES:
        num_bytes //= FAN_OUT
        level += 1
    return level
