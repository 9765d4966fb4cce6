"""The memories below one folder: their names, opening and closing them, making and removing them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msa.bank import MemoryBank
from msa.bank.lock import writer_is_active
from msa.bank.opening import newest_manifest
from msa.bank.verify import file_problems
from msa.errors import BankCorruptError, BankError, BankFormatError, BankLockedError, BankMismatchError
from msa.memory import Memory
from msa.memory.memory import OpenView
from msa.model.bundle import MSAModel
from msa.routing import BankView, Tiers
from msa.serving.errors import ApiError, invalid, memory_not_found
from msa.serving.named_locks import NamedLocks

logger = logging.getLogger(__name__)

STATE_FOLDER = ".msa-server"  # no memory can have this name
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
# names of devices, which Windows takes for them with any ending
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def is_name(name: str) -> bool:
    """Whether a memory can have this name.

    >>> is_name("notes-2.1"), is_name(".."), is_name(".msa-server"), is_name("aux.old")
    (True, False, False, False)
    """
    return bool(_NAME.fullmatch(name)) and ".." not in name and not _DEVICE.fullmatch(name)


def check_name(name: str) -> str:
    """A memory's name, as it is.

    Raises:
        ApiError: it is none: 400.
    """
    if not is_name(name):
        raise invalid(
            f"a memory's name has 1 to 64 letters, digits, '_', '-' and '.', begins with a letter or digit, does not "
            f"end with '.', has no '..' and is no device of Windows such as 'con'; got {name[:80]!r}",
            param="name",
            code="invalid_memory_name",
        )
    return name


def _name_taken(name: str) -> ApiError:
    message = f"the name {name!r} is taken, or differs from another one in upper and lower case only; choose another"
    return ApiError(409, message, "name_taken", param="name", retry=False)


class _Open:
    """One open memory and how many use it.

    Its folder stays open with it: the number of one that is deleted meanwhile is then given to no other.
    """

    def __init__(self, memory: Memory, folder: int) -> None:
        self.memory = memory
        self._folder = folder
        self.users = 0
        self.last_used = time.monotonic()
        self.retired = False

    def is_of(self, identity: tuple[int, int]) -> bool:
        """Whether it is the memory in the folder of this device and number."""
        status = os.fstat(self._folder)
        return (status.st_dev, status.st_ino) == identity

    def close(self) -> None:
        self.memory.close()
        os.close(self._folder)


class Memories:
    """The memories of a folder, opened when first used.

    Methods block and may be called from several threads.

    Args:
        root: the folder.
        model: the model that all of them are opened with.
        read_only: open them for reading only.
        tiers: where latents live.
        max_bytes: size that each may have.
        max_open: how many stay open.
        open_view: makes what a version is asked through, as :class:`msa.Memory`'s.
    """

    def __init__(
        self,
        root: Path,
        model: MSAModel,
        *,
        read_only: bool = False,
        tiers: Tiers | None = None,
        max_bytes: int | None = None,
        max_open: int = 32,
        open_view: OpenView = BankView,
    ) -> None:
        self.root = root
        self.model = model
        self.read_only = read_only
        self.tiers = tiers or Tiers()
        self._open_view = open_view
        self._max_bytes = max_bytes
        self._max_open = max_open
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._opening = NamedLocks()

    def names(self) -> list[str]:
        """Names of all memories, sorted."""
        with os.scandir(self.root) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in found if is_name(name) and MemoryBank.exists(self.root / name))

    def exists(self, name: str) -> bool:
        """Whether there is a memory of exactly this name, also where the file system takes ``A`` for ``a``."""
        folder = self.root / name
        return is_name(name) and name in self._folder_names() and not folder.is_symlink() and MemoryBank.exists(folder)

    def _identity(self, name: str) -> tuple[int, int]:
        """Which folder it is, so that one that was replaced is noticed.

        Raises:
            ApiError: there is none, or it is a link: 404.
        """
        if not self.exists(name):
            raise memory_not_found(name)
        try:
            status = os.stat(self.root / name, follow_symlinks=False)
        except OSError as error:
            raise memory_not_found(name) from error
        return status.st_dev, status.st_ino

    @contextlib.contextmanager
    def lease(self, name: str, *, writing: bool = False) -> Iterator[Memory]:
        """An open memory, which stays open at least until the end of the block.

        Raises:
            ApiError: there is no such memory: 404.
            BankLockedError: ``writing``, and another process writes to it.
            BankError: it cannot be opened.
        """
        entry = self._acquire(name, writing)
        try:
            yield entry.memory
        except BankError:
            if entry.retired:  # it was deleted meanwhile
                raise memory_not_found(name) from None
            raise
        finally:
            self._release(entry)

    def _acquire(self, name: str, writing: bool) -> _Open:
        with self._opening.holding(name):  # two threads must not open the same memory
            identity = self._identity(name)
            with self._lock:
                entry = self._open.get(name)
                if entry is not None and (not entry.is_of(identity) or (writing and entry.memory.bank.read_only)):
                    self._retire(name, entry)
                    entry = None
                if entry is not None:
                    entry.users += 1
                    return entry
            folder = self._open_folder(name)
            try:
                memory = self._opened(self.root / name, writing)
            except BaseException:
                os.close(folder)
                raise
            memory.open_view = self._open_view
            with self._lock:
                entry = self._open[name] = _Open(memory, folder)
                entry.users = 1
                self._close_unused()
            return entry

    def _opened(self, folder: Path, writing: bool) -> Memory:
        options: dict[str, Any] = {"model": self.model, "create": False, "tiers": self.tiers}
        if not self.read_only:
            try:
                return Memory.open(folder, max_bytes=self._max_bytes, **options)
            except BankLockedError:
                if writing:
                    raise
                logger.warning("memory %s is written by another process; it can be read only for now", folder.name)
        return Memory.open(folder, read_only=True, **options)

    def _release(self, entry: _Open) -> None:
        with self._lock:
            entry.users -= 1
            entry.last_used = time.monotonic()
            if entry.retired and not entry.users:
                entry.close()
            self._close_unused()

    def _retire(self, name: str, entry: _Open) -> None:
        """Let nobody else use it, and close it once nobody does."""
        del self._open[name]
        entry.retired = True
        if not entry.users:
            entry.close()

    def _open_folder(self, name: str) -> int:
        """A descriptor of a memory's folder; 404 where there is none."""
        try:
            return os.open(self.root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise memory_not_found(name) from error

    def _close_unused(self) -> None:
        unused = sorted((entry.last_used, name) for name, entry in self._open.items() if not entry.users)
        for _, name in unused[: max(0, len(self._open) - self._max_open)]:
            self._retire(name, self._open[name])

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[Callable[[], None]]:
        """A check that a memory is still the same one; its folder stays open, so that no other gets its number.

        Raises:
            ApiError: there is no such memory, or the check finds another one in its place: 404.
        """
        self._identity(name)
        descriptor = self._open_folder(name)

        def check() -> None:
            try:
                status = os.stat(self.root / name, follow_symlinks=False)
            except OSError as error:
                raise memory_not_found(name) from error
            if not os.path.samestat(status, os.fstat(descriptor)):
                raise memory_not_found(name)

        try:
            yield check
        finally:
            os.close(descriptor)

    def verify(self, name: str, check: Callable[[], None] = lambda: None) -> list[str]:
        """A line for every problem of a memory, which others may go on reading and writing meanwhile.

        Args:
            name: the memory's.
            check: called now and then; may raise to end early.

        Raises:
            ApiError: there is no such memory, or it was deleted meanwhile: 404.
            BankError: it cannot be opened.
        """
        with self.pinned(name) as still_there:

            def go_on() -> None:
                still_there()
                check()

            with self.lease(name) as memory:
                problems = memory.bank.folder_problems()
            try:
                problems += file_problems(self.root / name, go_on)
            except (BankError, OSError):
                still_there()
                raise
            still_there()
            return [*dict.fromkeys(problems)]

    def fits(self, name: str) -> bool:
        """Whether the model made this memory, so that it can be asked."""
        try:
            self._identity(name)
            return newest_manifest(self.root / name).fingerprint == self.model.fingerprint
        except (ApiError, BankError):
            return False

    def open_ones(self) -> list[tuple[str, Memory]]:
        """Those that are open now, for measurements."""
        with self._lock:
            return [(name, entry.memory) for name, entry in self._open.items()]

    def create(self, name: str, known: Callable[[str], bool] = lambda name: True) -> bool:
        """Make an empty memory; False: there is one of this name already.

        Raises:
            ApiError: as for :meth:`check_free`.
        """
        if self.exists(check_name(name)):
            return False
        self.check_free(name, known)
        with self.building() as folder:
            Memory.open(folder, model=self.model).close()
            return self.place(folder, name)

    def check_free(self, name: str, known: Callable[[str], bool] = lambda name: True) -> None:
        """Make sure that a new memory can have this name.

        Args:
            name: what it is to be called.
            known: whether the one who asks may know that a memory of a name is there; others count for nothing.

        Raises:
            ApiError: it is none: 400; it is taken, or differs from a known one's in case only: 409.
        """
        same = [other for other in self._folder_names() if other.lower() == check_name(name).lower()]
        if any(other == name or known(other) for other in same):
            raise _name_taken(name)

    def _folder_names(self) -> list[str]:
        return os.listdir(self.root)

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """A path, on the same disk, where a memory can be built before it gets its name."""
        folder = self.root / STATE_FOLDER / "building" / uuid.uuid4().hex
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def place(self, folder: Path, name: str) -> bool:
        """Give a finished memory its name, durably; False: the name was taken meanwhile.

        Raises:
            ApiError: the file system takes the name for another one's: 409.
        """
        try:
            os.rename(folder, self.root / name)
        except OSError as error:
            if self.exists(name):
                return False
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _name_taken(name) from error
            raise
        sync_folder(self.root)
        return True

    def delete(self, name: str) -> int | None:
        """Remove a memory with all it holds; returns how many documents that were, None: it could not be read.

        Raises:
            ApiError: there is none: 404.
            BankLockedError: another process writes to it.
        """
        self._identity(name)
        try:
            with self.lease(name, writing=True) as memory:
                documents = len(memory)
                with self._lock:
                    entry = self._open.get(name)
                    if entry is not None and entry.memory is memory:
                        self._retire(name, entry)
                self.discard(self.root / name)
                return documents
        except (BankMismatchError, BankFormatError, BankCorruptError):  # of no use to us, and all the more to go
            if writer_is_active(self.root / name):
                raise BankLockedError(f"the memory {name} is being written by another process; wait for it") from None
            self.discard(self.root / name)
            return None

    def discard(self, folder: Path) -> None:
        """Take a folder's name away, durably and at once, then its files; what is left of them the next start removes.

        Raises:
            FileNotFoundError: there is none, or somebody else took it away.
        """
        with self.building() as trash:
            os.rename(folder, trash)
            sync_folder(folder.parent)

    def close(self) -> None:
        """Close all; called when nothing uses them any more."""
        with self._lock:
            for name, entry in [*self._open.items()]:
                self._retire(name, entry)


def sync_folder(folder: Path) -> None:
    """Make the names inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
