"""Documents files: immutable SQLite files with texts, metadata, parts and indexes of the documents of one segment.

SQLite serves as a file format with indexes; nothing is ever changed in one. Axes: d documents, s superseded, p parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from msa.bank.files import checksum, file_checksum, unreadable, written_durably
from msa.bank.manifest import FileInfo, SegmentInfo, documents_name
from msa.bank.schema import Part, StoredDocument, dump_json
from msa.bank.terms import document_terms, member_terms
from msa.errors import BankCorruptError, BankError

BATCH = 500  # below SQLite's oldest limit of 999 variables in a statement
# what SQLite says, in the lower eight bits of its codes, where it could not read rather than read nonsense
_UNREADABLE = frozenset({sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN})
T = TypeVar("T")
Row = tuple[int, StoredDocument]
_COLUMNS = ("places", "superseded", "part_numbers", "part_places", "part_tokens", "part_chunks", "id_places")
_DIGESTS = "id_digests"
_TERMS_VERSION = 1  # from which on ``terms`` has members of lists too; before there was none, which is SQLite's 0
_TABLES = """
CREATE TABLE documents (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL,
    content_hash TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, place INTEGER NOT NULL, position INTEGER NOT NULL, start INTEGER NOT NULL,
    stop INTEGER NOT NULL, num_tokens INTEGER NOT NULL, num_chunks INTEGER NOT NULL);
