"""A server in a process of its own, with as many as may run: who leaves frees a place, and nothing is kept."""

import re

import psutil
import pytest
from serving_helpers import ANSWER, DOCUMENTS, QUESTION, process, until
from test_connections import arrived, asking, gauge, is_idle
from test_fuzz import JSON, RAW, TARGETS, VALUES, with_value

CLIENTS = 100
ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
MOST_GROWTH = 4 << 20
SHOWN = re.compile(rb'"content":"[^"]')


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The process, and a client of it."""
    with process(tmp_path_factory.mktemp("load") / "root", max_concurrent=CLIENTS) as (server, http):
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        yield server, http


def test_hostile_bodies_take_no_memory(served):
    """First, for later the room that answers had is kept for the next ones."""
    server, http = served
    bodies = [*map(with_value, VALUES), *RAW][::3]

    def everything():
        for body in bodies:
            for method, url in TARGETS:
                assert http.request(method, url, content=body, headers=JSON).status_code < 500
        return psutil.Process(server.pid).memory_info().rss

    first, second, third = [everything() for _ in range(3)]
    assert third - second < MOST_GROWTH, [size >> 20 for size in (first, second, third)]


def test_a_hundred_clients_in_the_middle_of_their_streams_leave(served):
    _, http = served
    connections = [asking(http) for _ in range(CLIENTS)]
    until(lambda: gauge(http, "num_requests_running") == CLIENTS, seconds=120)
    until(lambda: all(SHOWN.search(arrived(connection)) for connection in connections), seconds=120)
    assert gauge(http, "num_requests_running") == CLIENTS, "all of them still write"
    for connection in connections:
        connection.close()
    until(lambda: is_idle(http), seconds=5)
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == ANSWER
