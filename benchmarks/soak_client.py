"""One client of ``serving_soak.py``: what it does, and what it must be told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import httpx

from msa.training.data.words import needle_words

WEIGHTS = {"ask": 30, "stream": 25, "leave": 5, "search": 12, "add": 12, "update": 8, "delete": 7, "look": 1}
MOST_DOCUMENTS = 8  # of one client
ADJECTIVES, NOUNS = needle_words(held_out=False)
FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


def text_of(key: str, value: str) -> str:
    """A document."""
    return f"{FILLER[len(key) % 5]} One of the special magic numbers for {key} is: {value}. {FILLER[int(value) % 5]}"


def question_of(key: str) -> str:
    """What its value is."""
    return f"What is the special magic number for {key} mentioned in the provided text?"


class Tally:
    """What all clients have seen."""

    def __init__(self) -> None:
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.owner: dict[str, str] = {}  # value → id of the document that has or had it
        self.answer_ids: set[str] = set()
        self._keys: set[str] = set()

    def new_key(self, draw: random.Random) -> str:
        """A key that no document has or had."""
        while (key := f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}") in self._keys:
            pass
        self._keys.add(key)
        return key

    def problem(self, kind: str, example: Any = "") -> None:
        """Something that must not happen."""
        self.problems[kind] += 1
        self.examples.setdefault(kind, str(example)[:500])


class Client:
    """One user: owns some documents of one memory, and checks all that it is told about them.

    Attributes:
        live: id → key and value of the documents that are acknowledged to be there.
        gone: ids that are acknowledged to be deleted.
        unsure: ids whose last change was not answered; nothing is said of them.
    """

    def __init__(self, number: int, memory: str, url: str, tally: Tally, seed: int) -> None:
        self.memory, self.model = memory, f"@{memory}"
        self.live: dict[str, tuple[str, str]] = {}
        self.gone: set[str] = set()
        self.unsure: set[str] = set()
        self.old_values: set[str] = set()
        self._number, self._tally, self._mine = number, tally, {"client": number}
        self._random = random.Random(seed * 1000 + number)
        self._http = httpx.AsyncClient(base_url=url, timeout=120)
        self._added = 0

    async def run(self, model: str, seconds: float) -> None:
        """Work until the time is up; nothing that goes wrong ends the others' work."""
        self.model, until = f"{model}@{self.memory}", time.monotonic() + seconds
        async with self._http:
            await self._do("add")
            while time.monotonic() < until:
                (name,) = self._random.choices([*WEIGHTS], [*WEIGHTS.values()])
                if name in ("add", "look") or self.live:
                    await self._do(name)

    async def _do(self, name: str) -> None:
        try:
            await getattr(self, name)()
        # an answer of any other shape than that of the API
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._tally.problem("an answer that cannot be read", f"{name}: {error!r}")

    async def _send(self, kind: str, method: str, url: str, body: Any = None, **options: Any) -> httpx.Response | None:
        """One request, again after a 429; None: it failed, which was noted."""
        while True:
            request_id = uuid.uuid4().hex
            headers = {"x-request-id": request_id, **options.get("headers", {})}
            started = time.monotonic()
            try:
                response = await self._http.request(method, url, json=body, headers=headers)
            except httpx.HTTPError as error:
                self._tally.problem("no answer", f"{kind}: {error!r}")
                await asyncio.sleep(1)  # where nobody answers any more, asking at once is of no use
                return None
            self._note(kind, response, time.monotonic() - started, request_id)
            if response.status_code == 429:
                await self._wait(response)
                continue
            if response.status_code >= 400:
                self._tally.problem(f"status {response.status_code}", f"{kind}: {response.text}")
                return None
            return response

    def _note(self, kind: str, response: httpx.Response, seconds: float, request_id: str) -> None:
        self._tally.counts[f"{kind} {response.status_code}"] += 1
        self._tally.seconds["refused" if response.status_code == 429 else kind].append(seconds)
        if response.headers.get("x-request-id") != request_id:
            self._tally.problem("answer of another request", response.headers.get("x-request-id"))

    async def _wait(self, refused: httpx.Response) -> None:
        if not refused.headers.get("retry-after", "").isdigit():
            self._tally.problem("429 without Retry-After", refused.headers)
        await asyncio.sleep(int(refused.headers.get("retry-after-ms", 1000)) / 1000 * self._random.uniform(0.5, 1.5))

    def _url(self, rest: str) -> str:
        return f"/v1/memories/{self.memory}/{rest}"

    def _new_value(self, doc_id: str) -> str:
        """A value that no document has or had."""
        while (value := str(self._random.randrange(10**6, 10**7))) in self._tally.owner:
            pass
        self._tally.owner[value] = doc_id
        return value

    async def add(self) -> None:
        """One to three documents; some requests are sent again with their idempotency key."""
        if len(self.live) >= MOST_DOCUMENTS:
            return
        new: dict[str, tuple[str, str]] = {}
        for _ in range(min(self._random.randint(1, 3), MOST_DOCUMENTS - len(self.live))):
            self._added += 1
            doc_id = f"{self.memory}/c{self._number}-{self._added}"
            new[doc_id] = (self._tally.new_key(self._random), self._new_value(doc_id))
        documents = [{"id": doc_id, "text": text_of(*pair), "metadata": self._mine} for doc_id, pair in new.items()]
        headers = {"idempotency-key": uuid.uuid4().hex}
        response = await self._send("add", "POST", self._url("documents"), {"documents": documents}, headers=headers)
        if response is None:
            self.unsure |= set(new)
            return
        if response.json()["ids"] != [*new]:
            self._tally.problem("ids of others", response.text)
        self.live |= new
        if self._random.random() < 0.1:
            again = await self._send("add", "POST", self._url("documents"), {"documents": documents}, headers=headers)
            if again is not None and again.json() != response.json():
                self._tally.problem("another answer to an idempotency key", again.text)

    async def update(self) -> None:
        """A document gets another value."""
        doc_id = self._random.choice([*self.live])
        key, before = self.live[doc_id]
        after = self._new_value(doc_id)
        body = {"text": text_of(key, after), "metadata": self._mine}
        response = await self._send("update", "PUT", self._url(f"documents/{doc_id}"), body)
        if response is None:
            self.unsure.add(doc_id)
            del self.live[doc_id]
        else:
            self.live[doc_id] = (key, after)
            self.old_values.add(before)

    async def delete(self) -> None:
        """A document goes."""
        doc_id = self._random.choice([*self.live])
        _, value = self.live.pop(doc_id)
        if await self._send("delete", "DELETE", self._url(f"documents/{doc_id}")) is None:
            self.unsure.add(doc_id)
        else:
            self.gone.add(doc_id)
            self.old_values.add(value)

    async def look(self) -> None:
        """What operators look at."""
        await self._send("look", "GET", self._url("documents?limit=5&text=false"))
        await self._send("look", "GET", "/metrics")

    async def search(self) -> None:
        """A search must not find what is gone, and should find what is asked for."""
        doc_id = self._random.choice([*self.live])
        query = {"query": question_of(self.live[doc_id][0]), "top_k": 5, **self._filter()}
        response = await self._send("search", "POST", self._url("search"), query)
        if response is not None:
            found = self._check_sources(response.json()["data"], "where" in query)
            self._tally.counts["search found it" if doc_id in found else "search missed it"] += 1

    async def ask(self) -> None:
        """A question, answered whole."""
        doc_id = self._random.choice([*self.live])
        question = self._question(doc_id)
        response = await self._send("ask", "POST", "/v1/chat/completions", question)
        if response is not None:
            body = response.json()
            self._check_answer(doc_id, body["choices"][0]["message"]["content"], body, "where" in question)

    def _question(self, doc_id: str, **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question_of(self.live[doc_id][0])}]
        return {"model": self.model, "messages": messages, "max_tokens": 32, **self._filter(), **options}

    def _filter(self) -> dict[str, Any]:
        """Now and then: my documents alone."""
        return {"where": self._mine} if self._random.random() < 0.5 else {}

    @contextlib.asynccontextmanager
    async def _stream(self, body: dict[str, Any], kind: str) -> AsyncIterator[httpx.Response | None]:
        request_id, started = uuid.uuid4().hex, time.monotonic()
        headers = {"x-request-id": request_id}
        async with self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code >= 400:
                await response.aread()
            self._note(kind, response, time.monotonic() - started, request_id)
            if response.status_code == 429:
                await self._wait(response)
            elif response.status_code >= 400:
                self._tally.problem(f"status {response.status_code}", f"{kind}: {response.text}")
            yield response if response.status_code == 200 else None

    async def stream(self) -> None:
        """A question, answered piece by piece."""
        doc_id, started, events = self._random.choice([*self.live]), time.monotonic(), []
        question = self._question(doc_id, stream=True)
        try:
            async with self._stream(question, "stream begins") as response:
                if response is None:
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        events.append(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self._tally.problem("no answer", f"stream: {error!r}")
            return
        self._tally.seconds["stream"].append(time.monotonic() - started)
        if not events or events[-1] != "[DONE]" or '"error"' in events[-2][:10]:
            self._tally.problem("broken stream", events[-2:])
            return
        chunks = [json.loads(event) for event in events[:-1]]
        if len({(chunk["id"], chunk["model"]) for chunk in chunks}) != 1:
            self._tally.problem("stream of several answers", {chunk["id"] for chunk in chunks})
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        self._check_answer(doc_id, said, chunks[-1], "where" in question)

    async def leave(self) -> None:
        """A client that goes away in the middle of a long answer."""
        with contextlib.suppress(httpx.HTTPError):
            question = self._question(self._random.choice([*self.live]), stream=True, max_tokens=2000)
            async with self._stream(question, "leave") as response:
                if response is not None:
                    async for _ in response.aiter_bytes():
                        return

    def _check_sources(self, sources: list[dict[str, Any]], filtered: bool) -> set[str]:
        """None of another memory, none that was deleted, mine as they are now; mine alone if that was asked for."""
        for source in sources:
            doc_id = source["id"]
            if not doc_id.startswith(f"{self.memory}/"):
                self._tally.problem("source of another memory", source)
            if filtered and source["metadata"] != self._mine:
                self._tally.problem("source of another client", source)
            if doc_id in self.gone:
                self._tally.problem("source that was deleted", source)
            if doc_id in self.live and source["text"] != text_of(*self.live[doc_id]):
                self._tally.problem("source that was replaced", source)
        return {source["id"] for source in sources}

    def _check_answer(self, doc_id: str, said: str, body: dict[str, Any], filtered: bool) -> None:
        """An answer is mine: its ids, its sources, its value."""
        if body["id"] in self._tally.answer_ids or body["model"] != self.model or body["msa"]["memory"] != self.memory:
            self._tally.problem("answer to another question", body)
        self._tally.answer_ids.add(body["id"])
        found = self._check_sources(body["sources"], filtered)
        said = said.strip()
        owner = self._tally.owner.get(said)
        if said in self.old_values:
            self._tally.problem("value that was replaced or deleted", body)
        elif owner is not None and owner not in found:
            self._tally.problem("value of a document that was not read", body)
        if said == self.live[doc_id][1]:
            outcome = "right"
        else:
            outcome = "of another document that was read" if owner else "no known value"
        self._tally.counts[f"answer {outcome}"] += 1