CREATE INDEX parts_by_place ON parts (place, position);
CREATE TABLE terms (digest BLOB NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (digest, place)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5 (text, content = '');
CREATE TABLE columns (name TEXT PRIMARY KEY, data BLOB NOT NULL, checksum TEXT NOT NULL) WITHOUT ROWID;
"""


class DocumentsFile:
    """An open documents file. Safe to share between threads.

    Attributes:
        places: ``[d]`` int64 ascending: where each document stands in the memory's listing.
        superseded: ``[s]`` int64 ascending: places whose documents in older segments this segment replaces or deletes.
        part_numbers: ``[p]`` int64 ascending; part_places, part_tokens, part_chunks: their documents and sizes.
        id_digests: ``[d]`` of 16 bytes ascending, of the ids; id_places: ``[d]`` int64, their places. Ids are looked up
            in these, which are checked at opening, so that damage never makes a document seem absent.

    Raises:
        BankCorruptError: the file is missing, has another size, or its tables are damaged.
        BankError: it cannot be read at present; see :func:`msa.bank.files.unreadable`. So say all methods then.
    """

    places: NDArray[np.int64]
    superseded: NDArray[np.int64]
    part_numbers: NDArray[np.int64]
    part_places: NDArray[np.int64]
    part_tokens: NDArray[np.int64]
    part_chunks: NDArray[np.int64]
    id_places: NDArray[np.int64]

    def __init__(self, folder: Path, info: SegmentInfo) -> None:
        self.file = folder / documents_name(info.name)
        self._info = info.documents
        self._lock = threading.RLock()
        try:
            found = self.file.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BankCorruptError(f"{self.file} is missing: restore it from a copy") from error
        except OSError as error:
            raise unreadable(self.file, error) from error
        if found != info.documents.num_bytes:
            raise BankCorruptError(
                f"{self.file} is damaged: expected {info.documents.num_bytes:,} bytes, found {found:,}"
            )
        uri = f"file:{quote(str(self.file.absolute()))}?mode=ro&immutable=1"
        with self._errors():
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            rows = self._connection.execute("SELECT name, data, checksum FROM columns").fetchall()
            (self._terms_version,) = self._connection.execute("PRAGMA user_version").fetchone()
        stored = {name: data for name, data, expected in rows if _is_sound(name, data, expected)}
        if set(stored) != {*_COLUMNS, _DIGESTS}:
            raise BankCorruptError(f"{self.file} is damaged: the checksum of its table of columns is wrong")
        self.id_digests = np.frombuffer(stored.pop(_DIGESTS), dtype="S16")
        self._prefixes = id_prefixes(self.id_digests)
        for name, data in stored.items():
            setattr(self, name, np.frombuffer(data, dtype="<i8"))

    def __del__(self) -> None:
        # a connection refers to itself, so it would stay open until a garbage collection
        with contextlib.suppress(AttributeError):  # opening failed
            self._connection.close()

    def locate(self, digests: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the digests of ids ``[n]`` are here ``[m]``, and the places of their documents ``[m]``."""
        here = np.zeros(0, np.int64)
        last = len(self.id_digests) - 1
        if last >= 0:
            prefixes = id_prefixes(digests)
            rows = np.minimum(self._prefixes.searchsorted(prefixes), last)
            here = (self._prefixes[rows] == prefixes).nonzero()[0]
        if not len(here):
            return here, here
        rows = np.minimum(np.searchsorted(self.id_digests, digests[here]), last)
        same = self.id_digests[rows] == digests[here]
        return here[same], self.id_places[rows[same]]

    def ids(self, places: Sequence[int]) -> dict[int, str]:
        """Ids of the documents at ``places``.

        Raises:
            BankCorruptError: one is damaged.
        """
        query = "SELECT place, id FROM documents WHERE place IN ({})"
        found: dict[int, str] = dict(self._select(query, places, (int, str)))
        digests = id_digests(found.values())
        names = [*digests]
        rows, located = self.locate(np.array([*digests.values()], dtype="S16"))
        written = {place: names[row] for row, place in zip(rows.tolist(), located.tolist(), strict=True)}
        if found.keys() != {*places} or found != written:
            raise BankCorruptError(f"{self.file} is damaged: the ids of its documents are not as written")
        return found

    def content_hashes(self, places: Sequence[int]) -> dict[int, str]:
        """Content hashes of the documents at ``places`` as they are stored, unchecked: no text is read.

        Raises:
            BankCorruptError: the table of documents cannot be read.
        """
        return dict(self._select("SELECT place, content_hash FROM documents WHERE place IN ({})", places, (int, str)))

    def sound_documents(self, places: Sequence[int]) -> dict[int, StoredDocument]:
        """Those of the documents at ``places`` that are not damaged."""
        try:
            return self.documents(places)
        except BankCorruptError:
            return {place: self.documents([place])[place] for place in places if self._is_readable(place)}

    def documents(self, places: Sequence[int]) -> dict[int, StoredDocument]:
        """The documents at ``places``, each checked against its checksum.

        Raises:
            BankCorruptError: one is damaged; it is named.
        """
        parts: dict[int, list[Part]] = {place: [] for place in places}
        query = (
            "SELECT place, number, start, stop, num_tokens, num_chunks FROM parts WHERE place IN ({}) "
            "ORDER BY place, position"
        )
        for place, number, start, end, num_tokens, num_chunks in self._select(query, places, (int,) * 6):
            part = Part(number=number, start=start, end=end, num_tokens=num_tokens, num_chunks=num_chunks)
            # a damaged index leads to rows of other documents; the checksum then misses what is not there
            parts.setdefault(place, []).append(part)
        query = "SELECT place, id, text, metadata, content_hash, checksum FROM documents WHERE place IN ({})"
        found: dict[int, StoredDocument] = {}
        for place, id_, text, metadata, digest, expected in self._select(query, places, (int,) + (str,) * 5):
            if _row_checksum(place, id_, text, metadata, digest, parts.get(place, [])) != expected:
                raise BankCorruptError(f"{self.file} is damaged: document {id_!r} fails its checksum; add it again")
            found[place] = StoredDocument(
                id=id_, text=text, metadata=json.loads(metadata), content_hash=digest, parts=tuple(parts[place])
            )
        missing = set(places) - set(found)
        if missing:
            raise BankCorruptError(f"{self.file} is damaged: {len(missing)} of its documents are not in its tables")
        return found

    def with_terms(self, digests: Sequence[bytes]) -> set[int]:
        """Places of documents that have one of these terms."""
        found = {place for (place,) in self._select("SELECT place FROM terms WHERE digest IN ({})", digests, (int,))}
        if self._terms_version != _TERMS_VERSION:
            found.update(*(self._places_of_members.get(digest, ()) for digest in digests))
        return found

    @cached_property
    def _places_of_members(self) -> dict[bytes, list[int]]:
        """Terms of the members of lists, with the documents that have them, for a file whose ``terms`` lacks them."""
        query = "SELECT place, metadata FROM documents WHERE metadata LIKE '%[%' AND place IN ({})"
        found: dict[bytes, list[int]] = {}
        for place, metadata in self._select(query, self.places.tolist(), (int, str)):
            try:
                terms = member_terms(json.loads(metadata))
            except (ValueError, AttributeError) as error:
                raise BankCorruptError(f"{self.file} is damaged: the metadata of a document are not JSON") from error
            for digest in terms:
                found.setdefault(digest, []).append(place)
        return found

    def matches(self, words: str) -> Iterator[tuple[int, float]]:
        """Part numbers and scores (BM25 inside this file, higher is better) for an FTS5 query, best first."""
        query = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid"
        with self._errors():
            cursor = self._connection.execute(query, (words,))
        while True:
            # a page at a time: whoever takes the rows may stop anywhere, and in any thread, so no lock may be held then
            with self._errors():
                rows = cursor.fetchmany(BATCH)
            if not rows:
                return
            for row in rows:
                yield self._typed(row, (int, float))

    def problem(self) -> str | None:
        """What is wrong with the file, None for nothing; reads all of it.

        Raises:
            BankError: it cannot be read.
        """
        try:
            if file_checksum(self.file) == self._info.checksum:
                return None
        except FileNotFoundError as error:
            return f"{self.file} cannot be read ({error.strerror or error})"
        except OSError as error:
            raise unreadable(self.file, error) from error
        try:
            damaged = [place for place in self.places.tolist() if not self._is_readable(place)]
            names = [*self.ids(damaged[:5]).values()]
        except BankError:
            names = []
        which = f": {', '.join(map(repr, names))}" if names else ""
        return (
            f"{self.file} is damaged: its checksum is wrong{which}; restore it from a copy, or add its documents again"
        )

    def _is_readable(self, place: int) -> bool:
        try:
            self.documents([place])
        except BankCorruptError:
            return False
        return True

    def _select(self, query: str, values: Sequence[Any], types: tuple[type, ...]) -> list[Any]:
        """Rows of ``query``, whose ``{}`` stands for a list of values, over ``values`` in batches."""
        rows: list[Any] = []
        with self._errors():
            for batch in batches(values):
                rows += self._connection.execute(query.format(",".join("?" * len(batch))), batch).fetchall()
        return [self._typed(row, types) for row in rows]

    def _typed(self, row: Any, types: tuple[type, ...]) -> Any:
        # damage can turn any column of SQLite into one of another type
        if tuple(map(type, row)) != types:
            raise BankCorruptError(f"{self.file} is damaged: a row of its tables is not of the types written")
        return row

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
            raise self._said(error) from error

    def _said(self, error: Exception) -> BankError:
        """What an error of SQLite's says of the file: damage, or nothing where it could not be read."""
        short, code = isinstance(error, MemoryError), getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:  # no reason to read the whole of a file on a disk that fails
            return unreadable(self.file, OSError(str(error)))
        if short or code in _UNREADABLE:
            try:
                if file_checksum(self.file) == self._info.checksum:  # else damage made it ask for what there is not
                    return unreadable(self.file, MemoryError() if short else OSError(str(error)))
            except FileNotFoundError:
                return BankCorruptError(f"{self.file} is missing: restore it from a copy")
            except OSError as cause:  # SQLite keeps the system's reason to itself
                return unreadable(self.file, cause)
        return BankCorruptError(f"{self.file} is damaged ({error}). Restore it from a copy, or add its documents again")


def write_documents(
    folder: Path, segment: SegmentInfo, rows: Iterable[Row], superseded: NDArray[np.int64]
) -> SegmentInfo:
    """Write a documents file durably; the folder is not synced.

    Args:
        folder: of the segments.
        segment: with its latents, which are written already.
        rows: place and document, places ascending; read once.
        superseded: ``[s]`` places replaced or deleted in older segments, ascending.

    Returns:
        The whole segment.

    Raises:
        BankError: the disk is full or failed; nothing is left behind.
    """
    file = folder / documents_name(segment.name)
    with written_durably(file) as temporary:
        try:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                # the file is synced as a whole, and worth nothing before it is finished
                connection.executescript(
                    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN; "
                    f"PRAGMA user_version = {_TERMS_VERSION}; {_TABLES}"
                )
                _insert(connection, rows, superseded)
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InternalError):
                raise  # no disk's fault
            raise BankError(
                f"writing {file} failed ({error}). The memory keeps its previous state; "
                "free disk space or repair the disk, then try again"
            ) from error
        info = FileInfo(num_bytes=temporary.stat().st_size, checksum=file_checksum(temporary))
    return replace(segment, documents=info)


