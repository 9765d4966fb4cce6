"""Questions that the server answers side by side: each gets its own answer, and one ends when its client goes away."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import ANSWER, ENDLESS, QUESTION, error_of, until
from test_connections import asking

from msa.generation.decoding import Decoding
from msa.serving.job import Lane

ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
SLOW = {"model": "msa-tiny@known", **ENDLESS}


@pytest.fixture
def slow(server):
    """A stream whose answer takes long; open it, and close it to go away."""

    def ask():
        with server.http() as http, http.stream("POST", "/v1/chat/completions", json={**SLOW, "stream": True}) as reply:
            for _ in reply.iter_raw():
                if gone.is_set():
                    return

    gone = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: server.services.scheduler.running(Lane.ASK) == 1)
    yield gone
    gone.set()
    thread.join(30)
    until(lambda: server.services.scheduler.running(Lane.ASK) == 0)


def test_short_questions_are_answered_while_a_long_one_runs(server, http, slow):
    with ThreadPoolExecutor(4) as clients:
        replies = [clients.submit(http.post, "/v1/chat/completions", json=ASK) for _ in range(4)]
        texts = [reply.result(60).json()["choices"][0]["message"]["content"] for reply in replies]
    assert texts == [ANSWER] * 4
    assert server.services.scheduler.running(Lane.ASK) == 1, "the long one still runs"
    found = http.post("/v1/memories/known/search", json={"query": QUESTION}).json()["data"]
    assert found[0]["id"] == "notes/ages.md"
    assert server.services.scheduler.running(Lane.ASK) == 1


def test_a_client_that_goes_away_leaves_the_others_alone(server, http, slow):
    with server.openai() as client:
        pieces = []
        for chunk in client.chat.completions.create(**ASK, stream=True):
            slow.set()
            pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == ANSWER
    until(lambda: server.services.scheduler.running(Lane.ASK) == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_memory_at_once(server, http, stream):
    """Without the collector, which counts objects and not their bytes; the last ones too, after which nobody asks."""
    gc.collect()
    gc.disable()
    others = decodings()  # what other tests of this process keep alive
    try:
        connections = [asking(http, stream) for _ in range(4)]
        until(lambda: decodings() >= others + 4)
        for connection in connections:
            connection.close()
        until(lambda: server.services.scheduler.running(Lane.ASK) == 0)
        until(lambda: decodings() <= others, seconds=10)
    finally:
        gc.enable()


def decodings():
    return sum(type(thing) is Decoding for thing in gc.get_objects())


def test_a_question_that_cannot_be_answered_leaves_the_others_alone(server, http, slow):
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 6000}]}
    error_of(http.post("/v1/chat/completions", json=long), 400, "context_length_exceeded")
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == ANSWER
    assert server.services.scheduler.running(Lane.ASK) == 1


def test_a_write_comes_between_questions(server, http, memory):
    with ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(http.post, "/v1/chat/completions", json=ASK) for _ in range(4)]
        added = clients.submit(http.post, f"{memory}/documents", json={"id": "a", "text": "The grass is green."})
        assert added.result(60).status_code == 200
        assert [reply.result(60).status_code for reply in asked] == [200] * 4


def test_deadlines_of_questions_side_by_side(start, tmp_path):
    with start(tmp_path, request_timeout_s=1.0) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"text": "The grass is green."})
        with ThreadPoolExecutor(3) as clients:
            for reply in [clients.submit(http.post, "/v1/chat/completions", json=SLOW) for _ in range(3)]:
                error_of(reply.result(60), 504, "deadline_exceeded")
        until(lambda: server.services.scheduler.running(Lane.ASK) == 0, seconds=5)
