"""What the server must remember over a restart: answers to idempotency keys, and operations. One SQLite file."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from msa.serving.errors import ServingError
from msa.serving.failure_log import log_failure

logger = logging.getLogger(__name__)

FILE_NAME = "state.sqlite"
_VERSION = 2
_PRUNED_EVERY = 100  # insertions
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    scope TEXT, key TEXT, memory TEXT, digest TEXT, status INTEGER, body TEXT, created REAL, PRIMARY KEY (scope, key)
);
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (created);
CREATE TABLE IF NOT EXISTS operations (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, memory TEXT, kind TEXT, state TEXT, created REAL,
    updated REAL, request TEXT, progress TEXT, result TEXT, error TEXT
);
"""
# columns that format 1 had not
_ADDED = (
    ("keys", "operation", "TEXT"),
    ("operations", "starts", "INTEGER NOT NULL DEFAULT 0"),
    ("operations", "cancelled", "INTEGER NOT NULL DEFAULT 0"),
)
_JSON = ("request", "progress", "result", "error")
_FIELDS = ("id", "memory", "kind", "state", "created", "updated", *_JSON, "starts", "cancelled")


class TakenKey(NamedTuple):
    """An idempotency key whose request is being answered: whose it is, and the client's word."""

    scope: str
    key: str


@dataclass(frozen=True)
class KeptAnswer:
    """What an idempotency key was used for; ``status`` None: the first request is still being answered."""

    digest: str
    status: int | None
    body: str | None


