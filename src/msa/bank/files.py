"""Files that are written whole and durably, or not at all; their checksums."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from msa.errors import BankError

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
_READ_BYTES = 1 << 22


@contextlib.contextmanager
def written_durably(file: Path) -> Iterator[Path]:
    """Give a temporary path beside ``file``; what was written there becomes ``file`` at the end, synced.

    The folder is not synced: :func:`fsync_folder` makes the new name durable. On any exception neither file is left.

    Raises:
        BankError: the disk is full or failed.
    """
    temporary = temporary_of(file)
    with disk_errors(file):
        try:
            remove(temporary)
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except BaseException:
            remove(temporary)
            raise


def temporary_of(file: Path) -> Path:
    """Where a file is while it is being written."""
    return file.with_name(f".{file.name}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``file`` into a :class:`BankError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise BankError(
            f"writing {file} failed ({error.strerror or error}). The memory keeps its previous state; "
            "free disk space or repair the disk, then try again"
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(file: Path) -> None:
    """Delete a file that is no longer needed; failure only wastes space, so it is logged and not raised."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("could not remove %s: %s", file, error)


def checksum(data: bytes | memoryview) -> str:
    """XXH3 of some bytes, 128 bits in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(file: Path) -> str:
    """XXH3 of a whole file, 128 bits in hex, reading a few megabytes at a time."""
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(*folders: Path) -> int:
    """Bytes of all files in these folders; those that are not there, or that a writer removes meanwhile, count nothing.

    Raises:
        BankError: a folder cannot be read.
    """
    total = 0
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BankError(f"{folder} cannot be read ({error.strerror or error})") from error
    return total
