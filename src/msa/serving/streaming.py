"""Answers that are sent while they are written: from the worker thread's events to server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from msa.generation.types import Answer, DocumentRetrieved, Event, RoundStarted, TextPiece
from msa.serving.errors import to_api_error
from msa.serving.http import until_gone
from msa.serving.job import CancelledJobError, DeadlineError, Job
from msa.serving.replies import DONE, PING, Reply, event
from msa.serving.services import Services

_ERRORS_BEFORE_STREAM_S = 10.0  # an answer that fails so early is an error response and no stream
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Events:
    """Events of a job, handed from the worker thread to the event loop; ends with the job."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._peeked: list[Event | None] = []

    def put(self, item: Event | None) -> None:
        """From any thread; None: the job has ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self, timeout_s: float) -> Event | None:
        """The next event, None at the end.

        Raises:
            TimeoutError: none came in time.
        """
        if self._peeked:
            return self._peeked.pop()
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()

    @property
    def has_next(self) -> bool:
        """Whether an event has been waited for and not taken."""
        return bool(self._peeked)

    async def peek(self, timeout_s: float) -> None:
        """Wait for the next event, which stays the next, but not longer than so."""
        with contextlib.suppress(TimeoutError):
            self._peeked = [await self.get(timeout_s)]


class EventStream(Response):
    """A response of server-sent events that notices at once when the client goes away.

    Args:
        events: what to send.
        on_gone: called if the client goes away before the end.
        patience_s: seconds that the client may take to receive an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], on_gone: Callable[[], None], patience_s: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._on_gone = on_gone
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with contextlib.suppress(TimeoutError):  # a client that does not read is gone
                    await sending
        finally:
            if not sending.done():
                self._on_gone()
            for task in (sending, gone):
                task.cancel()

    async def _send(self, send: Send) -> None:
        async for text in self._events:
            try:
                async with asyncio.timeout(self._patience_s):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            except TimeoutError:
                self._on_gone()
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def reply_events(
    events: Events, job: Job, reply: Reply, services: Services, *, stream_events: bool
) -> AsyncIterator[str]:
    """The server-sent events of one answer; whatever fails on the way becomes an event too."""
    yield reply.opening()
    said: list[str] = []
    try:
        while (item := await _next(events, job, services)) is not None:
            if isinstance(item, str):
                yield item
            elif isinstance(item, TextPiece):
                said.append(item.text)
                yield reply.chunk({"content": item.text})
            elif isinstance(item, RoundStarted | DocumentRetrieved) and stream_events:
                yield reply.retrieval(item)
        answer: Answer = job.future.result()  # done: the events have ended
        ending = [reply.closing("".join(said), answer), *([reply.usage(answer)] if reply.include_usage else [])]
    # any failure must be told inside the stream: its status line is long gone
    except Exception as error:
        failure = to_api_error(error, services.root)
        yield event(failure.body)
        yield DONE
        return
    for text in ending:
        yield text
    yield DONE


async def first_event(events: Events, job: Job, request: Request) -> None:
    """Wait a little for the first sign of an answer, so that what fails at once fails with its own status.

    Raises:
        DeadlineError: the job's time is up.
        CancelledJobError: the client went away.
        BaseException: what the job raised.
    """
    seconds = _ERRORS_BEFORE_STREAM_S
    if job.deadline is not None:
        seconds = min(seconds, max(0.001, job.deadline - time.monotonic()))
    coming = asyncio.create_task(events.peek(seconds))
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise CancelledJobError("the client went away")
    finally:
        coming.cancel()
        gone.cancel()
    if job.future.done() and job.future.exception() is not None:
        job.future.result()
    if not events.has_next and job.stop_reason is not None:
        raise job.stop_reason


async def _next(events: Events, job: Job, services: Services) -> Any:
    """The next event, or a sign of life; None at the end.

    Raises:
        DeadlineError: the job's time is up.
    """
    seconds = services.settings.ping_s
    if job.deadline is not None:
        seconds = min(seconds, job.deadline - time.monotonic())
    try:
        return await events.get(max(seconds, 0.001))
    except TimeoutError:
        if job.deadline is not None and time.monotonic() >= job.deadline:
            reason = DeadlineError("the answer took longer than it may; ask for less, or raise the time limit")
            services.scheduler.cancel(job, reason)
            raise reason from None
        return PING


def cancel_for(job: Job, services: Services) -> Callable[[], None]:
    """What to do when the client of a job goes away."""
    return lambda: services.scheduler.cancel(job, CancelledJobError("the client went away"))
