"""Snapshots: checked copies of a memory, kept beside the memories, from which a new one can be made."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msa.bank import MemoryBank
from msa.errors import BankError
from msa.serving.errors import ApiError, memory_not_found
from msa.serving.memories import Memories, sync_folder
from msa.serving.operation import Operation

_ID = re.compile(r"snap_[0-9a-f]{32}")
_ABOUT = ".about.json"


class Snapshots:
    """The snapshots of all memories of one server.

    Args:
        state_folder: the server's own folder.
        memories: what they are copies of.
    """

    def __init__(self, state_folder: Path, memories: Memories) -> None:
        self._root = state_folder / "snapshots"
        self._memories = memories
        self._placing = threading.Lock()  # so that a memory's deletion comes before a snapshot gets its name, or after

    @staticmethod
    def new_id() -> str:
        """An id for a snapshot to be made."""
        return f"snap_{uuid.uuid4().hex}"

    def run_create(self, operation: Operation) -> dict[str, Any]:
        """Make a snapshot; others may go on writing."""
        snapshot_id, name = operation.request["snapshot"], operation.memory
        with self._memories.building() as copy, self._memories.pinned(name) as still_there:
            with self._memories.lease(name) as memory:
                memory.backup(copy)
            operation.check()
            with MemoryBank.open(copy, read_only=True) as bank:
                stats = bank.stats()
            about = {
                "id": snapshot_id,
                "object": "memory.snapshot",
                "memory": name,
                "created_at": int(time.time()),
                **{key: stats[key] for key in ("documents", "tokens", "bytes_on_disk", "version", "model_name")},
            }
            with self._placing:
                still_there()
                self._place(copy, about)
        return about

    def _place(self, copy: Path, about: dict[str, Any]) -> None:
        """Give a finished copy its name, durably."""
        folder = self._root / about["memory"]
        folder.mkdir(parents=True, exist_ok=True)
        # beside the copy, since nothing else belongs inside a memory's folder; the copy's name comes last
        with open(folder / f"{about['id']}{_ABOUT}", "w", encoding="utf-8") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(copy, folder / about["id"])
        for parent in (folder, self._root, self._root.parent):
            sync_folder(parent)

    def list(self, memory: str) -> list[dict[str, Any]]:
        """All snapshots of a memory, oldest first."""
        found = []
        folder = self._root / memory
        # whatever is missing was deleted this very moment
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if name.endswith(_ABOUT) and (folder / name.removesuffix(_ABOUT)).is_dir():
                        found.append(json.loads((folder / name).read_text(encoding="utf-8")))
        return sorted(found, key=lambda about: (about["created_at"], about["id"]))

    def get(self, memory: str, snapshot_id: str) -> dict[str, Any]:
        """One snapshot.

        Raises:
            ApiError: there is none: 404.
        """
        for about in self.list(memory):
            if about["id"] == snapshot_id and _ID.fullmatch(snapshot_id):
                return about
        raise _not_found(memory, snapshot_id)

    def delete(self, memory: str, snapshot_id: str) -> None:
        """Remove one.

        Raises:
            ApiError: there is none: 404.
        """
        self.get(memory, snapshot_id)
        folder = self._root / memory
        try:
            # the copy first: without its description it could be neither listed nor deleted
            self._memories.discard(folder / snapshot_id)
        except FileNotFoundError as error:
            raise _not_found(memory, snapshot_id) from error
        (folder / f"{snapshot_id}{_ABOUT}").unlink(missing_ok=True)

    def delete_all(self, memory: str) -> int:
        """Remove all of a memory that was deleted; returns how many."""
        with self._placing:
            number = len(self.list(memory))
            with contextlib.suppress(FileNotFoundError):
                self._memories.discard(self._root / memory)
        return number

    def run_restore(self, operation: Operation) -> dict[str, Any]:
        """Make a new memory of a snapshot."""
        source, snapshot_id = operation.request["source"], operation.request["snapshot"]
        self.get(source, snapshot_id)
        name = operation.memory
        self._memories.check_free(name, _no_other)
        with self._memories.building() as copy:
            self._copy(source, snapshot_id, copy)
            operation.check()
            if not self._memories.place(copy, name):
                self._memories.check_free(name, _no_other)
        with self._memories.lease(name) as memory:
            return {"memory": name, "snapshot": snapshot_id, "documents": len(memory)}

    def _copy(self, source: str, snapshot_id: str, copy: Path) -> None:
        try:
            with MemoryBank.open(self._root / source / snapshot_id, read_only=True) as bank:
                bank.check_fingerprint(self._memories.model.fingerprint, self._memories.model.name)
                bank.backup(copy)
        except (BankError, OSError):
            self.get(source, snapshot_id)  # it was deleted meanwhile
            raise

    def check_source(self, memory: str, snapshot_id: str, name: str, known: Callable[[str], bool]) -> None:
        """Before a restore is accepted; ``known`` as for :meth:`Memories.check_free`.

        Raises:
            ApiError: the snapshot is unknown: 404; the new name is taken: 409, or none: 400.
        """
        if not self._memories.exists(memory) and not (self._root / memory).is_dir():
            raise memory_not_found(memory)
        self.get(memory, snapshot_id)
        self._memories.check_free(name, known)


def _not_found(memory: str, snapshot_id: str) -> ApiError:
    return ApiError(404, f"memory {memory!r} has no snapshot {snapshot_id[:80]!r}", "snapshot_not_found")


def _no_other(name: str) -> bool:
    """Names that differ in case were looked at when the restore was asked for."""
    return False
