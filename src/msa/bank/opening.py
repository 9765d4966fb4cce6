"""Finding and opening the newest sound state of a memory folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from msa.bank.files import checksum, unreadable
from msa.bank.manifest import (
    FORMAT_VERSION,
    KEPT,
    Manifest,
    manifest_file,
    manifest_versions,
    read_manifest,
    segment_prefix,
)
from msa.bank.segment import SEGMENTS, Segment
from msa.bank.state import State
from msa.errors import BankCorruptError, BankError, BankFileError, BankFormatError, BankMismatchError

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
# there from before a segment is written until its manifest is: tells an interrupted commit from a lost manifest
PENDING = ".manifest-pending.tmp"
# what the first development format, never released, kept its documents in
_FORMAT_1_FILE = "memory.sqlite"


def newest_manifest(folder: Path) -> Manifest:
    """The newest manifest that is sound; that damaged ones were passed over is logged.

    Raises:
        BankFormatError: the folder is no memory, or one of a format this release does not know.
        BankCorruptError: every manifest is damaged, or all are gone.
        BankError: the folder cannot be read.
    """
    first: BankCorruptError | None = None
    versions = _versions(folder)
    for version in reversed(versions):
        try:
            manifest = read_manifest(folder, version)
        except BankCorruptError as error:
            if _newest_name(folder) > versions[-1]:  # the writer has gone on, and may have removed it
                return newest_manifest(folder)
            first = first or error
            continue
        if first:
            logger.warning("%s. Version %d is used instead: later changes are not in it", first, manifest.version)
        return manifest
    if first:
        raise first
    if (folder / _FORMAT_1_FILE).exists():
        raise BankFormatError(
            f"{folder} was made by a development version, in format 1; this release reads format {FORMAT_VERSION}. "
            "Add its documents to a new memory"
        )
    if any((folder / SEGMENTS).glob("*.safetensors")):
        raise BankCorruptError(f"the manifests of {folder} are missing, though there are segments. Restore a copy")
    raise BankFormatError(f"{folder} is not a memory: there is no manifest in it. Check the path")


def _versions(folder: Path) -> list[int]:
    try:
        return manifest_versions(folder)
    except OSError as error:
        raise BankError(f"{folder} cannot be read ({error.strerror or error})") from error


def open_state(folder: Path, manifest: Manifest, last: State | None) -> State:
    """Open the segments of a manifest; those of the ``last`` state are open already, and sound ones used again.

    A segment with one damaged file is opened as far as it goes, and the damage logged.

    Raises:
        BankFileError: a segment cannot be opened at all.
        BankError: no more files can be opened.
    """
    # what was damaged may have been restored since, or could not be read for a moment only
    known = {} if last is None else {segment.name: segment for segment in last.segments if not segment.damage}
    segments = []
    for info in manifest.segments:
        segment = known.get(info.name)
        if segment is None:
            segment = Segment(folder, info, manifest.spec)
            for problem in segment.damage:
                logger.warning("%s. The rest of the memory stays readable", problem)
        segments.append(segment)
    return State(manifest, segments, last)


def current_state(folder: Path, last: State | None) -> State:
    """The newest sound state; ``last`` if nothing has changed since.

    Raises:
        BankMismatchError: since ``last`` the folder has become that of another memory.
        BankCorruptError, BankFormatError, BankError: as for :func:`newest_manifest` and :func:`open_state`.
    """
    newest = _newest_file(folder)
    if last is not None and (last.newest, last.stamp) == newest:
        return _looked_at_again(folder, last)
    for attempt in range(_ATTEMPTS):
        newest = _newest_file(folder)
        manifest = newest_manifest(folder)
        if last is not None:
            _check_same_model(folder, manifest, last.manifest)
        try:
            state = open_state(folder, manifest, last)
        except BankFileError:
            # a file that the writer has removed between our reading the manifest and opening it is no damage
            if attempt == _ATTEMPTS - 1 or _newest_file(folder) == newest:
                raise
            continue
        if state.damage and _newest_file(folder) != newest and attempt < _ATTEMPTS - 1:
            continue
        state.newest, state.stamp = newest
        return state
    raise AssertionError("unreachable")


def _looked_at_again(folder: Path, last: State) -> State:
    """The same state with what can be read by now of what could not; ``last`` itself where that is nothing."""
    segments = [_opened_again(folder, segment, last.manifest) for segment in last.segments]
    if all(new is old for new, old in zip(segments, last.segments, strict=True)):
        return last
    state = State(last.manifest, segments)
    state.newest, state.stamp = last.newest, last.stamp
    return state


def _opened_again(folder: Path, segment: Segment, manifest: Manifest) -> Segment:
    """A segment as it can be opened now, itself where that is no better."""
    if not segment.damage or not segment.may_be_sound_by_now(folder):
        return segment
    try:
        opened = Segment(folder, segment.info, manifest.spec)
    except BankError:  # worse than before: what is open stays open
        return segment
    known = [*map(str, segment.damage)]
    if [*map(str, opened.damage)] == known and opened.stamps == segment.stamps:
        return segment
    for problem in opened.damage:
        if str(problem) not in known:
            logger.warning("%s. The rest of the memory stays readable", problem)
    if not opened.damage:
        logger.info("the files of segment %s can be read again", segment.name)
    return opened


def _check_same_model(folder: Path, manifest: Manifest, last: Manifest) -> None:
    if (manifest.fingerprint, manifest.spec) != (last.fingerprint, last.spec):
        raise BankMismatchError(
            f"{folder} has become another memory: made by model {manifest.spec.model_name} with fingerprint "
            f"{manifest.fingerprint}, before by {last.spec.model_name} with {last.fingerprint}. Open it anew"
        )


def _newest_file(folder: Path) -> tuple[int, str]:
    """Version and checksum of the newest manifest file, sound or not; −1 and nothing: there is none.

    The version alone does not tell: it is used again where its commit was taken back, and where a folder is made anew.
    """
    version = _newest_name(folder)
    file = manifest_file(folder, version)
    try:
        return version, checksum(file.read_bytes())
    except FileNotFoundError:  # also where a writer has gone on, and removed it
        return version, ""
    except OSError as error:
        raise unreadable(file, error) from error


def _newest_name(folder: Path) -> int:
    """Version of the newest manifest file, sound or not; −1: there is none."""
    return max(_versions(folder), default=-1)


def leftovers(folder: Path, kept: list[Manifest]) -> list[Path]:
    """Files in the folder of segments that no kept manifest refers to, and half-written manifests.

    The files of a segment whose manifest is lost or damaged are none: they are all that is left of what it committed,
    and whole again once the manifest is restored from a copy.
    """
    names = set().union(*(manifest.file_names for manifest in kept), _without_manifest(folder))
    damaged = {*manifest_versions(folder)} - {manifest.version for manifest in kept}
    theirs = tuple(segment_prefix(version) for version in damaged)
    found = [name for name in _segment_files(folder) if name not in names and not name.startswith(theirs)]
    # the mark of an interrupted commit comes after what the commit has left
    return [*(folder / SEGMENTS / name for name in sorted(found)), *sorted(folder.glob(".manifest-*.tmp"))]


def missing_manifests(folder: Path) -> list[str]:
    """A line for every manifest that is gone though no writer removes it; empty while a writer is active."""
    versions = _versions(folder)
    if not versions:
        return []
    newest = versions[-1]
    gone = sorted({*range(versions[0], newest)} - {*versions})
    if _without_manifest(folder):
        gone.append(newest + 1)
    lines = [f"{manifest_file(folder, version)} is missing: restore it from a copy" for version in gone]
    if not gone and len(versions) < min(KEPT, newest + 1) and not _is_compacted(folder, versions):
        either, other = manifest_file(folder, newest + 1), manifest_file(folder, versions[0] - 1).name
        lines.append(f"{either} or {other} is missing: restore it from a copy")
    return lines


def _without_manifest(folder: Path) -> list[str]:
    """Files of the segment of the next version, unless a commit is or was at work on it."""
    name = segment_prefix(_newest_name(folder) + 1)
    found = [file for file in _segment_files(folder) if file.startswith(name)]
    return [] if found and (folder / PENDING).exists() else found


def _is_compacted(folder: Path, versions: list[int]) -> bool:
    """Whether these are the two equal manifests that a compaction, or a copy, leaves; also if one cannot be read."""
    try:
        manifests = [read_manifest(folder, version) for version in versions]
    except BankError:
        return True
    return len(manifests) == 2 and manifests[0].segments == manifests[1].segments


def _segment_files(folder: Path) -> list[str]:
    try:
        return os.listdir(folder / SEGMENTS)
    except FileNotFoundError:
        return []
