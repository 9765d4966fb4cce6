"""Copies of a memory: one state in a folder of its own, checked while it is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from io import FileIO
from pathlib import Path

from msa.bank.files import disk_errors, fsync_folder, fsync_folders, make_folder, remove, unreadable, written_durably
from msa.bank.lock import LOCK_NAME
from msa.bank.manifest import write_manifest
from msa.bank.opening import newest_manifest
from msa.bank.segment import SEGMENTS
from msa.bank.verify import verify
from msa.errors import BankCorruptError, BankError

_ATTEMPTS = 5
_BLOCK_BYTES = 1 << 22


def copy_memory(folder: Path, destination: Path) -> None:
    """Copy the newest state of a memory, while it may be written to, into a new or empty folder.

    The copy is itself a memory; copying it back restores. It exists whole or is no memory: its manifest comes last.

    Raises:
        BankError: the destination is not empty or inside the memory, or the disk failed.
        BankCorruptError: what was copied is damaged; nothing is left.
    """
    if destination.resolve().is_relative_to(folder.resolve()):
        raise BankError(f"{destination} lies inside the memory {folder}. Choose a folder outside it for the copy")
    if destination.exists() and not destination.is_dir():
        raise BankError(f"{destination} is a file. Choose a new folder for the copy")
    with disk_errors(destination):
        holding = make_folder(destination)
        if any(destination.iterdir()):
            raise BankError(f"{destination} is not empty. Choose a new folder for the copy")
    try:
        with disk_errors(destination):
            (destination / SEGMENTS).mkdir()
        for attempt in range(_ATTEMPTS):
            manifest = newest_manifest(folder)
            try:
                _copy_files(folder, destination, sorted(manifest.file_names))
                break
            except FileNotFoundError as error:
                # the writer has merged segments meanwhile: begin again from the newer state
                if newest_manifest(folder).version == manifest.version or attempt == _ATTEMPTS - 1:
                    raise BankCorruptError(f"{error.filename} is missing: restore it from a copy") from error
        with disk_errors(destination):
            (destination / LOCK_NAME).touch()
        if manifest.version:  # as after a compaction: two manifests, one to fall back to
            write_manifest(destination, replace(manifest, version=manifest.version - 1))
        write_manifest(destination, manifest)
        fsync_folders(holding)
        problems = verify(destination, owns_lock=True)
        if problems:
            raise BankCorruptError(f"{problems[0]}. The copy was removed; verify {folder}")
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise


def _copy_files(folder: Path, destination: Path, names: list[str]) -> None:
    for stale in (destination / SEGMENTS).iterdir():
        if stale.name not in names:
            remove(stale)
    for name in names:
        file = destination / SEGMENTS / name
        if file.exists():
            continue
        # opened before anything is written: that it is gone by then, the writer having merged it, is no failure
        with _opened(folder / SEGMENTS / name) as source, written_durably(file) as temporary:
            _copy(source, temporary)
    with disk_errors(destination):
        fsync_folder(destination / SEGMENTS)


def _opened(file: Path) -> FileIO:
    """A file of the memory that is copied.

    Raises:
        FileNotFoundError: it is not there any more.
        BankError: it cannot be read.
    """
    try:
        return FileIO(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error


def _copy(source: FileIO, destination: Path) -> None:
    """Copy an open file.

    Raises:
        BankError: it cannot be read, for which the disk that is written to is not to blame.
        OSError: the destination cannot be written.
    """
    with open(destination, "wb") as out:
        while True:
            try:
                block = source.read(_BLOCK_BYTES)
            except OSError as error:
                raise unreadable(Path(str(source.name)), error) from error
            if not block:
                return
            out.write(block)