def _insert(connection: sqlite3.Connection, rows: Iterable[Row], superseded: NDArray[np.int64]) -> None:
    places: list[int] = []
    ids: list[tuple[bytes, int]] = []
    parts: list[tuple[int, int, int, int]] = []
    for place, document in rows:
        places.append(place)
        ids.append((_digest(document.id), place))
        metadata = dump_json(document.metadata, f"the metadata of document {document.id!r}")
        fields = (place, document.id, document.text, metadata, document.content_hash)
        connection.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", (*fields, _row_checksum(*fields, document.parts))
        )
        for position, p in enumerate(document.parts):
            parts.append((p.number, place, p.num_tokens, p.num_chunks))
            connection.execute(
                "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (p.number, place, position, p.start, p.end, p.num_tokens, p.num_chunks),
            )
            connection.execute(
                "INSERT INTO words (rowid, text) VALUES (?, ?)", (p.number, document.text[p.start : p.end])
            )
        terms = ((digest, place) for digest in sorted(document_terms(document.metadata)))
        connection.executemany("INSERT INTO terms VALUES (?, ?)", terms)
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")
    parts.sort()
    ids.sort()
    columns = [places, superseded, *([part[i] for part in parts] for i in range(4)), [place for _, place in ids]]
    blobs = {name: np.array(values, dtype="<i8").tobytes() for name, values in zip(_COLUMNS, columns, strict=True)}
    for name, data in {**blobs, _DIGESTS: b"".join(digest for digest, _ in ids)}.items():
        connection.execute("INSERT INTO columns VALUES (?, ?, ?)", (name, data, checksum(data)))


