"""Everything one server has, opened and closed in order; knows nothing of HTTP."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from msa.bank import MemoryBank
from msa.documents import Document
from msa.engine import Batcher
from msa.errors import BankError
from msa.memory import AddProgress
from msa.model.bundle import MSAModel
from msa.parallel import Leader, LedMemories
from msa.routing import BankView
from msa.serving.errors import ServingError
from msa.serving.intake import Limits, holds_lines, read_lines, read_upload, write_lines
from msa.serving.job import Job, Lane, QueueFullError
from msa.serving.ledger import Ledger
from msa.serving.memories import STATE_FOLDER, Memories
from msa.serving.metrics import Metrics
from msa.serving.operation import Operation
from msa.serving.operations import Operations
from msa.serving.scheduler import Scheduler
from msa.serving.settings import ServerSettings
from msa.serving.shape_caches import bound_shape_caches
from msa.serving.snapshots import Snapshots
from msa.serving.tracing import tracing_from_environment
from msa.zoo import load

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BODY, DOCUMENTS = "body", "documents.jsonl"
_COUNTS = ("documents", "encoded", "updated", "unchanged", "tokens")
_KEPT_IDS = 1000
_SLICE_CHARACTERS = 1 << 14  # of the first slice; later ones by how long it took
_LEAST_CHARACTERS, _MOST_CHARACTERS = 1 << 13, 1 << 20
_SLICE_S = 5.0
_RETRY_S = 0.5


class Services:
    """One server without its HTTP; :meth:`close` ends it.

    Args:
        settings: what to serve.
        model: the model; None: the one that the settings name.
        leader: of processes that share the memories; None: this one has them alone.

    Raises:
        ServingError: the folder is missing or served by another process.
        MSAError: the model cannot be loaded.
        ValueError: tiers that this machine does not have.
    """

    def __init__(self, settings: ServerSettings, model: MSAModel | None = None, leader: Leader | None = None) -> None:
        bound_shape_caches()
        if settings.tiers is not None:  # now, not when a memory is asked
            settings.tiers.check_available()
        self.settings = settings
        self.leader = leader
        self.root = settings.folder
        self.limits = Limits(
            max_document_bytes=settings.max_document_bytes,
            max_id_characters=settings.max_id_characters,
            pdf_timeout_s=settings.pdf_timeout_s,
        )
        self.state_folder = self.root / STATE_FOLDER
        self.large_bodies = threading.BoundedSemaphore(settings.max_large_bodies)
        self.ledger: Ledger | None = None
        self.operations: Operations | None = None
        self._lock = None if settings.read_only else _claim(self.root, self.state_folder)
        try:
            self._open(settings, model)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _open(self, settings: ServerSettings, model: MSAModel | None) -> None:
        if settings.read_only and not self.root.is_dir():
            raise ServingError(f"there is no folder {self.root} to serve")
        if not settings.read_only:
            shutil.rmtree(self.state_folder / "building", ignore_errors=True)
            self.ledger = Ledger(self.state_folder, settings.kept_keys, settings.kept_operations)
        self.model = model or load(settings.model or model_of(self.root), settings.device, settings.dtype)
        self.memories = Memories(
            self.root,
            self.model,
            read_only=settings.read_only,
            tiers=settings.tiers,
            max_bytes=settings.max_memory_bytes,
            max_open=settings.max_open_memories,
            open_view=BankView if self.leader is None else LedMemories(self.leader, self.root).view,
        )
        # over several ranks as well: they route and fetch one question at a time, as the worker asks them to, and the
        # passes between tokens, which are made for several questions together, need no other rank
        batcher = Batcher(self.model.lm, settings.max_concurrent, settings.max_batch_bytes)
        self.scheduler = Scheduler(
            settings.max_waiting,
            settings.max_waiting_writes,
            max_concurrent=settings.max_concurrent,
            advance=batcher.advance,
            seat=batcher.seat,
        )
        self.verifier = Scheduler(0, 0, "msa-verify")  # needs no model; one at a time, as it keeps a disk busy
        self.metrics = Metrics(
            self.model_id, self.scheduler, self.memories, lambda: self.operations, lambda: batcher.usage
        )
        self.tracing = tracing_from_environment()
        self.snapshots = Snapshots(self.state_folder, self.memories)
        if self.ledger is not None:
            self.operations = Operations(
                self.state_folder,
                self.ledger,
                {
                    "add_documents": self.run_add_documents,
                    "compact": self.run_compact,
                    "snapshot": self.snapshots.run_create,
                    "restore": self.snapshots.run_restore,
                },
                resumable=frozenset({"add_documents"}),
                max_unfinished=settings.max_operations,
                exists=self.memories.exists,
            )
            self.operations.begin()

    @property
    def model_id(self) -> str:
        """What clients call the model: its name; of a folder the last part."""
        name = self.model.name
        return Path(name).name if name.startswith(("/", ".", "~")) else name

    def stop_accepting(self) -> None:
        """Take nothing new; requests that are there go on, operations stop at their next safe points."""
        self.scheduler.close()
        self.verifier.close()
        if self.operations is not None:
            self.operations.stop()

    def abort(self) -> None:
        """Fail every request that is still there."""
        self.stop_accepting()
        self.scheduler.abort()
        self.verifier.abort()
        if self.operations is not None:
            self.operations.abandon()

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish what runs, leave operations for the next start, close everything."""
        self.stop_accepting()
        self.verifier.abort()  # not waited for: it only reads, and has files of its own open
        if self.operations is not None:
            self.operations.close(timeout_s)
        if not self.scheduler.join(timeout_s):
            self.scheduler.abort()
            if not self.scheduler.join(timeout_s):
                logger.warning("a request was still running when the server was closed")
        self.memories.close()
        self.tracing.close()
        if self.ledger is not None:
            self.ledger.close()
        if self._lock is not None:
            self._lock.close()

    def add(
        self, job: Job, memory_name: str, documents: list[Document], check: Callable[[], None] = lambda: None
    ) -> tuple[list[str], AddProgress]:
        """In the worker thread: add documents, answering questions between two batches.

        Args:
            job: the worker's.
            memory_name: where to.
            documents: what to add.
            check: called between two batches; may raise to stop.
        """
        last = AddProgress()

        def progress(done: AddProgress) -> None:
            nonlocal last
            last = done
            job.give_way()
            check()

        try:
            with self.memories.lease(memory_name, writing=True) as memory:
                ids = memory.add(documents, progress=progress)
        finally:
            self.metrics.encoded(last.tokens)
        return ids, last

    def run_add_documents(self, operation: Operation) -> dict[str, Any]:
        """In an operation's thread: read its body, then add the documents, a slice at a time."""
        assert self.operations is not None
        folder = self.operations.folder_of(operation.id)
        known = {**operation.request, **operation.progress}
        totals: dict[str, Any] = {key: known.get(key) for key in ("documents_total", "characters_total")}
        if None in totals.values() or not holds_lines(folder / DOCUMENTS, totals["documents_total"]):
            operation.progress = {"phase": "reading"}
            documents = read_upload(folder / BODY, operation.request.get("content_type", ""), self.limits)
            number, characters = write_lines(_while_wanted(documents, operation), folder / DOCUMENTS)
            totals = {"documents_total": number, "characters_total": characters}
        operation.progress = {"phase": "encoding", **totals, **dict.fromkeys(_COUNTS, 0)}
        ids: list[str] = []
        budget = _SLICE_CHARACTERS
        documents = read_lines(folder / DOCUMENTS)
        while documents_of_slice := _take(documents, budget):
            self.operations.save(operation)
            started = time.monotonic()
            work = partial(self.add, memory_name=operation.memory, documents=documents_of_slice, check=operation.check)
            added, done = self._in_turn(operation, work)
            seconds = time.monotonic() - started
            if seconds < _SLICE_S / 2:
                budget = min(2 * budget, _MOST_CHARACTERS)
            elif seconds > 2 * _SLICE_S:
                budget = max(budget // 2, _LEAST_CHARACTERS)
            ids += added[: _KEPT_IDS - len(ids)]
            for key in _COUNTS:
                operation.progress[key] += getattr(done, key)
            if done.encoded or done.updated:
                self.operations.got_on(operation)
        counts = {key: operation.progress[key] for key in _COUNTS}
        return {**counts, "ids": ids, "ids_truncated": len(ids) < counts["documents"]}

    def run_compact(self, operation: Operation) -> dict[str, Any]:
        """In an operation's thread: have a memory rewritten, answering questions between two blocks."""

        def work(job: Job) -> dict[str, Any]:
            def check() -> None:
                job.give_way()
                operation.check()

            with self.memories.lease(operation.memory, writing=True) as memory:
                return memory.compact(check=check)

        return {"object": "memory.compaction", **self._in_turn(operation, work)}

    def _in_turn(self, operation: Operation, work: Callable[[Job], Result]) -> Result:
        """Have an operation's work done on the worker thread when its turn comes."""

        def wanted(job: Job) -> Result:
            operation.check()
            return work(job)

        while True:
            operation.check()
            try:
                job = self.scheduler.submit(wanted, Lane.WRITE)
            except QueueFullError:
                time.sleep(_RETRY_S)
                continue
            result: Result = job.future.result()
            return result


def _while_wanted(documents: Iterator[Document], operation: Operation) -> Iterator[Document]:
    for document in documents:
        operation.check()
        yield document


def _take(documents: Iterator[Document], characters: int) -> list[Document]:
    """The next documents, of about so many characters in all, at least one."""
    taken: list[Document] = []
    while characters > 0 and (document := next(documents, None)) is not None:
        taken.append(document)
        characters -= len(document.text) + 64
    return taken


def model_of(root: Path) -> str | None:
    """The model that made the memories below a folder; None: there are none, or several models made them."""
    names = set()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        with contextlib.suppress(BankError):
            if MemoryBank.exists(folder):
                with MemoryBank.open(folder, read_only=True) as bank:
                    names.add(bank.spec.model_name)
    if len(names) > 1:
        logger.warning("the memories were made by different models (%s); name one to serve", ", ".join(sorted(names)))
    return names.pop() if len(names) == 1 else None


def _claim(root: Path, state_folder: Path) -> IO[str]:
    """Make this process the one that writes below ``root``; closing the file ends that."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        state_folder.mkdir(mode=0o700, exist_ok=True)  # texts on their way lie in it
        lock = open(state_folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the server
    except OSError as error:
        raise ServingError(
            f"the folder {root} cannot be written ({error.strerror}). Serve it read-only, or grant write permission"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "?"
        lock.close()
        raise ServingError(
            f"process {holder} serves {root} already. Stop it, or serve the folder read-only (--read-only)"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
