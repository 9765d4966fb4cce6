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
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of its parent's threads


def on_threads(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], workers: int) -> list[R]:
    """``work`` on up to ``workers`` contiguous runs of ``items`` at once, without gradients; the results in order."""
    workers = min(workers, len(items))
    if workers < 2:
        with torch.no_grad():
            return work(items)
    inference = torch.is_inference_mode_enabled()

    def run(part: Sequence[T]) -> list[R]:
        with torch.no_grad(), torch.inference_mode(inference):  # both are a thread's own
            return work(part)

    bounds = [len(items) * worker // workers for worker in range(workers + 1)]
    parts = [items[begin:end] for begin, end in itertools.pairwise(bounds)]
    return [result for results in _pool(workers).map(run, parts) for result in results]


def _pool(workers: int) -> ThreadPoolExecutor:
    with _lock:
        if workers not in _pools:
            # the setting is the worker threads' own: this thread keeps its own number
            _pools[workers] = ThreadPoolExecutor(
                workers, thread_name_prefix="msa-route", initializer=torch.set_num_threads, initargs=(1,)
            )
        return _pools[workers]
