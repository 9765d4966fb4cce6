"""Long work that is acknowledged before it is done: kept on disk, worked on in slices, taken up again after a restart.

An operation's body lies in ``spool/<id>/`` and its state in the ledger, both synced before the client is told its id.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import InvalidStateError
from functools import partial
from pathlib import Path
from typing import Any

from msa.serving.errors import ApiError, memory_not_found, to_api_error
from msa.serving.failure_log import WORK_ID, log_failure
from msa.serving.job import QueueFullError, ShuttingDownError
from msa.serving.ledger import Ledger, TakenKey
from msa.serving.operation import LeftForLaterError, Operation, OperationCancelledError

logger = logging.getLogger(__name__)

SPOOL = "spool"
_THREADS = 4
_MOST_STARTS = 3
_LATER = "the server stops; the operation goes on when it is back"

Runner = Callable[[Operation], dict[str, Any]]


class Operations:
    """The operations of one server and the threads that drive them.

    Operations of one memory and kind run one after another in the order they were accepted, others beside each other.
    Of those that were at work when the server died only one runs at a time until it gets on, those that saw it die
    least often first: what kills a server takes nothing else with it for good.

    Args:
        folder: the server's own folder.
        ledger: where they are remembered.
        runners: by kind; called in a thread of its own, returns the result.
        resumable: kinds that are taken up again after a restart; others are then reported as failed.
        max_unfinished: more are refused.
        exists: whether there is a memory of this name; operations of others are not taken up again.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        runners: Mapping[str, Runner],
        *,
        resumable: frozenset[str],
        max_unfinished: int,
        exists: Callable[[str], bool] = lambda memory: True,
    ) -> None:
        self.root = folder.parent
        self.spool = folder / SPOOL
        self._ledger = ledger
        self._runners = runners
        self._max_unfinished = max_unfinished
        self._live: dict[str, Operation] = {}
        self._receiving: set[str] = set()
        self._busy: set[tuple[str, str]] = set()
        self._held: Counter[str] = Counter()
        self._wake = threading.Condition()
        self._saving = threading.Lock()  # so that what is written last is what was true last
        self._closed = False
        self.spool.mkdir(parents=True, exist_ok=True)
        self._resume(resumable, exists)
        self._ledger.settle_keys()
        self._threads = [
            threading.Thread(target=self._loop, name=f"msa-operations-{number}", daemon=True)
            for number in range(_THREADS)
        ]

    def begin(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def _resume(self, resumable: frozenset[str], exists: Callable[[str], bool]) -> None:
        unfinished = [Operation.of(fields) for fields in self._ledger.unfinished_operations()]
        # each of those that had been begun is the first of its line, so that no line is changed
        for operation in sorted(unfinished, key=lambda one: (not one.starts, one.starts)):
            operation.state, operation.later = "queued", partial(self._is_left, operation)
            if operation.cancelled:
                operation.state = "cancelled"
                self._end(operation)
            elif failure := self._failure_of(operation, resumable, exists):
                self._fail(operation, failure)
            else:
                logger.info("operation %s goes on", operation.id)
                self._live[operation.id] = operation
        for leftover in self.spool.iterdir():
            if leftover.name not in self._live:
                shutil.rmtree(leftover, ignore_errors=True)

    def _failure_of(
        self, operation: Operation, resumable: frozenset[str], exists: Callable[[str], bool]
    ) -> ApiError | None:
        """Why an operation that the last process left does not go on; None: it does."""
        if operation.kind not in resumable or not self.folder_of(operation.id).is_dir():
            return ApiError(503, "the server was stopped while this ran; start it again", "interrupted")
        if not exists(operation.memory):
            return memory_not_found(operation.memory)
        if operation.starts >= _MOST_STARTS:
            message = (
                f"the server ended {operation.starts} times while it worked on this, which is not tried again. It may "
                "need more memory than there is: send it in smaller parts, or give the server more"
            )
            return ApiError(503, message, "interrupted", retry=False)
        return None

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
        self._check_open()
        if len(self._live) + len(self._receiving) >= self._max_unfinished:
            raise QueueFullError(f"{len(self._live)} operations are unfinished, as many as may; try again later", 10.0)

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDownError("the server is shutting down; try again in a moment")

    @contextlib.contextmanager
    def receiving(self, operation_id: str | None = None) -> Iterator[str]:
        """While the body of an operation arrives, which counts as one: bodies on their way take room on the disk too.

        Args:
            operation_id: of one that may have its place already; None: a new one.

        Yields:
            The id that the operation will have; its place is kept until it is started or the block ends.

        Raises:
            QueueFullError, ShuttingDownError: as for :meth:`check_room`.
        """
        operation_id = operation_id or self.new_id()
        with self._wake:
            self._check_open()
            takes = operation_id not in self._receiving
            if takes:
                self.check_room()
                self._receiving.add(operation_id)
        try:
            yield operation_id
        finally:
            if takes:
                with self._wake:
                    self._receiving.discard(operation_id)

    def start(
        self,
        kind: str,
        memory: str,
        request: dict[str, Any],
        operation_id: str | None = None,
        key: TakenKey | None = None,
    ) -> Operation:
        """Accept an operation; when this returns it is on disk.

        Args:
            kind: one of the runners'.
            memory: the memory concerned.
            request: what to do.
            operation_id: whose folder in the spool holds the body; None: there is no body.
            key: the idempotency key it was asked for with.

        Raises:
            QueueFullError, ShuttingDownError: as for :meth:`check_room`.
        """
        with self.receiving(operation_id) as operation_id:
            operation = Operation(operation_id, memory, kind, request)
            operation.later = partial(self._is_left, operation)
            self._ledger.accept_operation(operation.fields, key, json.dumps(operation.to_json()))
            with self._wake:
                self._receiving.discard(operation.id)
                self._live[operation.id] = operation
                self._wake.notify_all()
        return operation

    def get(self, operation_id: str) -> Operation | None:
        """One operation; None: it is unknown."""
        live = self._live.get(operation_id)
        if live is not None:
            return live
        fields = self._ledger.operation(operation_id)
        return None if fields is None else Operation.of(fields)

    def list(self, memories: list[str] | None, limit: int, after: str | None = None) -> list[Operation]:
        """The newest operations, of these memories (None: of all), older than the one ``after``."""
        found = self._ledger.operations(memories, limit, after)
        return [self._live.get(fields["id"]) or Operation.of(fields) for fields in found]

    def unfinished(self) -> int:
        """How many have not ended."""
        return len(self._live)

    def cancel(self, operation: Operation) -> None:
        """Call one off, durably: one that waits ends here, one that runs at its next safe point. What it did stays."""
        with self._wake:
            if self._live.get(operation.id) is not operation:
                return  # it has ended
            operation.cancelled = True
            waits = operation.state == "queued"
            if waits:
                operation.state = "cancelled"
        if waits:
            self._end(operation)
        else:
            self._ledger.call_off(operation.id)

    def cancel_all(self, memory: str) -> None:
        """Call off all of a memory that was deleted."""
        for operation in [*self._live.values()]:
            if operation.memory == memory:
                try:
                    self.cancel(operation)
                except sqlite3.Error as error:  # it ends all the same
                    log_failure(logger, "while an operation was called off", error, "storage_error")

    def hold(self, memory: str) -> None:
        """Let none of a memory run until it is released: those that do stop at the next safe point and go on then."""
        with self._wake:
            self._held[memory] += 1

    def release(self, memory: str) -> None:
        """End a :meth:`hold`."""
        with self._wake:
            self._held[memory] -= 1
            if not self._held[memory]:
                del self._held[memory]
            self._wake.notify_all()

    def _is_left(self, operation: Operation) -> bool:
        return self._closed or operation.memory in self._held

    def save(self, operation: Operation) -> None:
        """Keep an operation's progress."""
        self._keep(operation, self._ledger.save_operation)

    def _keep(self, operation: Operation, write: Callable[[dict[str, Any]], None]) -> None:
        with self._saving:
            operation.updated = time.time()
            write(operation.fields)

    def got_on(self, operation: Operation) -> None:
        """It has done something for good: from here on it is counted anew how often the server dies meanwhile."""
        with self._wake:
            operation.starts = 0
            self._wake.notify_all()

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
                operation = self._ready()
                if operation is not None:
                    self._busy.add(operation.line)
                    operation.state = "running"
                    operation.starts += 1
                    return operation
                self._wake.wait()
        return None

    def _ready(self) -> Operation | None:
        suspect_runs = any(operation.state == "running" and operation.starts > 1 for operation in self._live.values())
        taken = {*self._busy}
        for operation in self._live.values():
            if operation.state != "queued" or operation.line in taken:
                continue
            taken.add(operation.line)  # nobody overtakes the one before him
            if operation.memory not in self._held and not (suspect_runs and operation.starts):
                return operation
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
                    self._busy.discard(operation.line)
                    self._wake.notify_all()

    def _run(self, operation: Operation) -> None:
        try:
            operation.check()
            self.save(operation)
            result = self._runners[operation.kind](operation)
        except (LeftForLaterError, ShuttingDownError) as error:
            self._put_back(operation, stops=self._closed or isinstance(error, ShuttingDownError))
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

    def _put_back(self, operation: Operation, *, stops: bool) -> None:
        """Leave one for later, after the restart if the server stops; one that was called off meanwhile ends."""
        with self._wake:
            operation.starts = max(0, operation.starts - 1)
            operation.state = "cancelled" if operation.cancelled else "queued"
            ended = operation.cancelled
        if ended:
            self._end(operation)
            return
        if stops:
            self._tell(lambda left: left is operation)
        self.save(operation)

    def _fail(self, operation: Operation, error: ApiError) -> None:
        operation.state, operation.failure, operation.error = "failed", error, error.body["error"]
        self._end(operation)

    def _end(self, operation: Operation) -> None:
        self._keep(operation, self._ledger.end_operation)
        shutil.rmtree(self.folder_of(operation.id), ignore_errors=True)
        self._ledger.write_late()  # on a full disk that may have made room
        with self._wake:
            self._live.pop(operation.id, None)
        with contextlib.suppress(InvalidStateError):  # those who wait were told that the server stops
            operation.outcome.set_result(operation)
