"""What ``serving_soak.py`` does beside the long run: a full queue, a hundred clients that leave, kills and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from soak_client import Tally, question_of, text_of
from soak_server import Server, gauges

MEMORY = "moments"
WAIT_S = 240.0
REFUSALS = 200
WRITERS = 4
UPLOADED = 400  # documents of the upload that is under way when the server is killed


def endless(model: str, stream: bool = True) -> dict[str, Any]:
    """A question that msa-tiny cannot answer, and so answers for as long as it may."""
    return {
        "model": f"{model}@{MEMORY}", "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3000, "stream": stream,
    }  # fmt: skip


class Held:
    """Streams that are held open: how many have begun to say something, and how many have ended by themselves."""

    def __init__(self, url: str, number: int, body: dict[str, Any]) -> None:
        self.begun, self.ended = 0, 0
        self._http = httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=httpx.Limits(max_connections=None))
        self._tasks = [asyncio.create_task(self._hold(body)) for _ in range(number)]

    async def _hold(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.HTTPError):
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                spoken = False
                async for line in response.aiter_lines():
                    if not spoken and line.startswith("data: {") and _text_of(line):
                        spoken = True
                        self.begun += 1
        self.ended += 1

    async def leave(self) -> None:
        """All go away at the same time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()


def _text_of(line: str) -> str:
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{"delta": {}}]
    return str(choices[0]["delta"].get("content") or "")


async def _until(http: httpx.AsyncClient, running: int, waiting: int) -> float:
    """Seconds until as many questions run and wait; gives up after some minutes.

    Raises:
        TimeoutError: they never do.
    """
    started = time.monotonic()
    while gauges((await http.get("/metrics")).text) != {"running": running, "waiting": waiting}:
        if time.monotonic() - started > WAIT_S:
            raise TimeoutError(f"{running} running and {waiting} waiting were never seen")
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def full_queue(server: Server, model: str, concurrent: int, waiting: int, tally: Tally) -> dict[str, Any]:
    """Fill all places and the queue, ask for more, then let all go away.

    Returns:
        ``refused_s``: seconds to each 429, as a client sees them, and ``freed_s``: until no place was taken any more.
    """
    refused: list[float] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
        held = Held(server.url, concurrent + waiting, endless(model))
        await _until(http, concurrent, waiting)
        for number in range(REFUSALS):
            started = time.monotonic()
            response = await http.post("/v1/chat/completions", json=endless(model, number % 2 == 0))
            refused.append(time.monotonic() - started)
            if response.status_code != 429 or not response.headers.get("retry-after", "").isdigit():
                tally.problem("a full queue did not refuse", f"{response.status_code}: {response.text}")
        if held.ended:
            tally.problem("a stream that was to be held ended", held.ended)
        started = time.monotonic()
        await held.leave()
        await _until(http, 0, 0)
        freed = time.monotonic() - started
    return {"refused_s": refused, "freed_s": freed}


async def departures(server: Server, model: str, number: int, tally: Tally) -> dict[str, Any]:
    """Clients, each in the middle of its stream, that go away at the same moment; then one question.

    Returns:
        ``freed_s``: seconds until no place was taken any more; ``next_answer_s``: of the question after that.
    """
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
        held = Held(server.url, number, endless(model))
        started = time.monotonic()
        while held.begun < number and time.monotonic() - started < WAIT_S:
            await asyncio.sleep(0.01)
        if held.begun < number or held.ended:
            tally.problem("not all were in the middle of a stream", f"{held.begun} begun, {held.ended} ended")
        began_s, started = time.monotonic() - started, time.monotonic()
        await held.leave()
        await _until(http, 0, 0)
        freed, started = time.monotonic() - started, time.monotonic()
        answer = await http.post("/v1/chat/completions", json={**endless(model, False), "max_tokens": 8})
        if answer.status_code != 200:
            tally.problem("no answer after all had left", answer.text)
        return {"clients": number, "began_s": began_s, "freed_s": freed, "next_answer_s": time.monotonic() - started}


class Ingestion:
    """Threads that add documents one after another, and one upload in the background, until the server is gone.

    Attributes:
        acknowledged: id → text of the documents whose addition was answered 200.
        operation: address of the upload's operation, once it was answered 202.
    """

    def __init__(self, url: str, turn: int) -> None:
        self.acknowledged: dict[str, str] = {}
        self.operation = ""
        self.uploaded = {f"up-{turn}-{n}": text_of(f"upload-{turn}-{n}", str(10**6 + n)) for n in range(UPLOADED)}
        self._url, self._turn = url, turn
        self._threads = [threading.Thread(target=self._add, args=(number,)) for number in range(WRITERS)]
        self._threads.append(threading.Thread(target=self._upload))
        for thread in self._threads:
            thread.start()

    def _add(self, number: int) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=self._url, timeout=WAIT_S) as http:
            for count in itertools.count():
                key = f"{self._turn}-{number}-{count}"
                body = {"id": f"kill-{key}", "text": text_of(f"kept-{key}", str(10**6 + count))}
                response = http.post(
                    f"/v1/memories/{MEMORY}/documents", json=body, headers={"idempotency-key": f"key-{key}"}
                )
                if response.status_code == 200:
                    self.acknowledged[body["id"]] = body["text"]

    def _upload(self) -> None:
        lines = "".join(json.dumps({"id": doc_id, "text": text}) + "\n" for doc_id, text in self.uploaded.items())
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=self._url, timeout=WAIT_S) as http:
            response = http.post(
                f"/v1/memories/{MEMORY}/documents",
                content=lines.encode(),
                headers={"content-type": "application/x-ndjson"},
                params={"wait": False},
            )
            if response.status_code == 202:
                self.operation = response.headers["location"]

    def join(self) -> None:
        """Wait until all have noticed that the server is gone."""
        for thread in self._threads:
            thread.join(WAIT_S)