def id_digests(ids: Iterable[str]) -> dict[str, bytes]:
    """By id its digest; an id that is no valid Unicode is left out: no document can have it.

    Raises:
        TypeError: one is no string.
    """
    found = {}
    for id_ in ids:
        if not isinstance(id_, str):
            raise TypeError(f"document ids are strings, found {id_!r} of type {type(id_).__name__}")
        with contextlib.suppress(UnicodeEncodeError):
            found[id_] = _digest(id_)
    return found


def id_prefixes(digests: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """The first half of each digest ``[n]`` as a number: in the same order, and compared several times faster."""
    return digests.view(">u8")[::2].astype(np.uint64)


def _digest(id_: str) -> bytes:
    return hashlib.blake2b(id_.encode(), digest_size=16).digest()


def _is_sound(name: object, data: object, expected: object) -> bool:
    return isinstance(data, bytes) and isinstance(name, str) and checksum(data) == expected


def _row_checksum(place: int, id_: str, text: str, metadata: str, content_hash: str, parts: Sequence[Part]) -> str:
    """Of everything stored of a document; ``metadata`` is JSON."""
    spans = [[p.number, p.start, p.end, p.num_tokens, p.num_chunks] for p in parts]
    return checksum(json.dumps([place, id_, text, metadata, content_hash, spans]).encode())


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """Cut ``items`` into runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
