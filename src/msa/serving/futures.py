"""Waiting in an event loop for what another thread does."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from typing import Any


def event_of(future: Future[Any]) -> asyncio.Event:
    """Set when the future is done.

    A future of asyncio's own would complain of a failure that comes after the client has gone, and the loop with it.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    return done
