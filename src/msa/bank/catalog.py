"""The catalog of a memory folder: an SQLite file whose transactions are the bank's commits.

The rollback journal is used rather than a write-ahead log: it needs no shared memory, so folders on network
file systems and read-only media work, and a closed bank leaves no file beside the catalog.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from msa.bank.schema import BankSpec
from msa.bank.segment import SEGMENTS, SUFFIX, SegmentInfo, fsync_folder
from msa.errors import BankCorruptError, BankError, BankFormatError

CATALOG_NAME = "memory.sqlite"
FORMAT_VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
_BUSY_TIMEOUT_S = 60.0
_SQLITE_MAGIC = b"SQLite format 3\x00"
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL,
    content_hash TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE segments (
    row INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, checksum TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    num_parts INTEGER NOT NULL, num_chunks INTEGER NOT NULL);
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents (row) ON DELETE CASCADE,
    position INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    num_chunks INTEGER NOT NULL, segment INTEGER NOT NULL REFERENCES segments (row));
CREATE INDEX parts_by_document ON parts (document, position);
CREATE INDEX parts_by_segment ON parts (segment);
CREATE TABLE terms (
    digest BLOB NOT NULL, document INTEGER NOT NULL REFERENCES documents (row) ON DELETE CASCADE,
    PRIMARY KEY (digest, document)) WITHOUT ROWID;
CREATE INDEX terms_by_document ON terms (document);
"""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a catalog says of the whole bank and never changes."""

    fingerprint: str
    spec: BankSpec


class Catalog:
    """A connection to the catalog; safe to share between threads, one transaction at a time.

    Args:
        folder: the memory folder.
        read_only: refuse changes through this connection. An interrupted commit is still rolled back.

    Raises:
        BankFormatError: the file is no catalog, or one of a format this release does not know.
        BankCorruptError: the file is a damaged catalog.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self.file = folder / CATALOG_NAME
        self._lock = threading.RLock()
        _check_magic(self.file)
        with named_errors(self.file):
            # "rw" falls back to reading only where the file may not be written; only a connection that may
            # write can roll back the journal of a killed writer, so readers ask for it too.
            self._connection = _connect(self.file, "rw")
            self._connection.execute("PRAGMA foreign_keys = ON")
            if read_only:
                self._connection.execute("PRAGMA query_only = ON")
            else:
                for pragma in (
                    "journal_mode = DELETE",
                    "synchronous = EXTRA",  # also syncs the folder after the journal is gone: the commit point
                    "cache_spill = OFF",  # readers are shut out during the final write only
                    "secure_delete = ON",  # deleted texts are overwritten with zeros
                ):
                    self._connection.execute(f"PRAGMA {pragma}")
        try:
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path, header: Header) -> None:
        """Create an empty catalog in ``folder`` atomically: it exists whole or not at all."""
        temporary = folder / f".{CATALOG_NAME}.tmp"
        meta = {
            "format_version": str(FORMAT_VERSION),
            "features": "[]",
            "fingerprint": header.fingerprint,
            "spec": header.spec.to_json(),
            "next_number": "1",
            "version": "0",
        }
        try:
            for stale in (temporary, temporary.with_name(f"{temporary.name}-journal")):
                stale.unlink(missing_ok=True)
            with named_errors(temporary), contextlib.closing(_connect(temporary, "rwc")) as connection:
                connection.executescript(f"BEGIN; {_TABLES}")
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                connection.execute("COMMIT")
            os.replace(temporary, folder / CATALOG_NAME)
            fsync_folder(folder)
        except OSError as error:
            raise BankError(f"creating the memory {folder} failed ({error.strerror or error})") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Queries inside see one state of the bank."""
        with self._lock, named_errors(self.file):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.rollback()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Changes inside become visible and durable together at the end, or, on any exception, not at all."""
        with self._lock, named_errors(self.file):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                raise

    def vacuum(self) -> bool:
        """Give free pages back to the file system; returns whether there were any."""
        with self._lock, named_errors(self.file):
            if not self._connection.execute("PRAGMA freelist_count").fetchone()[0]:
                return False
            self._connection.execute("VACUUM")
            return True

    def counter(self, key: str) -> int:
        """Return the current ``version`` or ``next_number``."""
        with self.read() as connection:
            return read_counter(connection, key)

    def segments(self) -> dict[int, SegmentInfo]:
        """Return the segments of the current state by row, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                "SELECT row, name, checksum, num_bytes, num_parts, num_chunks FROM segments ORDER BY row"
            ).fetchall()
        return {
            row: SegmentInfo(
                name=name, checksum=checksum, num_bytes=num_bytes, num_parts=num_parts, num_chunks=num_chunks
            )
            for row, name, checksum, num_bytes, num_parts, num_chunks in rows
        }

    def _read_header(self) -> Header:
        with self.read() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                raise BankFormatError(f"{self.file} is an SQLite file but not the catalog of a memory")
            meta: dict[str, str] = dict(connection.execute("SELECT key, value FROM meta"))
        version = meta.get("format_version")
        if version != str(FORMAT_VERSION):
            raise BankFormatError(
                f"{self.file} has format version {version}, this release reads version {FORMAT_VERSION}. "
                "Open it with a newer release of memory-sparse-attention"
            )
        try:
            unknown = sorted(set(json.loads(meta["features"])) - KNOWN_FEATURES)
            if unknown:
                raise BankFormatError(
                    f"{self.file} uses features this release does not know: {', '.join(map(str, unknown))}. "
                    "Open it with a newer release of memory-sparse-attention"
                )
            int(meta["version"])
            int(meta["next_number"])
            return Header(fingerprint=meta["fingerprint"], spec=BankSpec.from_json(meta["spec"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BankCorruptError(f"{self.file} is damaged: its meta table is unreadable ({error!r})") from error


def read_counter(connection: sqlite3.Connection, key: str) -> int:
    """Return the counter ``key`` of the meta table."""
    return int(connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])


def write_counter(connection: sqlite3.Connection, key: str, value: int) -> None:
    """Set the counter ``key`` of the meta table."""
    connection.execute("UPDATE meta SET value = ? WHERE key = ?", (str(value), key))


def insert_segment(connection: sqlite3.Connection, info: SegmentInfo) -> int:
    """List a segment in the catalog and return its row."""
    row = connection.execute(
        "INSERT INTO segments (row, name, checksum, num_bytes, num_parts, num_chunks) "
        "VALUES ((SELECT coalesce(max(row), 0) + 1 FROM segments), ?, ?, ?, ?, ?)",
        (info.name, info.checksum, info.num_bytes, info.num_parts, info.num_chunks),
    ).lastrowid
    assert row is not None
    return row


@contextlib.contextmanager
def named_errors(file: Path) -> Iterator[None]:
    """Turn SQLite's errors into errors of this package that name ``file``."""
    try:
        yield
    except sqlite3.Error as error:
        raise _bank_error(file, error) from error


