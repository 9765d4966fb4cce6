"""Many clients at one server for a long time: nothing lost, nothing mixed up, no memory leaked, and how long it takes.

    python benchmarks/serving_soak.py [--clients 32] [--minutes 30] [--out results.json]

A real ``msa serve`` runs in a process of its own. Every client owns documents with values of its own, in memories that
it shares with others. All the time it asks for them (whole and streamed, sometimes going away in the middle), searches,
adds, updates and deletes. Each answer is checked: its sources belong to its memory (half of the questions are about the
client's own documents alone, by a filter: then to the client), its value to a document that was read, and neither to a
text that was replaced or deleted before the question. In the end the memories must hold exactly what was acknowledged,
also when they are opened again. ``problems`` counts what must not happen; the exit code is 1 if any did. Answers that
are wrong but consistent are the model's mistakes, and counted as such.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
from soak_client import Client, Tally, text_of

from msa.bank import MemoryBank

SAMPLE_S = 1.0


class Server:
    """``msa serve`` in a process of its own, and what it uses."""

    def __init__(self, root: Path, model: str, max_waiting: int) -> None:
        self.log = root.parent / "serve.log"
        command = [str(Path(sys.executable).with_name("msa")), "serve", str(root), "--port", "0", "--model", model]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([*command, "--max-waiting", str(max_waiting)], stderr=log)
        while not (found := re.search(r"on (http://\S+)", self.log.read_text())):
            if self.process.poll() is not None:
                raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        self.url = found[1]
        self.samples: list[tuple[float, int, int, int]] = []

    async def watch(self) -> None:
        """Note resident memory, open files and threads, every second."""
        process, started = psutil.Process(self.process.pid), time.monotonic()
        while True:
            with contextlib.suppress(psutil.Error):  # it has ended
                seconds = time.monotonic() - started
                usage = (process.memory_info().rss, process.num_fds(), process.num_threads())
                self.samples.append((seconds, *usage))
            await asyncio.sleep(SAMPLE_S)

    def usage(self) -> dict[str, Any]:
        """Resident memory over time: slopes by least squares, over all samples and over the second half."""
        mib = [(seconds / 60, rss / 2**20) for seconds, rss, _, _ in self.samples]
        every = max(1, len(mib) // 60)
        return {
            "rss_mib": {"first": mib[0][1], "last": mib[-1][1], "most": max(rss for _, rss in mib)},
            "rss_slope_mib_per_minute": slope(mib),
            "rss_slope_mib_per_minute_second_half": slope(mib[len(mib) // 2 :]),
            "rss_mib_over_minutes": [[round(minutes, 2), round(rss, 1)] for minutes, rss in mib[::every]],
            "open_files": [self.samples[0][2], self.samples[-1][2]],
            "threads": [self.samples[0][3], self.samples[-1][3]],
        }

    def refusals_ms(self) -> list[float]:
        """How long the server itself took to say that its queue is full."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith('{"event"')]
        return [line["ms"] for line in lines if line["status"] == 429]


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through the points, by least squares."""
    if len(points) < 2:
        return 0.0
    fit = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return round(fit.slope, 4)


async def check_end(url: str, memories: list[str], clients: list[Client], tally: Tally) -> None:
    """What was acknowledged is there, and nothing else; nothing is damaged, nothing still waits."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        for memory in memories:
            listed = (await http.get(f"/v1/memories/{memory}/documents", params={"limit": 1000})).json()
            check_documents({each["id"]: each["text"] for each in listed["data"]}, memory, clients, tally)
            if not (await http.post(f"/v1/memories/{memory}/verify")).json()["ok"]:
                tally.problem("damaged memory", memory)
        waiting = re.findall(r"^msa:num_\w+\{.*\} (\S+)$", (await http.get("/metrics")).text, re.MULTILINE)
        if any(map(float, waiting)):
            tally.problem("work that nobody waits for", waiting)


def check_documents(found: dict[str, str], memory: str, clients: list[Client], tally: Tally) -> None:
    """Compare a memory's documents with what its clients were told."""
    mine = [client for client in clients if client.memory == memory]
    wanted = {doc_id: text_of(*pair) for client in mine for doc_id, pair in client.live.items()}
    unsure = {doc_id for client in mine for doc_id in client.unsure}
    for doc_id in (wanted.keys() | found.keys()) - unsure:
        if wanted.get(doc_id) != found.get(doc_id):
            kind = "lost" if doc_id not in found else "not deleted" if doc_id not in wanted else "another text"
            tally.problem(f"document {kind} in the end", doc_id)


async def soak(server: Server, arguments: argparse.Namespace, tally: Tally) -> tuple[list[str], list[Client]]:
    """Let all clients work; returns the memories and the clients."""
    memories = [f"memory-{number}" for number in range(arguments.memories)]
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        while (await http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.1)
        for memory in memories:
            (await http.put(f"/v1/memories/{memory}", json={})).raise_for_status()
        model = (await http.get("/ready")).json()["model"]
    clients = [
        Client(number, memories[number % len(memories)], server.url, tally, arguments.seed)
        for number in range(arguments.clients)
    ]
    watching = asyncio.create_task(server.watch())
    until = time.monotonic() + 60 * arguments.minutes
    await asyncio.gather(*(client.run(model, until) for client in clients))
    watching.cancel()
    await check_end(server.url, memories, clients, tally)
    return memories, clients


def percentiles(seconds: dict[str, list[float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each kind of request."""
    for kind, values in sorted(seconds.items()):
        ordered = sorted(values)
        at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 90, 99)}
        yield kind, {name: round(value, 4) for name, value in {**at, "most": ordered[-1]}.items()}


def main() -> int:
    """Run, check and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--memories", type=int, default=4)
    parser.add_argument("--max-waiting", type=int, default=16, help="questions that may wait; fewer than clients: 429s")
    parser.add_argument("--model", default="msa-tiny", help="one that copies values: others answer wrongly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where memories and log are kept; default: thrown away")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "root").mkdir(parents=True)
        server, tally = Server(folder / "root", arguments.model, arguments.max_waiting), Tally()
        try:
            memories, clients = asyncio.run(soak(server, arguments, tally))
        finally:
            server.process.terminate()
            code = server.process.wait(60)
        if code:
            tally.problem("exit code of the server", code)
        segments = {}
        for memory in memories:
            with MemoryBank.open(folder / "root" / memory, read_only=True) as bank:
                check_documents({each.id: each.text for each in bank.list()}, memory, clients, tally)
                segments[memory] = bank.stats()["segments"]
        if problem := re.findall(r"^(?:Traceback|unexpected|Fatal error).*", server.log.read_text(), re.MULTILINE):
            tally.problem("errors in the server's log", problem[0])
        refused = {"server": server.refusals_ms()}
    report = {
        "what": "many clients at msa serve: consistency, memory, latency",
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "problems": dict(tally.problems),
        "examples": tally.examples,
        "counts": dict(sorted(tally.counts.items())),
        "segments_at_the_end": segments,
        "seconds": dict(percentiles(tally.seconds)),
        "refused_ms_in_the_server": dict(percentiles(refused)) if refused["server"] else {},
        **server.usage(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
