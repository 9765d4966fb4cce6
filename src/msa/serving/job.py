"""One piece of work for the model's thread, and the reasons why it may not be done.

This module knows nothing of HTTP, models or memories.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from enum import Enum
from typing import Any

from msa.errors import MSAError


class QueueFullError(MSAError):
    """Too many jobs wait; ``retry_after_s`` says when to try again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(MSAError):
    """A job did not end in time."""


class CancelledJobError(MSAError):
    """Nobody waits for the job any more."""


class ShuttingDownError(MSAError):
    """The scheduler takes no more jobs."""


class Lane(Enum):
    """The two queues."""

    ASK = "ask"
    WRITE = "write"


class Job:
    """One piece of work for the worker thread.

    Args:
        work: called with the job in the worker thread; its result or exception is the job's. The result may be a
            generator: of things that must be done before it can go on, until it returns the job's result.
        deadline: moment of :func:`time.monotonic` at which it must have ended; None: no limit.
        on_event: receives what ``work`` emits, in the worker thread.

    Attributes:
        future: the outcome.
        submitted, started, ended: moments of :func:`time.monotonic`; None: not yet.
    """

    def __init__(
        self,
        work: Callable[[Job], Any],
        lane: Lane,
        deadline: float | None = None,
        on_event: Callable[[Any], None] | None = None,
    ) -> None:
        self.lane = lane
        self.deadline = deadline
        self.future: Future[Any] = Future()
        # running from the start: a waiter that is cancelled must not cancel the outcome for the worker
        self.future.set_running_or_notify_cancel()
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self._work = work
        self._on_event = on_event
        self._stop: MSAError | None = None
        self._between: Callable[[Job], None] | None = None
        self._steps: Generator[Any, None, Any] | None = None
        self._waits_for: Any = None
        self._held_since = 0.0

    def emit(self, event: Any) -> None:
        """Hand an event to whoever waits for the job."""
        if self._on_event is not None:
            self._on_event(event)

    @property
    def stop_reason(self) -> MSAError | None:
        """Why the job should end early; None: it should not."""
        if self._stop is None and self.deadline is not None and time.monotonic() > self.deadline:
            self._stop = DeadlineError("the request took longer than it may; ask for less, or raise the time limit")
        return self._stop

    def should_stop(self) -> bool:
        """Whether the job should end early."""
        return self.stop_reason is not None

    def give_way(self) -> None:
        """At a safe point of a write that has held the model for long: answer the questions that wait now, then go on.

        Raises:
            MSAError: the job itself should end early.
        """
        if self._between is not None:
            self._between(self)
        if self.stop_reason is not None:
            raise self.stop_reason
