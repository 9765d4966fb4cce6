"""The server of ``serving_soak.py``: a real ``msa serve`` in a process of its own, and what that process uses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import psutil

SAMPLE_S = 1.0
START_S = 300.0
STOP_S = 90.0


class Usage(NamedTuple):
    """Of a process: resident bytes, those of them that are no file's, open files and threads."""

    rss: int
    own: int
    files: int
    threads: int


class Server:
    """``msa serve`` over a folder; a context manager that ends it.

    Args:
        root: the folder with the memories.
        model: to serve.
        options: more of the command's arguments.

    Attributes:
        url: where it listens.
        samples: seconds since watching began, and what the process used then.

    Raises:
        SystemExit: it does not start.
    """

    def __init__(self, root: Path, model: str, *options: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.log = root, root.parent / f"{root.name}-{time.time_ns()}.log"
        self.samples: list[tuple[float, Usage]] = []
        command = [str(Path(sys.executable).with_name("msa")), "serve", str(root), "--port", "0", "--model", model]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([*command, *options], stderr=log)
        started = time.monotonic()
        while not (found := re.search(r"on (http://\S+)", self.log.read_text())) or not _is_ready(found[1]):
            if self.process.poll() is not None or time.monotonic() - started > START_S:
                self.process.kill()
                raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        self.url = found[1]
        self.started_s = time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Ask it to end; its exit code, -9 if it did not in time."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    async def watch(self) -> None:
        """Note resident memory, open files and threads, every second."""
        process, started = psutil.Process(self.process.pid), time.monotonic()
        while True:
            with contextlib.suppress(psutil.Error):  # it has ended
                memory = process.memory_info()
                own = memory.rss - getattr(memory, "shared", 0)
                usage = Usage(memory.rss, own, process.num_fds(), process.num_threads())
                self.samples.append((time.monotonic() - started, usage))
            await asyncio.sleep(SAMPLE_S)

    def usage(self, warm_up_minutes: float) -> dict[str, Any]:
        """Memory over time, at every minute and as a line through what comes after the warm-up."""
        usages = [usage for _, usage in self.samples]
        report: dict[str, Any] = {
            "warm_up_minutes": warm_up_minutes,
            "server_open_files": [usages[0].files, usages[-1].files, max(usage.files for usage in usages)],
            "server_threads": [usages[0].threads, usages[-1].threads],
        }
        for name in ("rss", "own"):
            mib = [(seconds / 60, getattr(usage, name) / 2**20) for seconds, usage in self.samples]
            warm = [point for point in mib if point[0] >= warm_up_minutes] or mib[-1:]
            minutes = sorted({int(minute) for minute, _ in mib})
            mean, rise = statistics.fmean(y for _, y in warm), slope(warm)
            report |= {
                f"{name}_mib_by_minute": [
                    [n, round(statistics.median(y for at, y in mib if int(at) == n), 1)] for n in minutes
                ],
                f"{name}_mib": {end: round(y, 1) for end, y in zip(("least", "most"), _ends(warm), strict=True)},
                f"{name}_slope_mib_per_minute": round(rise, 4),
                f"{name}_growth_after_warm_up": round(rise * (warm[-1][0] - warm[0][0]) / mean, 5),
            }
        return report

    def refusals_ms(self) -> list[float]:
        """How long the server itself took to say that its queue is full."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["ms"] for line in lines if line.get("status") == 429]

    def complaints(self) -> list[str]:
        """Lines of its log that no server should write."""
        return re.findall(
            r'^(?:Traceback|unexpected|Fatal error|\{.*"event": "error").*', self.log.read_text(), re.MULTILINE
        )


def _ends(points: list[tuple[float, float]]) -> tuple[float, float]:
    return min(y for _, y in points), max(y for _, y in points)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through the points, by least squares."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def gauges(text: str) -> dict[str, float]:
    """Questions at the model and in the queue, out of ``/metrics``."""
    found = re.findall(r"^msa:num_requests_(running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}
