"""How much of the memory was read: in every answer, and in Prometheus."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import QUESTION

CHAT = "/v1/chat/completions"
ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture
def counted(http):
    """What Prometheus is told of memory ``known``."""

    def read():
        text = http.get("/metrics").text
        assert "# TYPE msa:memory_fetched_bytes_total counter" in text
        values = re.findall(r'^msa:memory_fetched_bytes_total\{memory="known"\} (.*)$', text, re.MULTILINE)
        return float(values[0]) if values else 0.0

    return read


def expected(server, rounds):
    """Keys and values of every chunk that a layer selected, of all rounds."""
    with server.services.memories.lease("known") as memory:
        view, spec = memory._view, memory.bank.spec
        chunks = dict(zip(view.numbers.tolist(), view.chunk_offsets.diff().tolist(), strict=True))
    selected = [number for found in rounds for numbers in found["selected"].values() for number in numbers]
    row = spec.num_key_value_heads * spec.head_dim * spec.torch_dtype.itemsize
    return sum(2 * chunks[number] * row for number in selected)


def test_an_answer_says_what_it_read(server, http, counted):
    before = counted()
    whole = http.post(CHAT, json=ASK).json()
    own = whole["msa"]["fetched_bytes"]
    assert own == expected(server, whole["msa"]["rounds"]) > 0
    assert counted() - before == own
    lines = http.post(CHAT, json={**ASK, "stream": True}).text.split("\n\n")
    last = json.loads(lines[-3].removeprefix("data: "))
    assert last["msa"]["fetched_bytes"] == own
    refused = http.post(CHAT, json={**ASK, "where": {"lang": "none"}}).json()
    assert refused["error"]["code"] == "no_documents"
    assert counted() - before == 2 * own


def test_answers_side_by_side_say_each_its_own(http, counted):
    alone = http.post(CHAT, json=ASK).json()["msa"]["fetched_bytes"]
    few = {**ASK, "where": {"title": "Ages"}}
    other = http.post(CHAT, json=few).json()["msa"]["fetched_bytes"]
    assert 0 < other < alone, "two that can be told apart"
    before = counted()
    with ThreadPoolExecutor(6) as clients:
        bodies = [ASK, few] * 3
        found = [
            reply.json()["msa"]["fetched_bytes"] for reply in clients.map(lambda b: http.post(CHAT, json=b), bodies)
        ]
    assert found == [alone, other] * 3
    assert counted() - before == sum(found)