def kills(root: Path, model: str, times: int, seed: int, tally: Tally) -> dict[str, Any]:
    """Kill the server while documents are added, start it again, and look for what it had acknowledged.

    Returns:
        How many documents were acknowledged before each kill, how their uploads ended, and seconds to start again.
    """
    draw = random.Random(seed)
    acknowledged: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    server = Server(root, model)
    httpx.put(f"{server.url}/v1/memories/{MEMORY}", json={}, timeout=WAIT_S).raise_for_status()
    for turn in range(times):
        with server:
            ingestion = Ingestion(server.url, turn)
            started = time.monotonic()
            while not ingestion.operation and time.monotonic() - started < WAIT_S:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.1, 2.0))
            server.kill()
        ingestion.join()
        acknowledged |= ingestion.acknowledged
        server = Server(root, model)
        ended = _operation_ended(server, ingestion, tally)
        if ended == "succeeded":
            acknowledged |= ingestion.uploaded
        _check_all_there(server.url, acknowledged, tally)
        turns.append(
            {"acknowledged": len(ingestion.acknowledged), "upload": ended, "started_s": round(server.started_s, 2)}
        )
    with server:
        _check_retries(server.url, ingestion, tally)
        if code := server.stop():
            tally.problem("exit code of the server after a kill", code)
        for complaint in server.complaints():
            tally.problem("errors in the server's log", complaint)
    return {"times": times, "documents": len(acknowledged), "turns": turns}


def _operation_ended(server: Server, ingestion: Ingestion, tally: Tally) -> str:
    """How an upload that was accepted before a kill has ended after it."""
    if not ingestion.operation:
        tally.problem("an upload was never accepted")
        return "never accepted"
    started = time.monotonic()
    while time.monotonic() - started < WAIT_S:
        found = httpx.get(f"{server.url}{ingestion.operation}", timeout=WAIT_S)
        status = str(found.json().get("status", found.text)) if found.status_code == 200 else found.text
        if status in ("succeeded", "failed"):
            return status
        if found.status_code != 200:
            break
        time.sleep(0.1)
    tally.problem("an operation that was accepted never ended", found.text)
    return "never ended"


def _listed(url: str) -> Iterator[dict[str, Any]]:
    """All documents of the memory."""
    page: dict[str, Any] = {"limit": 1000}
    while True:
        found = httpx.get(f"{url}/v1/memories/{MEMORY}/documents", params=page, timeout=WAIT_S).json()["data"]
        yield from found
        if len(found) < page["limit"]:
            return
        page["after"] = found[-1]["id"]


def _check_all_there(url: str, acknowledged: dict[str, str], tally: Tally) -> None:
    found = {document["id"]: document["text"] for document in _listed(url)}
    for doc_id, text in acknowledged.items():
        if found.get(doc_id) != text:
            kind = "another text" if doc_id in found else "lost"
            tally.problem(f"acknowledged document {kind} after a kill", doc_id)
    if not httpx.post(f"{url}/v1/memories/{MEMORY}/verify", timeout=WAIT_S).json()["ok"]:
        tally.problem("damaged memory after a kill")


def _check_retries(url: str, ingestion: Ingestion, tally: Tally) -> None:
    """What was acknowledged before the kill is answered the same again, and a search finds it."""
    for doc_id, text in [*ingestion.acknowledged.items()][-3:]:
        key = doc_id.removeprefix("kill-")
        again = httpx.post(
            f"{url}/v1/memories/{MEMORY}/documents",
            json={"id": doc_id, "text": text},
            headers={"idempotency-key": f"key-{key}"},
            timeout=WAIT_S,
        )
        if again.status_code != 200 or again.headers.get("idempotency-replayed") != "true":
            tally.problem("an idempotency key was forgotten by a kill", again.text)
        query = {"query": question_of(f"kept-{key}"), "top_k": 3}
        hits = httpx.post(f"{url}/v1/memories/{MEMORY}/search", json=query, timeout=WAIT_S)
        if hits.status_code != 200 or not hits.json()["data"]:
            tally.problem("no search after a kill", hits.text)
