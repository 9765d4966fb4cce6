"""One lock for each name, of which nothing is left once nobody holds or awaits it."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator


class NamedLocks:
    """Locks by name; names may come from clients, so none is kept longer than it is used.

    >>> locks = NamedLocks()
    >>> with locks.holding("a"), locks.holding("b"):
    ...     len(locks)
    2
    >>> len(locks)
    0
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._locks)

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Wait until nobody else holds this name's lock, and hold it."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
            self._users[name] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name], self._locks[name]
