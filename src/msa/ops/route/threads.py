"""Independent small operations on several threads, each with a run of them.

torch splits every single operation over its threads; where operations take some microseconds, meeting after each costs
more than it gains.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_MOST_WORKERS = 16
_pools: list[ThreadPoolExecutor] = []  # one, once it was needed
_lock = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of its parent's threads


def on_threads(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], workers: int) -> list[R]:
    """``work`` on up to ``workers`` contiguous runs of ``items`` at once, without gradients; the results in order."""
    workers = min(workers, len(items), _MOST_WORKERS)
    if workers < 2:
        with torch.no_grad():
            return work(items)
    inference = torch.is_inference_mode_enabled()

    def run(part: Sequence[T]) -> list[R]:
        with torch.no_grad(), torch.inference_mode(inference):  # both are a thread's own
            return work(part)

    bounds = [len(items) * worker // workers for worker in range(workers + 1)]
    parts = [items[begin:end] for begin, end in itertools.pairwise(bounds)]
    return [result for results in _pool().map(run, parts) for result in results]


def _pool() -> ThreadPoolExecutor:
    """Threads that compute alone, each on one core."""
    with _lock:
        if not _pools:
            # torch keeps each thread's number, and beside it the last one that any thread set, which threads that have
            # not computed yet begin with: so all workers start here, and this thread's own number is set last
            own = torch.get_num_threads()
            started = threading.Barrier(_MOST_WORKERS + 1)
            pool = ThreadPoolExecutor(_MOST_WORKERS, thread_name_prefix="msa-route", initializer=_compute_alone)
            for _ in range(_MOST_WORKERS):
                pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(own)
            _pools.append(pool)
        return _pools[0]


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread that has never asked would take the last number set instead of its own
    torch.set_num_threads(1)
