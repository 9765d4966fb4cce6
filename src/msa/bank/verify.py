"""What is in a memory: its counts and sizes, and a full check of the folder against its checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from msa.bank.files import folder_bytes
from msa.bank.lock import LOCK_NAME, writer_is_active
from msa.bank.manifest import Manifest, manifest_versions, read_manifest
from msa.bank.opening import leftovers, missing_manifests, newest_manifest
from msa.bank.segment import SEGMENTS, Segment
from msa.bank.state import State
from msa.errors import BankError, BankFileError, BankUnreadableError


def verify(folder: Path, *, owns_lock: bool) -> list[str]:
    """Every problem as one line naming its file; see :meth:`MemoryBank.verify`."""
    return [*dict.fromkeys([*file_problems(folder), *folder_problems(folder, owns_lock=owns_lock)])]


def file_problems(folder: Path, check: Callable[[], None] = lambda: None) -> list[str]:
    """What is wrong with the files that manifests name, while others may go on writing.

    Args:
        folder: of the memory.
        check: called before each tensor is read; may raise to end early.
    """
    problems: list[str] = []
    manifests, damage = _manifests(folder)
    for version, error in damage:
        # a commit meanwhile removes the oldest
        if version in manifest_versions(folder):
            problems.append(str(error))
    checked: set[str] = set()
    for manifest in reversed(manifests):
        found = list(_segment_problems(folder, manifest, checked, check))
        if found and manifest.version in manifest_versions(folder):
            problems += found
    try:
        newest_manifest(folder)
    except BankError as error:
        problems.append(str(error))
    return _lines(problems)


def folder_problems(folder: Path, *, owns_lock: bool) -> list[str]:
    """What is missing in a folder or does not belong there; nothing is said while another process writes."""
    if not owns_lock and writer_is_active(folder):  # the files of a commit under way are not referenced yet
        return []
    manifests, _ = _manifests(folder)
    problems = [*_foreign_files(folder), *missing_manifests(folder)]
    if manifests:
        problems += [f"{file}: not part of the memory; remove it" for file in leftovers(folder, manifests)]
    if not (folder / LOCK_NAME).exists():
        problems.append(f"{folder / LOCK_NAME} is missing; opening the memory for writing makes it again")
    return _lines(problems)


def _manifests(folder: Path) -> tuple[list[Manifest], list[tuple[int, BankError]]]:
    """The manifests that can be read, and what is wrong with the others."""
    manifests, damage = [], []
    for version in manifest_versions(folder):
        try:
            manifests.append(read_manifest(folder, version))
        except BankError as error:
            damage.append((version, error))
    return manifests, damage


def _lines(problems: list[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(problem.split()) for problem in problems))


def counts_and_sizes(folder: Path, state: State) -> dict[str, Any]:
    """See :meth:`MemoryBank.stats`."""
    manifest = state.manifest
    return {
        "documents": len(state.places),
        "parts": len(state.numbers),
        "chunks": int(state.part_chunks.sum()),
        "tokens": int(state.part_tokens.sum()),
        "segments": len(state.segments),
        "bytes_on_disk": folder_bytes(folder, folder / SEGMENTS),
        "deleted_parts": sum(info.num_parts for info in manifest.segments) - len(state.numbers),
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "model_name": manifest.spec.model_name,
        "chunk_size": manifest.spec.chunk_size,
        "layers": list(manifest.spec.layers),
        "dtype": manifest.spec.dtype,
    }


def _segment_problems(folder: Path, manifest: Manifest, checked: set[str], check: Callable[[], None]) -> Iterator[str]:
    segments: list[Segment] = []
    for info in manifest.segments:
        try:
            segments.append(Segment(folder, info, manifest.spec))
        except BankFileError as error:
            if info.name not in checked:
                yield str(error)
            checked.add(info.name)
    state = State(manifest, segments)
    for segment in segments:
        if segment.name in checked:
            continue
        checked.add(segment.name)
        for damage in segment.damage:
            yield f"{damage}; {_affected(state, segment)}"
        yield from _content_problems(state, segment, check)


def _content_problems(state: State, segment: Segment, check: Callable[[], None]) -> Iterator[str]:
    """What reading all of a segment's files shows, as far as they are open."""
    try:
        if segment.has_documents and (problem := segment.documents.problem()):
            yield problem
    except BankUnreadableError as error:
        yield str(error)
    try:
        if segment.has_latents:
            for problem in segment.latents.problems(check):
                yield f"{problem}; {_affected(state, segment)}"
    except BankUnreadableError as error:
        yield f"{error}; {_affected(state, segment)}"


def _affected(state: State, segment: Segment, limit: int = 5) -> str:
    """Which present documents the latents of a segment belong to, as far as it is known."""
    if not segment.has_latents:
        places = sorted(state.unroutable_places)
    else:
        places = np.unique(state.part_places[np.isin(state.numbers, segment.numbers.numpy())]).tolist()
    try:
        ids = [document.id for document in state.documents(places[:limit])]
    except BankError:
        ids = []
    if not places:
        return "no readable document needs it; compact the memory"
    shown = ", ".join(map(repr, ids)) + (", ..." if len(places) > limit else "")
    return f"it holds {len(places)} document{'s' * (len(places) > 1)}: {shown}; add them again, or restore a copy"


def _foreign_files(folder: Path) -> list[str]:
    found = [
        folder / name
        for name in sorted(os.listdir(folder))
        if name not in (SEGMENTS, LOCK_NAME) and not name.startswith((".", "manifest-"))
    ]
    return [f"{file}: not part of the memory; remove it" for file in found]
