"""Many clients at one server for a long time: nothing lost, nothing mixed up, no memory leaked, and how long it takes.

    python benchmarks/serving_soak.py [--clients 32] [--minutes 30] [--out benchmarks/results/NAME.json]

A real ``msa serve`` runs in a process of its own. Every client owns documents with values of its own, in memories that
it shares with others. All the time it asks for them (whole and streamed, sometimes going away in the middle), searches,
adds, updates and deletes. Each answer is checked: its sources belong to its memory (half of the questions are about the
client's own documents alone, by a filter: then to the client), its value to a document that was read, and neither to a
text that was replaced or deleted before the question. In the end the memories must hold exactly what was acknowledged,
also when they are opened again. Answers that are wrong but consistent are the model's mistakes, and counted as such.

Then other servers show the moments that matter (``soak_moments.py``): a full queue that refuses, a hundred clients
that leave in the middle of their streams, and kills while documents are added. ``verdicts`` says of each requirement
what was wanted and what was found; the exit code is 1 if one is not met. ``python benchmarks/soak_pictures.py`` puts
the result into ``docs/serving.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from soak_client import Client, Tally, text_of
from soak_moments import MEMORY, departures, full_queue, kills
from soak_server import Server
from storing import made_by

from msa.bank import MemoryBank

WARM_UP_SHARE, WARM_UP_MOST = 0.25, 5.0  # of the minutes; minutes
JUDGED_MINUTES = 10.0  # a shorter run shows warming up, not leaks
MOST_GROWTH = 0.03  # of resident memory, from the end of the warm-up to the end
MOST_REFUSAL_MS = 50.0
MOST_FREED_S = 1.0
DEPARTING = 100
CONCURRENT, WAITING = 8, 32  # the server's defaults
LOST = ("document lost", "document not deleted", "document another text", "damaged", "forgotten")
CROSSED = ("of another", "to another", "another answer", "of others", "source that was", "value ", "of several")


@dataclass(frozen=True)
class Verdict:
    """One requirement: what was wanted, what was found, and whether that is met; None: the run was too short to say."""

    what: str
    wanted: str
    found: str
    met: bool | None


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
        for memory in memories:
            (await http.put(f"/v1/memories/{memory}", json={})).raise_for_status()
        model = (await http.get("/ready")).json()["model"]
    clients = [
        Client(number, memories[number % len(memories)], server.url, tally, arguments.seed)
        for number in range(arguments.clients)
    ]
    watching = asyncio.create_task(server.watch())
    await asyncio.gather(*(client.run(model, 60 * arguments.minutes) for client in clients))
    watching.cancel()
    if server.process.poll() is None:
        await check_end(server.url, memories, clients, tally)
    else:
        tally.problem("the server ended in the middle", server.process.returncode)
    return memories, clients


def long_run(folder: Path, arguments: argparse.Namespace, tally: Tally) -> dict[str, Any]:
    """All clients for all the minutes, and what is on the disk after it."""
    warm_up = min(WARM_UP_MOST, WARM_UP_SHARE * arguments.minutes)
    root = folder / "root"
    with Server(root, arguments.model, "--max-waiting", str(arguments.max_waiting)) as server:
        memories, clients = asyncio.run(soak(server, arguments, tally))
        if code := server.stop():
            tally.problem("exit code of the server", code)
        for complaint in server.complaints():
            tally.problem("errors in the server's log", complaint)
        usage, refused = server.usage(warm_up), server.refusals_ms()
    segments = {}
    for memory in memories:
        with MemoryBank.open(root / memory, read_only=True) as bank:
            check_documents({each.id: each.text for each in bank.list()}, memory, clients, tally)
            segments[memory] = bank.stats()["segments"]
    return {
        "counts": dict(sorted(tally.counts.items())),
        "segments_at_the_end": segments,
        "seconds": dict(percentiles(tally.seconds)),
        "refused_ms_in_the_server": dict(percentiles({"refused": refused})),
        **usage,
    }


def moments(folder: Path, arguments: argparse.Namespace, tally: Tally) -> dict[str, Any]:
    """The full queue, the departures and the kills, each with a server of its own."""
    places = ("--max-concurrent", str(CONCURRENT), "--max-waiting", str(WAITING))
    with Server(folder / "full", arguments.model, *places) as server:
        model = fill(server)
        full = asyncio.run(full_queue(server, model, CONCURRENT, WAITING, tally))
        server.stop()
        refused_ms = {
            "client": [1000 * seconds for seconds in full.pop("refused_s")],
            "server": server.refusals_ms(),
        }
    with Server(folder / "leaving", arguments.model, "--max-concurrent", str(DEPARTING)) as server:
        left = asyncio.run(departures(server, fill(server), DEPARTING, tally))
        server.stop()
    killed = kills(folder / "killed", arguments.model, arguments.kills, arguments.seed, tally)
    return {
        "full_queue": {"refused_ms": dict(percentiles(refused_ms)), "freed_s": round(full["freed_s"], 3)},
        "departures": {name: round(value, 3) for name, value in left.items()},
        "kills": killed,
    }


def fill(server: Server) -> str:
    """Give a server one memory with a few documents; returns its model's name."""
    documents = [{"id": f"d{n}", "text": text_of(f"key-{n}", str(10**6 + n))} for n in range(8)]
    httpx.put(f"{server.url}/v1/memories/{MEMORY}", json={}, timeout=60).raise_for_status()
    added = httpx.post(f"{server.url}/v1/memories/{MEMORY}/documents", json={"documents": documents}, timeout=60)
    added.raise_for_status()
    return str(httpx.get(f"{server.url}/ready", timeout=60).json()["model"])


