"""Files that are written whole and durably, or not at all; their checksums."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from msa.errors import BankError, BankUnreadableError

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
_READ_BYTES = 1 << 22
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


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


def unreadable(file: Path, error: OSError | MemoryError) -> BankError:
    """What to raise where a file that is there cannot be read: that it is damaged nobody knows.

    A :class:`BankUnreadableError` is of this file alone. What the process or the machine is short of is a plain
    :class:`BankError`: the other files cannot be read then either.
    """
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    said = f"{file} cannot be read ({os.strerror(number) if number else error}), though it need not be damaged"
    if number in _SHORTAGES:
        return BankError(f"{said}. Try again when there is more of that, or raise the limit (ulimit)")
    return BankUnreadableError(
        f"{said}. Repair the disk or grant permission. If it stays so, restore the file from a copy, or remove it and "
        "add its documents again"
    )


def fsync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, with those above it that are not there.

    Returns:
        The folders to sync, once it is finished, for its name to last: :func:`fsync_folders`.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    folder = folder.absolute()
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # its own name in any case: whoever made it may not have synced that
    return [folder.parent, *(each.parent for each in new if each != folder)]


def fsync_folders(folders: Iterable[Path]) -> None:
    """As :func:`fsync_folder` for several.

    Raises:
        BankError: the disk failed.
    """
    for folder in folders:
        with disk_errors(folder):
            fsync_folder(folder)


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
