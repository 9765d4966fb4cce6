"""The memory bank: documents, their parts and latents in a folder, changed by atomic commits."""

from __future__ import annotations

import builtins
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from msa.bank.backup import copy_memory
from msa.bank.byte_counter import ByteCounter
from msa.bank.checks import check_creatable, check_fingerprint, check_finite, check_put
from msa.bank.commit import prune, publish, write_changes
from msa.bank.compact import compact, merge_small
from msa.bank.files import fsync_folders, make_folder
from msa.bank.lock import WriterLock, writer_is_active
from msa.bank.manifest import Manifest, manifest_versions, write_manifest
from msa.bank.opening import current_state, missing_manifests, newest_manifest
from msa.bank.schema import BankSpec, Latents, StoredDocument, StoredPart, check_documents, check_latents
from msa.bank.segment import SEGMENTS, Segment
from msa.bank.state import State
from msa.bank.verify import counts_and_sizes, file_problems, folder_problems
from msa.errors import BankError, BankFormatError, BankNotFoundError

logger = logging.getLogger(__name__)


class MemoryBank:
    """A memory folder, made with :meth:`create` or :meth:`open`; a context manager.

    One writer and any number of readers may have a folder open, in any processes; a reader sees the commits of
    the writer as they happen, each call one consistent state. Methods may be called from several threads.

    Attributes:
        fetched: bytes of content keys and values that were read for questions since the memory was opened.
    """

    def __init__(self, path: Path, state: State, lock: WriterLock | None, max_bytes: int | None = None) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.fetched = ByteCounter()
        self._lock = lock
        # threads can read while a segment is being written
        self._write_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._last: State | None = state

    @classmethod
    def create(cls, path: str | Path, *, fingerprint: str, spec: BankSpec, max_bytes: int | None = None) -> Self:
        """Create an empty memory and open it for writing.

        Args:
            path: a folder that does not exist or is empty; its parents are created.
            fingerprint: identifies the encoding model; :meth:`open` compares it.
            spec: shape of the latents.
            max_bytes: refuse what would make the folder larger; None: no limit.

        Raises:
            BankError: a memory is there already, or the folder cannot be written.
            BankFormatError: the folder holds other files.
            BankLockedError: another process is creating it.
        """
        folder = Path(path)
        try:
            holding = make_folder(folder)
            check_creatable(folder)
            lock = WriterLock(folder)
        except OSError as error:
            raise BankError(f"the memory {folder} cannot be created ({error.strerror or error})") from error
        try:
            if cls.exists(folder):
                raise BankError(f"{folder} already holds a memory. Open it instead, or choose another path")
            (folder / SEGMENTS).mkdir(exist_ok=True)
            write_manifest(folder, Manifest(fingerprint=fingerprint, spec=spec))
            fsync_folders(holding)
            prune(folder)
            return cls(folder, current_state(folder, None), lock, max_bytes)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        fingerprint: str | None = None,
        model_name: str | None = None,
        read_only: bool = False,
        max_bytes: int | None = None,
    ) -> Self:
        """Open an existing memory, in its newest sound state.

        A damaged newest manifest is logged, and the state before it opened; a segment with a damaged file is logged,
        and what is readable of the rest used.

        Args:
            path: the memory folder.
            fingerprint: the model's; None opens the memory whatever model made it.
            model_name: the model's name, for the message when the fingerprints differ.
            read_only: do not become the folder's writer; commits are refused.
            max_bytes: refuse what would make the folder larger; None: no limit.

        Raises:
            BankNotFoundError: there is no such folder.
            BankFormatError: the path is not a memory, or one of an unknown format version or feature.
            BankMismatchError: another model made the memory.
            BankLockedError: another writer has it open.
            BankCorruptError: too much is damaged to tell what is present.
        """
        folder = Path(path)
        if not folder.exists():
            raise BankNotFoundError(f"no memory at {folder}: there is no such folder. Check the path, or create one")
        if not folder.is_dir():
            raise BankFormatError(f"{folder} is a file, expected the folder of a memory")
        manifest = newest_manifest(folder)
        if fingerprint is not None:
            check_fingerprint(folder, manifest, fingerprint, model_name)
        lock = None
        try:
            quiet = not read_only or not writer_is_active(folder)
            if not read_only:
                lock = WriterLock(folder)
            for problem in missing_manifests(folder) if quiet else []:
                logger.warning("%s. Version %d is used", problem, manifest.version)
            if lock:
                prune(folder)
            return cls(folder, current_state(folder, None), lock, max_bytes)
        except BaseException:
            if lock:
                lock.release()
            raise

    def check_fingerprint(self, fingerprint: str, model_name: str | None = None) -> None:
        """Make sure that a model made this memory; a :class:`BankMismatchError` names both fingerprints."""
        check_fingerprint(self.path, self._state().manifest, fingerprint, model_name)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether ``path`` is a folder with a manifest in it, sound or not."""
        return Path(path).is_dir() and bool(manifest_versions(Path(path)))

    def close(self) -> None:
        """Close the bank and let another writer in; a second call does nothing. A commit at work is waited for."""
        with self._write_lock:
            with self._state_lock:
                self._last = None
            if self._lock:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _state(self) -> State:
        """The newest state."""
        with self._state_lock:
            if self._last is None:
                raise BankError(f"the memory {self.path} is closed. Open it again")
            self._last = current_state(self.path, self._last)
            return self._last

    @property
    def spec(self) -> BankSpec:
        """Shape of the latents."""
        return self._opened().manifest.spec

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the memory."""
        return self._opened().manifest.fingerprint

    def check_open(self) -> None:
        """Make sure that it can be used; a :class:`BankError` says that it was closed."""
        self._opened()

    def _opened(self) -> State:
        """Some state, for what never changes."""
        return self._last or self._state()

    @property
    def read_only(self) -> bool:
        """Whether commits are refused."""
        return self._lock is None

    @property
    def version(self) -> int:
        """Number of the present state; every commit raises it, those of other processes included."""
        return self._state().manifest.version

    @property
    def next_number(self) -> int:
        """The smallest part number never used."""
        return self._state().manifest.next_number

    def commit(
        self, *, put: Sequence[StoredDocument] = (), latents: Latents | None = None, delete: Sequence[str] = ()
    ) -> int:
        """Change the memory atomically and durably.

        Args:
            put: documents to insert, or to replace where the id is present. A replaced document keeps its place in
                the listing; of its old parts only those whose numbers are among the new ones stay.
            latents: of the parts of ``put`` that are new; their numbers start at :attr:`next_number` or above.
            delete: ids of documents to remove; unknown ids are ignored.

        Returns:
            The new version, or the present one if nothing changed.

        Raises:
            ValueError: the documents and latents do not fit each other, the spec or what is stored.
            NotFiniteError: latents are NaN or infinite; nothing was changed.
            BankFullError: the folder would grow beyond ``max_bytes``; nothing was changed.
            BankError: the bank is read-only, or the disk failed; the memory keeps its previous state.
        """
        self._check_writer()
        check_documents(put, delete)
        if latents is not None:
            check_latents(self.spec, latents)
            check_finite(put, latents)
        with self._write_lock:
            self._check_lock()
            state = self._state()
            found = state.find([*(document.id for document in put), *delete])
            check_put(state, put, latents, found)
            manifest = write_changes(self.path, state, put, latents, delete, found, self.max_bytes)
            if manifest is None:
                return state.manifest.version
            publish(self.path, manifest, manifest.segments[-1])
            merge_small(self.path, self._state, self.max_bytes)
            prune(self.path)
            return manifest.version

    def get(self, doc_id: str) -> StoredDocument | None:
        """Return a document, or None if it is not there.

        Raises:
            BankFileError: the document is damaged, or it is not among those that can be read of a damaged memory.
        """
        state = self._state()
        found = state.find([doc_id])
        if found:
            return state.documents([found[doc_id]])[0]
        for segment in state.segments:
            if not segment.has_documents:
                raise segment.damage[0]
        return None

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and bool(self._state().find([doc_id]))

    def __len__(self) -> int:
        return len(self._state().places)

    def content_hash(self, doc_id: str) -> str | None:
        """Return a document's content hash; None if it is not there, or it is damaged: add it again then."""
        found = self.sound_documents([doc_id]).get(doc_id)
        return None if found is None else found.content_hash

    def content_hashes(self, doc_ids: Iterable[str]) -> dict[str, str]:
        """Content hashes of those among the documents that are there, as stored: a damaged text is not noticed.

        That is quick; :meth:`sound_documents` reads and checks all there is of them.
        """
        return self._state().content_hashes(doc_ids)

    def sound_documents(self, doc_ids: Iterable[str]) -> dict[str, StoredDocument]:
        """Those among the documents that are there, with sound texts and latents; the others are to be added again."""
        return self._state().sound_documents(doc_ids)

    def list(self, *, limit: int | None = None, after: str | None = None) -> builtins.list[StoredDocument]:
        """Return documents in insertion order.

        Args:
            limit: at most so many; None for all.
            after: start behind the document of this id, the last of the previous page.

        Raises:
            KeyError: there is no document ``after``.
            ValueError: ``limit`` is negative.
            BankFileError: one of the documents is damaged, or those of a segment cannot be read at all.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more, found {limit}")
        state = self._state()
        place = 0
        if after is not None:
            found = state.find([after])
            if not found:
                raise KeyError(f"there is no document {after!r} to list after")
            place = found[after]
        return state.documents_after(place, limit)

    def ids(self) -> Iterator[str]:
        """Iterate over the ids of one state in insertion order."""
        return self._state().ids()

    def parts(self, numbers: Sequence[int]) -> builtins.list[StoredPart]:
        """Return the parts of these numbers, in the same order.

        Raises:
            KeyError: a number of no present part.
            BankCorruptError: a document is damaged.
        """
        return self._state().parts(numbers)

    def live_numbers(self) -> NDArray[np.int64]:
        """Return the numbers of all present parts, ascending ``[n]``."""
        return self._state().numbers

    def matching_numbers(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return the numbers of the parts of the documents whose metadata match, ascending ``[n]``.

        Args:
            where: metadata keys with the value each must have, or have in a list; values are equal if they are as
                JSON, so ``1`` equals ``1.0`` but not ``True``. A list means any of its members. Empty: all match.

        Raises:
            ValueError: an empty or non-string key, or a value JSON cannot express.
        """
        return self._state().matching_numbers(where)

    def matches(self, words: str, limit: int) -> builtins.list[tuple[int, float]]:
        """Return part numbers whose texts match an SQLite FTS5 query, best first, with their BM25 scores."""
        return self._state().matches(words, limit)

    def state(self) -> State:
        """Return the newest state: it stays as it is, whatever is committed later."""
        return self._state()

    def segments(self) -> builtins.list[Segment]:
        """Return the open segments of the newest state, oldest first."""
        return builtins.list(self._state().segments)

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes of the present state, and what the bank was made with."""
        return counts_and_sizes(self.path, self._state())

    def verify(self) -> builtins.list[str]:
        """Check every file, while others may write; every problem is one line naming the file, none means sound."""
        self.check_open()
        return [*dict.fromkeys([*file_problems(self.path), *self.folder_problems()])]

    def folder_problems(self) -> builtins.list[str]:
        """The part of :meth:`verify` that reads no segment: what is missing in the folder or does not belong there."""
        with self._write_lock:
            self.check_open()
            return folder_problems(self.path, owns_lock=not self.read_only)

    def backup(self, destination: str | Path) -> None:
        """Copy the newest state into a new or empty folder, checked; the copy is a memory. Others may go on writing.

        Raises:
            BankError: the destination is not empty, or the disk failed; nothing is left.
            BankCorruptError: what was copied is damaged; nothing is left.
        """
        self.check_open()
        copy_memory(self.path, Path(destination))

    def compact(self, *, drop_damaged: bool = False, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Rewrite all segments as one without deleted parts, then remove the old files; numbers stay.

        Needs free disk space for the new segment. Readers keep using the old files until they look again. Afterwards
        no file holds anything of a deleted document, and there is no older state to fall back to.

        Args:
            drop_damaged: leave out what cannot be read instead of raising. Documents whose latents are lost keep their
                texts; add them again to have them encoded.
            check: called between two blocks that are read or written; if it raises, nothing was changed.

        Returns:
            ``compacted`` (False if there was nothing to do), ``message``, ``removed_parts``, ``segments_before``,
            ``segments_after``, ``bytes_before``, ``bytes_after`` and ``version``.

        Raises:
            BankCorruptError: a segment is damaged; nothing was changed.
            BankError: the bank is read-only, or the disk failed; the memory keeps its previous state.
        """
        self._check_writer()
        with self._write_lock:
            self._check_lock()
            return compact(self.path, self._state, drop_damaged=drop_damaged, check=check)

    def _check_writer(self) -> None:
        if self.read_only:
            raise BankError(f"the memory {self.path} is open read-only. Open it with read_only=False to change it")

    def _check_lock(self) -> None:
        self._state()  # a closed bank has no lock
        if self._lock:
            self._lock.check()
