"""One writer per memory folder: an advisory lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from msa.errors import BankError, BankLockedError

LOCK_NAME = "memory.lock"
_ATTEMPTS = 5
_PAUSE_S = 0.02


class WriterLock:
    """Held from construction to :meth:`release`.

    Raises:
        BankLockedError: another writer holds it; its process id is named.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # "a" neither truncates the holder's process id nor needs the file to exist.
            self._file = open(folder / LOCK_NAME, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the lock
        except OSError as error:
            raise BankError(
                f"the memory {folder} cannot be opened for writing ({error.strerror or error}). "
                "Open it with read_only=True, or grant write permission"
            ) from error
        try:
            self._acquire(folder)
            self._file.truncate(0)
            self._file.write(f"{os.getpid()} {socket.gethostname()}\n")
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def _acquire(self, folder: Path) -> None:
        # A reader that asks whether a writer is active holds the lock for an instant, hence the attempts.
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if attempt == _ATTEMPTS - 1:
                    raise BankLockedError(
                        f"the memory {folder} is being written by {_holder(folder)}. "
                        "Wait until it ends, or open the memory with read_only=True"
                    ) from error
                time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._file.closed:
            return
        self._file.truncate(0)
        # Unlocking explicitly also releases it for copies of the descriptor in forked children.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


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
