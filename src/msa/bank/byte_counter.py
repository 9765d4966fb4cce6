"""How many bytes went some way, counted from any thread."""

from __future__ import annotations

import threading


class ByteCounter:
    """A sum that only grows.

    >>> counter = ByteCounter()
    >>> counter.add(3)
    >>> counter.add(4)
    >>> counter.total
    7
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self, num_bytes: int) -> None:
        """Count so many more."""
        with self._lock:
            self._total += num_bytes

    @property
    def total(self) -> int:
        """All that were counted."""
        return self._total