def percentiles(values: dict[str, list[float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each kind of request that was made."""
    for kind, numbers in sorted(values.items()):
        if ordered := sorted(numbers):
            at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 90, 99)}
            yield kind, {name: round(value, 4) for name, value in {**at, "most": ordered[-1]}.items()}


def verdicts(report: dict[str, Any], minutes: float, problems: dict[str, int]) -> list[Verdict]:
    """What the long run and the moments say of what a server must do."""

    def none(what: str, kind: str) -> Verdict:
        found = "; ".join(f"{name}: {count}" for name, count in problems.items() if kind_of(name) == kind)
        return Verdict(what, "none", found or "none", not found)

    growth, own = report["rss_growth_after_warm_up"], report["own_growth_after_warm_up"]
    under_load = report["refused_ms_in_the_server"].get("refused")
    was_refused = any(name.endswith(" 429") for name in report["counts"])
    refused = report["full_queue"]["refused_ms"]["client"]["most"]
    freed = report["departures"]["freed_s"]
    flat = None if minutes < JUDGED_MINUTES else growth <= MOST_GROWTH
    return [
        none("answers, sources and streams that are another client's, or of texts that are gone", "crossed"),
        none("acknowledged documents that were lost, also by kills", "lost"),
        none("anything else that must not happen", "other"),
        Verdict(
            f"resident memory after {report['warm_up_minutes']:g} minutes of warm-up",
            f"grows by at most {MOST_GROWTH:.0%}",
            f"{growth:+.1%} ({report['rss_slope_mib_per_minute']:+.2f} MiB a minute)",
            flat,
        ),
        Verdict(
            "… of it what is not mapped from files",
            f"grows by at most {MOST_GROWTH:.0%}",
            f"{own:+.1%} ({report['own_slope_mib_per_minute']:+.2f} MiB a minute)",
            None if minutes < JUDGED_MINUTES else own <= MOST_GROWTH,
        ),
        Verdict(
            "a full queue answers 429", f"within {MOST_REFUSAL_MS:g} ms", f"{refused:.1f} ms at most",
            refused <= MOST_REFUSAL_MS,
        ),
        Verdict(
            "… in the long run, by the server's clock", f"within {MOST_REFUSAL_MS:g} ms",
            f"{under_load['most']:.1f} ms at most, 99 % within {under_load['p99']:.1f} ms" if under_load
            else "refused, but not in its log" if was_refused else "none was refused",
            under_load["most"] <= MOST_REFUSAL_MS if under_load else not was_refused,
        ),
        Verdict(
            f"places of {DEPARTING} clients that leave in the middle of their streams",
            f"free within {MOST_FREED_S:g} s", f"after {freed:.2f} s", freed <= MOST_FREED_S,
        ),
    ]  # fmt: skip


def kind_of(problem: str) -> str:
    """What a problem is about: documents that were ``lost``, answers that were ``crossed``, or something ``other``."""
    if any(words in problem for words in LOST):
        return "lost"
    return "crossed" if any(words in problem for words in CROSSED) else "other"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=30, help="of the long run; the moments take two or three more")
    parser.add_argument("--memories", type=int, default=4)
    parser.add_argument("--max-waiting", type=int, default=16, help="questions that may wait; fewer than clients: 429s")
    parser.add_argument(
        "--kills", type=int, default=5, help="times that the server is killed while documents are added"
    )
    parser.add_argument("--model", default="msa-tiny", help="one that copies values: others answer wrongly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where memories and logs are kept; default: thrown away")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main() -> int:
    """Run, check and report."""
    arguments, tally = parsed(), Tally()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SystemExit(f"{folder} is not empty; name a new folder")
        measured = {**long_run(folder, arguments, tally), **moments(folder, arguments, tally)}
    judged = verdicts(measured, arguments.minutes, dict(tally.problems))
    report = {
        "what": "many clients at msa serve: consistency, memory, latency",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        **made_by(),
        "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "folder"},
        "verdicts": [asdict(verdict) for verdict in judged],
        "problems": dict(tally.problems),
        "examples": tally.examples,
        **measured,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if any(verdict.met is False for verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
