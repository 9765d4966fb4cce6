"""Long work that is acknowledged before it is done: kept on disk, worked on in slices, taken up again after a restart.

An operation's body lies in ``spool/<id>/`` and its state in the ledger, both synced before the client is told its id.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msa.serving.errors import ApiError, to_api_error
from msa.serving.failure_log import WORK_ID, log_failure
from msa.serving.ledger import Ledger
from msa.serving.scheduler import QueueFullError, ShuttingDownError

logger = logging.getLogger(__name__)

SPOOL = "spool"
_THREADS = 4
_LATER = "the server stops; the operation goes on when it is back"


class OperationCancelledError(Exception):
    """The operation was called off."""


class _LeftForLaterError(Exception):
    """The server stops: the operation stays queued and goes on after the restart."""


@dataclass
class Operation:
    """One piece of long work.

    Attributes:
        id: for ``GET /v1/operations/{id}``.
        memory: the memory concerned.
        kind: ``add_documents``, ``compact``, ``snapshot`` or ``restore``.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        request: what to do, for the runner of the kind.
        progress: counts so far.
        result: of one that succeeded.
        error: of one that failed, in OpenAI's shape.
        created, updated: Unix times.
        outcome: done when the operation has ended; its result is the operation.
    """

    id: str
    memory: str
    kind: str
    request: dict[str, Any]
    state: str = "queued"
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    outcome: Future[Operation] = field(default_factory=Future, repr=False)
    cancelled: bool = False
    stopping: Callable[[], bool] = lambda: False
    failure: ApiError | None = None

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "operation",
            "kind": self.kind,
            "memory": self.memory,
            "status": self.state,
            "progress": self.progress,
            "result": self.result,
            "error": self.error,
            "created_at": int(self.created),
            "updated_at": int(self.updated),
        }

    def check(self) -> None:
        """At a safe point: end if the operation was called off or the server stops."""
        if self.cancelled:
            raise OperationCancelledError
        if self.stopping():
            raise _LeftForLaterError

    @property
    def fields(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        names = ("id", "memory", "kind", "state", "created", "updated", "request", "progress", "result", "error")
        return {name: getattr(self, name) for name in names}


Runner = Callable[[Operation], dict[str, Any]]


class Operations:
    """The operations of one server and the threads that drive them.

    Operations of one memory and kind run one after another in the order they were accepted, others beside each other.

    Args:
        folder: the server's own folder.
        ledger: where they are remembered.
        runners: by kind; called in a thread of its own, returns the result.
        resumable: kinds that are taken up again after a restart; others are then reported as failed.
        max_unfinished: more are refused.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        runners: Mapping[str, Runner],
        *,
        resumable: frozenset[str],
        max_unfinished: int,
    ) -> None:
        self.root = folder.parent
        self.spool = folder / SPOOL
        self._ledger = ledger
        self._runners = runners
        self._max_unfinished = max_unfinished
        self._live: dict[str, Operation] = {}
        self._receiving = 0
        self._busy: set[tuple[str, str]] = set()
        self._wake = threading.Condition()
        self._closed = False
        self.spool.mkdir(parents=True, exist_ok=True)
        self._resume(resumable)
        self._threads = [
            threading.Thread(target=self._loop, name=f"msa-operations-{number}", daemon=True)
            for number in range(_THREADS)
        ]

    def begin(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def _resume(self, resumable: frozenset[str]) -> None:
        for fields in self._ledger.unfinished_operations():
            operation = Operation(**{**fields, "progress": fields["progress"] or {}})
            operation.stopping = lambda: self._closed
            operation.state = "queued"
            if operation.kind in resumable and self.folder_of(operation.id).is_dir():
                logger.info("operation %s goes on", operation.id)
                self._live[operation.id] = operation
            else:
                message = "the server was stopped while this ran; start it again"
                self._fail(operation, ApiError(503, message, "interrupted"))
        for leftover in self.spool.iterdir():
            if leftover.name not in self._live:
                shutil.rmtree(leftover, ignore_errors=True)

    def folder_of(self, operation_id: str) -> Path:
        """Where an operation's body is kept."""
        return self.spool / operation_id

    @staticmethod
    def new_id() -> str:
        """An id that nobody guesses."""
        return f"op_{uuid.uuid4().hex}"

    def check_room(self) -> None:
        """Before a body is kept.

        Raises:
            QueueFullError: too many operations are unfinished.
            ShuttingDownError: the server stops.
        """
        if self._closed:
            raise ShuttingDownError("the server is shutting down; try again in a moment")
        if len(self._live) + self._receiving >= self._max_unfinished:
            raise QueueFullError(f"{len(self._live)} operations are unfinished, as many as may; try again later", 10.0)

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """While the body of an operation arrives, which counts as one: bodies on their way take room on the disk too.

        Raises:
            QueueFullError, ShuttingDownError: as for :meth:`check_room`.
        """
        with self._wake:
            self.check_room()
            self._receiving += 1
        try:
            yield
        finally:
            with self._wake:
                self._receiving -= 1

    def start(self, kind: str, memory: str, request: dict[str, Any], operation_id: str | None = None) -> Operation:
        """Accept an operation; when this returns it is on disk.

        Args:
            kind: one of the runners'.
            memory: the memory concerned.
            request: what to do.
            operation_id: whose folder in the spool holds the body; None: there is no body.
        """
        self.check_room()
        operation = Operation(operation_id or self.new_id(), memory, kind, request)
        operation.stopping = lambda: self._closed
        self._ledger.save_operation(operation.fields)
        with self._wake:
            self._live[operation.id] = operation
            self._wake.notify_all()
        return operation

    def get(self, operation_id: str) -> Operation | None:
        """One operation; None: it is unknown."""
        live = self._live.get(operation_id)
        if live is not None:
            return live
        fields = self._ledger.operation(operation_id)
        return None if fields is None else Operation(**{**fields, "progress": fields["progress"] or {}})

    def list(self, memories: list[str] | None, limit: int) -> list[Operation]:
        """The newest operations, of these memories; None: of all."""
        found = self._ledger.operations(memories, limit)
        return [self._live.get(fields["id"]) or Operation(**fields) for fields in found]

    def unfinished(self) -> int:
        """How many have not ended."""
        return len(self._live)

    def cancel(self, operation: Operation) -> None:
        """Call one off; what it has committed stays."""
        with self._wake:
            operation.cancelled = True
            self._wake.notify_all()

    def cancel_all(self, memory: str) -> None:
        """Call off all of a memory that is being deleted."""
        for operation in [*self._live.values()]:
            if operation.memory == memory:
                self.cancel(operation)

    def save(self, operation: Operation) -> None:
        """Keep an operation's progress."""
        operation.updated = time.time()
        self._ledger.save_operation(operation.fields)

    def stop(self) -> None:
        """Begin nothing more and stop at the next safe points; what is unfinished goes on after the restart."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._tell(lambda operation: operation.state == "queued")

    def abandon(self) -> None:
        """Let nobody wait any longer."""
        self._tell(lambda operation: True)

    def _tell(self, which: Callable[[Operation], bool]) -> None:
        for operation in [*self._live.values()]:
            if which(operation) and not operation.outcome.done():
                with contextlib.suppress(InvalidStateError):  # it ended this very moment
                    operation.outcome.set_exception(ShuttingDownError(_LATER))

    def close(self, timeout_s: float) -> None:
        """Stop, and wait for the threads."""
        self.stop()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self.abandon()

    def _next(self) -> Operation | None:
        """The first that may run now; None: the server stops."""
        with self._wake:
            while not self._closed:
                for operation in self._live.values():
                    if operation.state == "queued" and (operation.memory, operation.kind) not in self._busy:
                        self._busy.add((operation.memory, operation.kind))
                        operation.state = "running"
                        return operation
                self._wake.wait()
        return None

    def _loop(self) -> None:
        while (operation := self._next()) is not None:
            WORK_ID.set(operation.id)
            try:
                self._run(operation)
            # a thread that drives operations must outlive whatever one of them meets
            except Exception as error:
                log_failure(logger, "while an operation was recorded", error)
            finally:
                with self._wake:
                    self._busy.discard((operation.memory, operation.kind))
                    self._wake.notify_all()

    def _run(self, operation: Operation) -> None:
        try:
            operation.check()
            self.save(operation)
            result = self._runners[operation.kind](operation)
        except (_LeftForLaterError, ShuttingDownError):
            operation.state = "queued"
            self.save(operation)
            self._tell(lambda left: left is operation)
            return
        except OperationCancelledError:
            operation.state = "cancelled"
        # whatever went wrong is the operation's outcome, told in the API's words
        except Exception as error:
            self._fail(operation, to_api_error(error, self.root))
            return
        else:
            operation.state, operation.result = "succeeded", result
        self._end(operation)

    def _fail(self, operation: Operation, error: ApiError) -> None:
        operation.state, operation.failure, operation.error = "failed", error, error.body["error"]
        self._end(operation)

    def _end(self, operation: Operation) -> None:
        self.save(operation)
        shutil.rmtree(self.folder_of(operation.id), ignore_errors=True)
        with self._wake:
            self._live.pop(operation.id, None)
        with contextlib.suppress(InvalidStateError):  # those who wait were told that the server stops
            operation.outcome.set_result(operation)
