"""How a memory changes: a new segment, then a new manifest; and how it sheds what no manifest refers to."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from msa.bank.checks import check_room, check_size
from msa.bank.documents import Row, write_documents
from msa.bank.files import disk_errors, fsync_folder, remove
from msa.bank.latents import Pieces, write_latents
from msa.bank.manifest import (
    KEPT,
    Manifest,
    SegmentInfo,
    manifest_file,
    manifest_versions,
    read_manifest,
    segment_prefix,
    write_manifest,
)
from msa.bank.opening import PENDING, leftovers
from msa.bank.schema import Latents, StoredDocument
from msa.bank.segment import SEGMENTS
from msa.bank.state import State
from msa.errors import BankError, BankFullError

logger = logging.getLogger(__name__)


def write_segment(
    folder: Path,
    state: State,
    *,
    numbers: torch.Tensor,
    chunk_offsets: torch.Tensor,
    pieces: Pieces,
    rows: Callable[[], Iterable[Row]],
    superseded: NDArray[np.int64],
) -> SegmentInfo:
    """Write both files of the next segment after a state durably; see :func:`write_latents`, :func:`write_documents`.

    Raises:
        BankError: the disk failed; nothing is left behind.
    """
    name = segment_prefix(state.newest + 1) + secrets.token_hex(4)  # random, so unique after a restored backup too
    segments = folder / SEGMENTS
    info = None
    try:
        with disk_errors(segments):
            segments.mkdir(exist_ok=True)
            (folder / PENDING).touch()
            fsync_folder(folder)
        info = write_latents(
            segments,
            name,
            spec=state.manifest.spec,
            numbers=numbers,
            chunk_offsets=chunk_offsets,
            superseded=torch.from_numpy(superseded.copy()),
            pieces=pieces,
        )
        info = write_documents(segments, info, rows(), superseded)
        with disk_errors(segments):
            fsync_folder(segments)
    except BaseException:
        discard(folder, info)
        raise
    return info


def write_changes(
    folder: Path,
    state: State,
    put: Sequence[StoredDocument],
    latents: Latents | None,
    delete: Sequence[str],
    found: Mapping[str, int],
    max_bytes: int | None,
) -> Manifest | None:
    """Write the segment of a commit, and return the manifest that makes it visible; None: nothing would change.

    Args:
        folder: of the memory.
        state: the present one.
        put, latents, delete: as for :meth:`MemoryBank.commit`.
        found: places of the present documents among those put and deleted.
        max_bytes: size that the folder may have after putting documents; None: any.

    Raises:
        BankFullError: it would be larger; nothing was changed.
        BankError: the disk failed; nothing is left behind.
    """
    deleted = {found[id_] for id_ in delete if id_ in found}
    if not put and not deleted:
        return None
    if put and max_bytes is not None:
        check_room(folder, state.manifest.spec, max_bytes, put, latents)
    place = state.manifest.next_place
    rows: list[Row] = []
    replaced = set()
    for document in put:
        # an update keeps its place in the listing
        if document.id in found:
            replaced.add(found[document.id])
        rows.append((found.get(document.id, place), document))
        place += document.id not in found
    empty = torch.zeros(0, dtype=torch.int64)
    info = write_segment(
        folder,
        state,
        numbers=empty if latents is None else latents.numbers,
        chunk_offsets=torch.zeros(1, dtype=torch.int64) if latents is None else latents.chunk_offsets,
        pieces=lambda kind, layer: [] if latents is None else [latents.tensor(kind, layer)],
        rows=lambda: sorted(rows, key=lambda row: row[0]),
        superseded=np.array(sorted(replaced | deleted), dtype=np.int64),
    )
    if put and max_bytes is not None:
        try:
            check_size(folder, state, max_bytes)
        except BankFullError:
            discard(folder, info)
            raise
    number = state.manifest.next_number if latents is None else int(latents.numbers[-1]) + 1
    manifest = next_manifest(state, [*state.manifest.segments, info])
    return replace(manifest, next_number=number, next_place=place)


def publish(folder: Path, manifest: Manifest, new: SegmentInfo | None) -> None:
    """Make a state the present one; on failure remove the files of its ``new`` segment.

    Raises:
        BankError: the disk failed; the previous state is the present one.
    """
    try:
        write_manifest(folder, manifest)
    except BaseException:
        # an interrupt can come when the manifest is in place already: then the files that it names must stay
        discard(folder, None if manifest_file(folder, manifest.version).exists() else new)
        raise
    remove(folder / PENDING)


def next_manifest(state: State, segments: Iterable[SegmentInfo]) -> Manifest:
    """The manifest after ``state``, of other segments."""
    return replace(state.manifest, version=state.newest + 1, segments=tuple(segments))


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove all but the newest manifests, and every file that none of them needs; failures only waste space.

    A damaged manifest counts for nothing: the sound ones before it are kept in its place.
    """
    try:
        kept = [*itertools.islice(sound_manifests(folder), keep)]
        for version in manifest_versions(folder):
            if kept and version < min(manifest.version for manifest in kept):
                remove(manifest_file(folder, version))
        for file in leftovers(folder, kept) if kept else []:
            if file.suffix in (".safetensors", ".sqlite", ".tmp") or file.name.endswith("-journal"):
                logger.debug("removing %s, which no kept state needs", file)
                remove(file)
    except OSError as error:
        logger.warning("files that are no longer needed were not removed: %s", error)


def sound_manifests(folder: Path) -> Iterator[Manifest]:
    """All manifests that can be read, newest first."""
    for version in reversed(manifest_versions(folder)):
        try:
            manifest = read_manifest(folder, version)
        except BankError:
            continue
        yield manifest


def discard(folder: Path, info: SegmentInfo | None) -> None:
    """Remove the files of a segment that no state refers to, and the mark that it was being written."""
    for name in info.file_names if info else []:
        remove(folder / SEGMENTS / name)
    remove(folder / PENDING)
