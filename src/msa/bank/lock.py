"""One writer per memory folder: an advisory lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO

from msa.errors import BankError, BankLockedError

logger = logging.getLogger(__name__)

LOCK_NAME = "memory.lock"
_ATTEMPTS = 5
_PAUSE_S = 0.02


class WriterLock:
    """Held from construction to :meth:`release`, by the process that made it: a forked child has no part in it.

    Raises:
        BankLockedError: another writer holds it; its process id is named.
        BankError: the lock file cannot be opened, or its disk has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._process = folder, os.getpid()
        self._file = self._taken()
        _held.add(self)

    def _taken(self) -> IO[str]:
        """The lock file, open and locked; a file is of use only while it is the one in the folder."""
        file = _opened(self._folder)
        try:
            _acquire(file, self._folder)
            while not _is_in(file, self._folder):
                file.close()
                file = _opened(self._folder)
                _acquire(file, self._folder)
            _write(file, f"{os.getpid()} {socket.gethostname()}\n")
        except BaseException:
            file.close()
            raise
        return file

    def check(self) -> None:
        """Make sure that this process is still the folder's writer; a lock file that was removed is made again.

        Raises:
            BankLockedError: another writer has it now, or this process is a child of the one that took the lock.
        """
        if self._process != os.getpid():
            raise BankLockedError(
                f"the memory {self._folder} was opened for writing by process {self._process}, of which this one, "
                f"{os.getpid()}, is a child. Close it there and open it here, or open it with read_only=True"
            )
        if not _is_in(self._file, self._folder):
            logger.warning("%s was removed while the memory was being written; it is made again", LOCK_NAME)
            file = self._taken()
            self._file.close()
            self._file = file

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._file.closed:
            return
        if self._process == os.getpid():
            _write(self._file, "")
            # Unlocking explicitly also releases it for copies of the descriptor in forked children.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


# the kernel drops a lock when the last copy of its descriptor goes: a child would hold what its parent took
_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go() -> None:
    for lock in [*_held]:
        lock._file.close()


os.register_at_fork(after_in_child=_let_go)


def _opened(folder: Path) -> IO[str]:
    try:
        # "a" neither truncates the holder's process id nor needs the file to exist.
        return open(folder / LOCK_NAME, "a", encoding="utf-8")
    except OSError as error:
        raise BankError(
            f"the memory {folder} cannot be opened for writing ({error.strerror or error}). "
            "Open it with read_only=True, or grant write permission"
        ) from error


def _write(file: IO[str], holder: str) -> None:
    """Say who holds the lock; on a full disk nobody is told, the lock holds all the same."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), holder.encode())


def _acquire(file: IO[str], folder: Path) -> None:
    # A reader that asks whether a writer is active holds the lock for an instant, hence the attempts.
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if attempt == _ATTEMPTS - 1:
                raise BankLockedError(
                    f"the memory {folder} is being written by {_holder(folder)}. "
                    "Wait until it ends, or open the memory with read_only=True"
                ) from error
            time.sleep(_PAUSE_S)
        except OSError as error:  # some network disks know no locks
            raise BankError(
                f"the memory {folder} cannot be locked for writing ({error.strerror or error}). Move it to a disk that "
                "has file locks, or open it with read_only=True"
            ) from error


def _is_in(file: IO[str], folder: Path) -> bool:
    """Whether an open lock file is the one in the folder: it may have been removed, and another be there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK_NAME))
    except FileNotFoundError:
        return False


def writer_is_active(folder: Path) -> bool:
    """Whether some process, this one included, holds the writer lock of ``folder``."""
    try:
        with open(folder / LOCK_NAME, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _holder(folder: Path) -> str:
    words: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        words = (folder / LOCK_NAME).read_text(encoding="utf-8").split()
    if not words or not words[0].isdigit():
        return "another process"
    if len(words) > 1 and words[1] != socket.gethostname():
        return f"process {words[0]} on {words[1]}"
    return f"process {words[0]}" + (" (this process)" if int(words[0]) == os.getpid() else "")
