"""The memory bank: documents, their parts and latents in a folder, changed by atomic commits."""

from __future__ import annotations

import builtins
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from msa.bank import records
from msa.bank.catalog import CATALOG_NAME, Catalog, Header, insert_segment, read_counter, write_counter
from msa.bank.compact import compact, discard, new_name, remove_leftovers
from msa.bank.lock import LOCK_NAME, WriterLock
from msa.bank.schema import BankSpec, Latents, StoredDocument, StoredPart, check_documents, check_latents
from msa.bank.segment import SEGMENTS, SUFFIX, BankSnapshot, Segment, fsync_folder, write_segment
from msa.bank.verify import verify
from msa.errors import BankCorruptError, BankError, BankFormatError, BankMismatchError, BankNotFoundError

logger = logging.getLogger(__name__)


class MemoryBank:
    """A memory folder, made with :meth:`create` or :meth:`open`; a context manager.

    One writer and any number of readers may have a folder open, in any processes; a reader sees the commits of
    the writer as they happen. Methods may be called from several threads.
    """

    def __init__(self, path: Path, catalog: Catalog, lock: WriterLock | None) -> None:
        self.path = path
        self._catalog = catalog
        self._lock = lock
        # Separate from the catalog's lock, so that threads can read while a segment is being written.
        self._write_lock = threading.Lock()
        self._segments: dict[str, Segment] = {}

    @classmethod
    def create(cls, path: str | Path, *, fingerprint: str, spec: BankSpec) -> Self:
        """Create an empty memory and open it for writing.

        Args:
            path: a folder that does not exist or is empty; its parents are created.
            fingerprint: identifies the encoding model; :meth:`open` compares it.
            spec: shape of the latents.

        Raises:
            BankError: a memory is there already, or the folder cannot be written.
            BankFormatError: the folder holds other files.
            BankLockedError: another process is creating it.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_creatable(folder)
            lock = WriterLock(folder)
        except OSError as error:
            raise BankError(f"the memory {folder} cannot be created ({error.strerror or error})") from error
        try:
            if cls.exists(folder):
                raise BankError(f"{folder} already holds a memory. Open it instead, or choose another path")
            (folder / SEGMENTS).mkdir(exist_ok=True)
            Catalog.create(folder, Header(fingerprint=fingerprint, spec=spec))
            fsync_folder(folder.absolute().parent)
            return cls(folder, Catalog(folder, read_only=False), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls, path: str | Path, *, fingerprint: str | None = None, model_name: str | None = None, read_only: bool = False
    ) -> Self:
        """Open an existing memory.

        Args:
            path: the memory folder.
            fingerprint: the model's; None opens the memory whatever model made it.
            model_name: the model's name, for the message when the fingerprints differ.
            read_only: do not become the folder's writer; commits are refused.

        Raises:
            BankNotFoundError: there is no such folder.
            BankFormatError: the path is not a memory, or one of an unknown format version or feature.
            BankMismatchError: another model made the memory.
            BankLockedError: another writer has it open.
            BankCorruptError: the catalog is damaged.
        """
        folder = Path(path)
        if not folder.exists():
            raise BankNotFoundError(f"no memory at {folder}: there is no such folder. Check the path, or create one")
        if not folder.is_dir():
            raise BankFormatError(f"{folder} is a file, expected the folder of a memory")
        catalog = Catalog(folder, read_only=read_only)
        lock = None
        try:
            if fingerprint is not None:
                _check_fingerprint(folder, catalog.header, fingerprint, model_name)
            if not read_only:
                lock = WriterLock(folder)
                remove_leftovers(folder, catalog)
            return cls(folder, catalog, lock)
        except BaseException:
            catalog.close()
            if lock:
                lock.release()
            raise

    def check_fingerprint(self, fingerprint: str, model_name: str | None = None) -> None:
        """Make sure that a model made this memory.

        Raises:
            BankMismatchError: another one did; both fingerprints are named.
        """
        _check_fingerprint(self.path, self._catalog.header, fingerprint, model_name)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether ``path`` is a folder with a catalog in it."""
        return (Path(path) / CATALOG_NAME).is_file()

    def close(self) -> None:
        """Close the bank and let another writer in; a second call does nothing."""
        self._segments.clear()
        self._catalog.close()
        if self._lock:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def spec(self) -> BankSpec:
        """Shape of the latents."""
        return self._catalog.header.spec

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the memory."""
        return self._catalog.header.fingerprint

    @property
    def read_only(self) -> bool:
        """Whether commits are refused."""
        return self._lock is None

    @property
    def version(self) -> int:
        """Number of commits so far, those of other processes included."""
        return self._catalog.counter("version")

    @property
    def next_number(self) -> int:
        """The smallest part number never used."""
        return self._catalog.counter("next_number")

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
            BankError: the bank is read-only, or the disk failed; the memory keeps its previous state.
        """
        self._check_writer()
        check_documents(put, delete)
        if latents is not None:
            check_latents(self.spec, latents)
        with self._write_lock:
            with self._catalog.read() as connection:
                segment_of = records.stored_segments(connection, put, latents)
                if not put and not records.documents_by_id(connection, delete):
                    return self.version
            info = None
            try:
                if latents is not None:
                    info = write_segment(
                        self.path,
                        new_name(self._catalog),
                        spec=self.spec,
                        numbers=latents.numbers,
                        chunk_offsets=latents.chunk_offsets,
                        pieces=lambda kind, layer: [latents.tensor(kind, layer)],
                    )
                with self._catalog.write() as connection:
                    if info and latents is not None:
                        row = insert_segment(connection, info)
                        numbers = latents.numbers.tolist()
                        segment_of |= dict.fromkeys(numbers, row)
                        write_counter(connection, "next_number", numbers[-1] + 1)
                    records.apply_changes(connection, put, delete, segment_of)
                    version = read_counter(connection, "version") + 1
                    write_counter(connection, "version", version)
            except BaseException:
                if info:
                    discard(self.path, self._catalog, info)
                raise
            return version

    def get(self, doc_id: str) -> StoredDocument | None:
        """Return a document, or None if it is not there."""
        with self._catalog.read() as connection:
            found = records.documents_by_id(connection, [doc_id])
        return found[0] if found else None

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and self.content_hash(doc_id) is not None

    def __len__(self) -> int:
        with self._catalog.read() as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def content_hash(self, doc_id: str) -> str | None:
        """Return a document's content hash, or None if it is not there."""
        with self._catalog.read() as connection:
            found = records.find(connection, doc_id)
        return found[1] if found else None

    def list(self, *, limit: int | None = None, after: str | None = None) -> builtins.list[StoredDocument]:
        """Return documents in insertion order.

        Args:
            limit: at most so many; None for all.
            after: start behind the document of this id, the last of the previous page.

        Raises:
            KeyError: there is no document ``after``.
            ValueError: ``limit`` is negative.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more, found {limit}")
        with self._catalog.read() as connection:
            row = 0
            if after is not None:
                found = records.find(connection, after)
                if not found:
                    raise KeyError(after)
                row = found[0]
            return records.documents_after(connection, row, -1 if limit is None else limit)

    def ids(self) -> Iterator[str]:
        """Iterate over the ids in insertion order; commits meanwhile may or may not show."""
        row = 0
        while True:
            with self._catalog.read() as connection:
                query = "SELECT row, id FROM documents WHERE row > ? ORDER BY row LIMIT ?"
                page = connection.execute(query, (row, records.BATCH)).fetchall()
            if not page:
                return
            yield from (id_ for _, id_ in page)
            row = page[-1][0]

    def parts(self, numbers: Sequence[int]) -> builtins.list[StoredPart]:
        """Return the parts of these numbers, in the same order.

        Raises:
            KeyError: a number of no present part.
        """
        asked = [int(number) for number in numbers]
        with self._catalog.read() as connection:
            found = records.parts_by_number(connection, builtins.list(dict.fromkeys(asked)))
        return [found[number] for number in asked]

    def live_numbers(self) -> NDArray[np.int64]:
        """Return the numbers of all present parts, ascending ``[n]``."""
        with self._catalog.read() as connection:
            return records.live_numbers(connection)

    def matching_numbers(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return the numbers of the parts of the documents whose metadata match, ascending ``[n]``.

        Args:
            where: metadata keys with the value each must have; values are equal if they are as JSON, so ``1``
                equals ``1.0`` but not ``True``. A list means any of its members. An empty mapping matches all.

        Raises:
            ValueError: an empty or non-string key, or a value JSON cannot express.
        """
        for key in where:
            if not isinstance(key, str) or not key:
                raise ValueError(f"the keys of where must be metadata keys, not empty, found {key!r}")
        with self._catalog.read() as connection:
            return records.matching_numbers(connection, where)

    def segments(self, *, skip_damaged: bool = False) -> builtins.list[Segment]:
        """Return the open segments of the present state; see :meth:`snapshot`."""
        return builtins.list(self.snapshot(skip_damaged=skip_damaged).segments)

    def snapshot(self, *, skip_damaged: bool = False) -> BankSnapshot:
        """Return version, present parts and segments of one and the same state.

        Args:
            skip_damaged: log a damaged segment and leave it out instead of raising, to use the undamaged rest.

        Raises:
            BankCorruptError: the file of a segment is missing or damaged; it is named.
        """
        while True:
            with self._catalog.read() as connection:
                version = read_counter(connection, "version")
                live = records.live_numbers(connection)
                listed = self._catalog.segments()
            opened: dict[str, Segment] = {}
            damage: dict[str, BankCorruptError] = {}
            for info in listed.values():
                try:
                    opened[info.name] = self._segments.get(info.name) or Segment(self.path, info, self.spec)
                except BankCorruptError as error:
                    damage[info.name] = error
            # A file that a compaction removed between reading the catalog and opening the file is no damage.
            if damage and damage.keys() - {info.name for info in self._catalog.segments().values()}:
                continue
            for problem in damage.values():
                if not skip_damaged:
                    raise problem
                logger.warning("left out: %s", problem)
            self._segments = opened
            return BankSnapshot(version=version, live_numbers=live, segments=tuple(opened.values()))

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes of the present state, and what the bank was made with."""
        with self._catalog.read() as connection:
            documents = connection.execute("SELECT count(*) FROM documents").fetchone()[0]
            query = "SELECT count(*), coalesce(sum(num_chunks), 0), coalesce(sum(num_tokens), 0) FROM parts"
            parts, chunks, tokens = connection.execute(query).fetchone()
            listed = self._catalog.segments().values()
            version = read_counter(connection, "version")
        return {
            "documents": documents,
            "parts": parts,
            "chunks": chunks,
            "tokens": tokens,
            "segments": len(listed),
            "bytes_on_disk": self._catalog.file.stat().st_size + sum(info.num_bytes for info in listed),
            "deleted_parts": sum(info.num_parts for info in listed) - parts,
            "version": version,
            "fingerprint": self.fingerprint,
            "model_name": self.spec.model_name,
            "chunk_size": self.spec.chunk_size,
            "layers": builtins.list(self.spec.layers),
            "dtype": self.spec.dtype,
        }

    def verify(self) -> builtins.list[str]:
        """Check every file against its checksum; every problem is one line naming the file, none means sound."""
        with self._write_lock:
            return verify(self.path, self._catalog, self.spec, owns_lock=not self.read_only)

    def compact(self) -> dict[str, Any]:
        """Rewrite all segments as one without deleted parts, then remove the old files; numbers stay.

        Needs free disk space for the new segment. Readers keep using the old files until they look again.
        Returns ``compacted`` (False if there was nothing to do), ``message``, ``removed_parts``,
        ``segments_before``, ``segments_after``, ``bytes_before``, ``bytes_after`` and ``version``.

        Raises:
            BankCorruptError: a segment with present parts is damaged; nothing was changed.
            BankError: the bank is read-only, or the disk failed; the memory keeps its previous state.
        """
        self._check_writer()
        with self._write_lock:
            return compact(self.path, self._catalog, self.spec)

    def _check_writer(self) -> None:
        if self.read_only:
            raise BankError(f"the memory {self.path} is open read-only. Open it with read_only=False to change it")


def _check_creatable(folder: Path) -> None:
    known = {CATALOG_NAME, SEGMENTS, LOCK_NAME}
    foreign = [file.name for file in folder.iterdir() if file.name not in known and not file.name.startswith(".")]
    if foreign:
        raise BankFormatError(f"{folder} is not empty and no memory: it holds {min(foreign)}. Choose another path")
    if any((folder / SEGMENTS).glob(f"*{SUFFIX}")) and not MemoryBank.exists(folder):
        raise BankCorruptError(f"{folder / CATALOG_NAME} is missing, though there are segments. Restore it from a copy")


def _check_fingerprint(folder: Path, header: Header, fingerprint: str, model_name: str | None) -> None:
    if fingerprint != header.fingerprint:
        raise BankMismatchError(
            f"the memory {folder} was made by model {header.spec.model_name} with fingerprint "
            f"{header.fingerprint}, it was opened with {f'model {model_name}' if model_name else 'a model'} "
            f"with fingerprint {fingerprint}. Open it with the model that made it, or build it again"
        )