class Ledger:
    """The file; every method is one durable transaction and may be called from any thread.

    What is over already and cannot be written, since the disk is full for instance, is kept in memory, told from there,
    and written with whatever is written next.

    Args:
        folder: where it is; made if it is missing.
        kept_keys: idempotency keys remembered, the newest ones.
        kept_operations: finished operations remembered, the newest ones.

    Raises:
        ServingError: the file is damaged or of a later release.
    """

    def __init__(self, folder: Path, kept_keys: int = 10_000, kept_operations: int = 1_000) -> None:
        self._kept_keys, self._kept_operations = kept_keys, kept_operations
        self._lock = threading.Lock()
        self._insertions = 0
        self._late_answers: dict[TakenKey, tuple[int, str]] = {}
        self._late_releases: dict[TakenKey, bool] = {}
        self._late_operations: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / FILE_NAME
        with self._usable():
            self._connection = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise ServingError(f"{self._file} was written by a later release (format {version}); update this one")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            if version < _VERSION:
                self._bring_up_to_date()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise ServingError(
                f"{self._file} cannot be used ({error}). Move it away: unfinished operations and idempotency keys are "
                "then forgotten, memories are not touched"
            ) from error

    def _bring_up_to_date(self) -> None:
        with self._begun() as connection:
            for table, column, kind in _ADDED:
                if column not in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            connection.execute(f"PRAGMA user_version={_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._write_late()
            with self._begun() as connection:
                yield connection

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # of some errors, a full disk among them, SQLite has taken it back itself
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write_or_note(
        self, what: str, write: Callable[[sqlite3.Connection], None], late: dict[Any, Any], name: Any, value: Any
    ) -> None:
        """Write in a transaction; if that fails, ``late`` says what to write later."""
        try:
            with self._transaction() as connection:
                write(connection)
        except sqlite3.Error as error:
            log_failure(logger, what, error, "storage_error")
            with self._lock:
                late[name] = value

    def write_late(self) -> None:
        """Try again to write what could not be written."""
        with self._lock:
            self._write_late()

    def _write_late(self) -> None:
        late = (self._late_answers, self._late_releases, self._late_operations)
        if not any(late):
            return
        try:
            with self._begun() as connection:
                for taken, answer in self._late_answers.items():
                    _finish(connection, taken, *answer)
                for taken, accepted in self._late_releases.items():
                    _release(connection, taken, accepted)
                for fields in self._late_operations.values():
                    _upsert(connection, fields)
        except sqlite3.Error:
            return  # it was logged the first time
        for things in late:
            things.clear()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._write_late()
            self._connection.close()

    def begin_key(self, scope: str, key: str, memory: str, digest: str) -> KeptAnswer | None:
        """Take an idempotency key.

        Args:
            scope: who uses it.
            key: the client's word.
            memory: the memory concerned; forgotten with it.
            digest: of the whole request.

        Returns:
            None if it is new, and now taken; else what it was used for.
        """
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT digest, status, body FROM keys WHERE scope = ? AND key = ?", (scope, key)
            ).fetchone()
            if row is not None:
                return KeptAnswer(row[0], *self._late_answers.get(TakenKey(scope, key), row[1:]))
            connection.execute(
                "INSERT INTO keys (scope, key, memory, digest, created) VALUES (?, ?, ?, ?, ?)",
                (scope, key, memory, digest, time.time()),
            )
            self._prune(connection)
        return None

    def finish_key(self, scope: str, key: str, status: int, body: str) -> None:
        """Keep the answer; if it cannot be written, in memory for the time being."""
        taken = TakenKey(scope, key)
        write = partial(_finish, taken=taken, status=status, body=body)
        self._write_or_note("while an answer was kept", write, self._late_answers, taken, (status, body))

    def release_key(self, scope: str, key: str, *, accepted: bool = True) -> None:
        """Forget a key whose request failed, so that it can be tried again; as soon as that can be written.

        Args:
            scope, key: as they were taken.
            accepted: also if an operation was accepted with it.
        """
        taken = TakenKey(scope, key)
        write = partial(_release, taken=taken, accepted=accepted)
        self._write_or_note("while a key was released", write, self._late_releases, taken, accepted)

    def settle_keys(self) -> None:
        """At the start, of requests that the last process did not answer: keep those whose operation was accepted.

        They are answered with it, unless it has failed or was called off: nobody was told anything then, as of those
        that had not come so far.

        Raises:
            ServingError: the file cannot be written.
        """
        with self._usable(), self._transaction() as connection:
            connection.execute(
                "DELETE FROM keys WHERE status IS NULL AND (operation IS NULL OR operation NOT IN "
                "(SELECT id FROM operations WHERE state NOT IN ('failed', 'cancelled')))"
            )
            connection.execute("UPDATE keys SET status = 202 WHERE status IS NULL")

    def forget_memory(self, memory: str) -> None:
        """Forget the keys used for a memory that was deleted."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM keys WHERE memory = ? AND status IS NOT NULL", (memory,))

    def accept_operation(self, fields: dict[str, Any], taken: TakenKey | None, body: str) -> None:
        """Insert an operation, and note it with the key it was asked for with.

        Args:
            fields: as for :meth:`save_operation`.
            taken: the key; None: there is none.
            body: what a repetition is answered if nobody comes to answer the request itself.
        """
        with self._transaction() as connection:
            _upsert(connection, fields)
            if taken is not None:
                connection.execute(
                    "UPDATE keys SET operation = ?, body = ? WHERE scope = ? AND key = ?", (fields["id"], body, *taken)
                )
            self._prune(connection)

    def save_operation(self, fields: dict[str, Any]) -> None:
        """Insert or update an operation by its ``id``; values that are mappings are kept as JSON."""
        with self._transaction() as connection:
            _upsert(connection, fields)

    def end_operation(self, fields: dict[str, Any]) -> None:
        """As :meth:`save_operation`, of one that has ended; if it cannot be written, in memory for the time being."""
        what, write = "while the end of an operation was recorded", partial(_upsert, fields=fields)
        self._write_or_note(what, write, self._late_operations, fields["id"], fields)

    def call_off(self, operation_id: str) -> None:
        """Note that an operation is to end at its next safe point."""
        with self._transaction() as connection:
            connection.execute("UPDATE operations SET cancelled = 1 WHERE id = ?", (operation_id,))

    def operation(self, operation_id: str) -> dict[str, Any] | None:
        """One operation's fields; None: it is unknown."""
        found = self._operations("WHERE id = ?", operation_id)
        return found[0] if found else None

    def unfinished_operations(self) -> list[dict[str, Any]]:
        """Operations that have not ended, oldest first."""
        return self._operations("WHERE state IN ('queued', 'running') ORDER BY sequence")

    def operations(self, memories: list[str] | None, limit: int, after: str | None = None) -> list[dict[str, Any]]:
        """The newest operations, newest first; of these memories, None: of all; older than the one ``after``."""
        conditions: list[str] = []
        values: list[Any] = []
        if memories is not None:
            conditions.append(f"memory IN ({', '.join('?' * len(memories))})")
            values += memories
        if after is not None:
            conditions.append("sequence < (SELECT sequence FROM operations WHERE id = ?)")
            values.append(after)
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        return self._operations(f"{where}ORDER BY sequence DESC LIMIT ?", *values, limit)

    def _operations(self, rest: str, *values: Any) -> list[dict[str, Any]]:
        with self._lock:
            rows = self._connection.execute(f"SELECT {', '.join(_FIELDS)} FROM operations {rest}", values).fetchall()
            late = dict(self._late_operations)
        found = [dict(zip(_FIELDS, row, strict=True)) for row in rows]
        for fields in found:
            for name in _JSON:
                fields[name] = None if fields[name] is None else json.loads(fields[name])
            fields |= late.get(fields["id"], {})
        return found

    def _prune(self, connection: sqlite3.Connection) -> None:
        self._insertions += 1
        if self._insertions % min(_PRUNED_EVERY, max(1, self._kept_keys)):
            return
        connection.execute(
            "DELETE FROM keys WHERE status IS NOT NULL AND rowid NOT IN "
            "(SELECT rowid FROM keys ORDER BY created DESC LIMIT ?)",
            (self._kept_keys,),
        )
        connection.execute(
            "DELETE FROM operations WHERE state NOT IN ('queued', 'running') AND sequence NOT IN "
            "(SELECT sequence FROM operations ORDER BY sequence DESC LIMIT ?)",
            (self._kept_operations,),
        )


def _finish(connection: sqlite3.Connection, taken: TakenKey, status: int, body: str) -> None:
    connection.execute("UPDATE keys SET status = ?, body = ? WHERE scope = ? AND key = ?", (status, body, *taken))


def _release(connection: sqlite3.Connection, taken: TakenKey, accepted: bool) -> None:
    which = "" if accepted else " AND operation IS NULL"
    connection.execute(f"DELETE FROM keys WHERE scope = ? AND key = ? AND status IS NULL{which}", taken)


def _upsert(connection: sqlite3.Connection, fields: dict[str, Any]) -> None:
    values = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    names = ", ".join(values)
    updates = ", ".join(f"{name} = excluded.{name}" for name in values if name != "id")
    marks = ", ".join("?" * len(values))
    connection.execute(
        f"INSERT INTO operations ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}",
        [*values.values()],
    )