def _bank_error(file: Path, error: sqlite3.Error) -> BankError:
    # Extended result codes carry the primary one in their low byte.
    code = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return BankError(f"the memory {file.parent} is closed. Open it again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode" in str(error):
        return BankCorruptError(f"{file} is damaged ({error}). Restore the memory from a copy, or build it again")
    if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
        return BankCorruptError(f"{file} is damaged or not the catalog of a memory ({error})")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BankError(f"{file} stayed locked by another process for {_BUSY_TIMEOUT_S:.0f} s. Try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return BankError(
            f"{file} cannot be opened or changed ({error}). Check the permissions of its folder; "
            "after an interrupted write, open the memory once as a user who may write to it"
        )
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return BankError(
            f"using {file} failed ({error}). The memory keeps its previous state; "
            "free disk space or repair the disk, then try again"
        )
    return BankError(f"{file}: {error}")


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(file.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _check_magic(file: Path) -> None:
    folder = file.parent
    try:
        with open(file, "rb") as stream:
            found = stream.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise BankError(f"{file} cannot be read ({error.strerror or error})") from error
    if found == _SQLITE_MAGIC:
        return
    what = "is missing" if found is None else "is not an SQLite file"
    if any((folder / SEGMENTS).glob(f"*{SUFFIX}")):
        raise BankCorruptError(
            f"{file} {what}, though {folder} holds segments. Restore it from a copy, or build the memory again"
        )
    raise BankFormatError(f"{folder} is not a memory: {CATALOG_NAME} {what}. Check the path")
