"""What the server must remember over a restart: answers to idempotency keys, and operations. One SQLite file."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msa.serving.errors import ServingError

FILE_NAME = "state.sqlite"
_VERSION = 1
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


@dataclass(frozen=True)
class KeptAnswer:
    """What an idempotency key was used for; ``status`` None: the first request is still being answered."""

    digest: str
    status: int | None
    body: str | None


class Ledger:
    """The file; every method is one durable transaction and may be called from any thread.

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
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE_NAME
        try:
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise ServingError(f"{file} was written by a later release (format {version}); update this one")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
            # requests that the last process never answered: nobody was told anything
            self._connection.execute("DELETE FROM keys WHERE status IS NULL")
        except sqlite3.DatabaseError as error:
            raise ServingError(
                f"{file} cannot be used ({error}). Move it away: unfinished operations and idempotency keys are then "
                "forgotten, memories are not touched"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
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
                return KeptAnswer(*row)
            connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, NULL, NULL, ?)", (scope, key, memory, digest, time.time())
            )
            self._prune(connection)
        return None

    def finish_key(self, scope: str, key: str, status: int, body: str) -> None:
        """Keep the answer."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE keys SET status = ?, body = ? WHERE scope = ? AND key = ?", (status, body, scope, key)
            )

    def release_key(self, scope: str, key: str) -> None:
        """Forget a key whose request failed, so that it can be tried again."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM keys WHERE scope = ? AND key = ? AND status IS NULL", (scope, key))

    def forget_memory(self, memory: str) -> None:
        """Forget the keys used for a memory that was deleted."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM keys WHERE memory = ? AND status IS NOT NULL", (memory,))

    def save_operation(self, fields: dict[str, Any]) -> None:
        """Insert or update an operation by its ``id``; values that are mappings are kept as JSON."""
        values = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
        names = ", ".join(values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values if name != "id")
        marks = ", ".join("?" * len(values))
        with self._transaction() as connection:
            connection.execute(
                f"INSERT INTO operations ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}",
                [*values.values()],
            )
            self._prune(connection)

    def operation(self, operation_id: str) -> dict[str, Any] | None:
        """One operation's fields; None: it is unknown."""
        found = self._operations("WHERE id = ?", operation_id)
        return found[0] if found else None

    def unfinished_operations(self) -> list[dict[str, Any]]:
        """Operations that have not ended, oldest first."""
        return self._operations("WHERE state IN ('queued', 'running') ORDER BY sequence")

    def operations(self, memories: list[str] | None, limit: int) -> list[dict[str, Any]]:
        """The newest operations, newest first; of these memories, None: of all."""
        if memories is None:
            return self._operations("ORDER BY sequence DESC LIMIT ?", limit)
        marks = ", ".join("?" * len(memories))
        return self._operations(f"WHERE memory IN ({marks}) ORDER BY sequence DESC LIMIT ?", *memories, limit)

    def _operations(self, rest: str, *values: Any) -> list[dict[str, Any]]:
        names = ("id", "memory", "kind", "state", "created", "updated", "request", "progress", "result", "error")
        with self._lock:
            rows = self._connection.execute(f"SELECT {', '.join(names)} FROM operations {rest}", values).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for fields in found:
            for name in ("request", "progress", "result", "error"):
                fields[name] = None if fields[name] is None else json.loads(fields[name])
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
