"""Seconds of calls, by the wall or by a GPU's clock, and the greatest resident size of this process."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Times = dict[str, float]
"""Seconds: ``best`` and ``median`` of several rounds."""


def times_of(seconds: Sequence[float]) -> Times:
    """Best and median of several rounds.

    >>> times_of([3.0, 1.0, 2.5])
    {'best': 1.0, 'median': 2.5}
    """
    return {"best": min(seconds), "median": statistics.median(seconds)}


def scaled(times: Times, factor: float) -> Times:
    """Seconds of so many times as much work.

    >>> scaled({"best": 1.0, "median": 2.0}, 0.5)
    {'best': 0.5, 'median': 1.0}
    """
    return {name: seconds * factor for name, seconds in times.items()}


def seconds_of(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, a GPU's work included."""
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def timed(work: Callable[[], Any], repeats: int) -> Times:
    """Seconds of a call, after one that does not count."""
    work()
    return times_of([seconds_of(work) for _ in range(repeats)])


def alternated(
    works: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each work in each round; works take turns, so that a noisy machine disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, clock))
    return seconds


def timed_on_gpu(work: Callable[[], Any], repeats: int) -> Times:
    """As :func:`timed`, by the GPU's clock; after three calls that do not count, since kernels are compiled first."""
    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return times_of(seconds)


def replayed(work: Callable[[], Any], repeats: int) -> Times:
    """What a call has the GPU do, without the time it takes to ask for it."""
    timed_on_gpu(work, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return timed_on_gpu(graph.replay, repeats)


def timer_of(device: torch.device) -> Callable[[Callable[[], Any], int], Times]:
    """:func:`timed` or :func:`timed_on_gpu`."""
    return timed_on_gpu if device.type == "cuda" else timed


def reset_peak() -> float:
    """Let the peak begin again at what is resident now; that in MiB."""
    with contextlib.suppress(OSError):  # the peak so far is then the start, which hides what is smaller than it
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def added_mib(work: Callable[[], object], device: torch.device) -> float:
    """MiB that a call adds at its peak to what is there after an earlier one, on its device."""
    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    before_mib = reset_peak()
    work()
    return peak_mib() - before_mib


def peak_mib() -> float:
    """Greatest resident size of this process since the last reset, MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
