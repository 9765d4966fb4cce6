"""Many connections, and many that go away: in a process of its own, over real sockets."""

import json
import re
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import ANSWER, DOCUMENTS, ENDLESS, QUESTION, error_of, process, until

from msa.serving.job import Lane
from msa.serving.server import allow_open_files

CLIENTS = 100
ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
SLOW = {"model": "msa-tiny@known", **ENDLESS}
UPLOAD = (
    b"POST /v1/memories/known/documents HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/x-ndjson\r\n"
    b"content-length: 1000\r\nconnection: close\r\n\r\n{"
)


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A client of a server that lets half of the clients wait."""
    with process(tmp_path_factory.mktemp("many") / "root", max_concurrent=1, max_waiting=CLIENTS // 2) as (_, http):
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        yield http


def gauge(http, name):
    (value,) = re.findall(rf"^msa:{name}\{{.*\}} (.*)$", http.get("/metrics").text, re.MULTILINE)
    return float(value)


def is_idle(http):
    return gauge(http, "num_requests_running") == 0 and gauge(http, "num_requests_waiting") == 0


def connect(http):
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=30)


def asking(http, stream=True):
    """A connection on which a question that takes long was asked."""
    connection = connect(http)
    body = json.dumps({**SLOW, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    return connection


def answers(http):
    asked = http.post("/v1/chat/completions", json=ASK)
    assert asked.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("stream", [True, False])
def test_a_hundred_clients_that_go_away(http, stream):
    connections = [asking(http, stream) for _ in range(CLIENTS)]
    until(lambda: gauge(http, "num_requests_running") == 1)
    until(lambda: gauge(http, "num_requests_waiting") == CLIENTS // 2)
    too_many = CLIENTS - CLIENTS // 2 - 1
    until(lambda: sum(arrived(each).startswith(b"HTTP/1.1 429 ") for each in connections) == too_many)
    for connection in connections:
        connection.close()
    until(lambda: is_idle(http), seconds=10)
    answers(http)


def arrived(connection):
    """What has come so far; it can be read again."""
    connection.setblocking(False)
    try:
        return connection.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def test_one_after_the_other(http):
    """Each sees its answer begin and goes: were the places not freed, the last would wait for minutes."""
    for _ in range(30):
        with asking(http) as connection:
            until(lambda connection=connection: b'"role":"assistant"' in arrived(connection), seconds=10)
    until(lambda: is_idle(http), seconds=10)
    answers(http)


def test_a_full_queue_refuses_everybody_at_once(http):
    held = [asking(http) for _ in range(CLIENTS // 2 + 1)]
    until(lambda: gauge(http, "num_requests_waiting") == CLIENTS // 2)
    with ThreadPoolExecutor(8) as pool:
        refused = [
            *pool.map(
                lambda stream: http.post("/v1/chat/completions", json={**ASK, "stream": stream}), [True, False] * 8
            )
        ]
    for response in refused:
        error_of(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        assert int(response.headers["retry-after-ms"]) >= 1000
    unread = http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    error_of(unread, 429, "queue_full")  # no work is done for what is refused
    assert gauge(http, "num_requests_waiting") == CLIENTS // 2, "nobody lost a place"
    for connection in held:
        connection.close()
    until(lambda: is_idle(http), seconds=10)
    answers(http)


def test_uploads_on_their_way_are_counted(start, tmp_path):
    """Each may take gigabytes of the disk before it is an operation."""
    with start(tmp_path, max_operations=2) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        uploads = [connect(http), connect(http)]
        for upload in uploads:
            upload.sendall(UPLOAD)
        spool = server.services.state_folder / "spool"
        until(lambda: len([*spool.iterdir()]) == 2)
        headers = {"content-type": "application/x-ndjson"}
        more = {"content": b'{"text": "x"}', "headers": headers}
        error_of(http.post("/v1/memories/known/documents", **more), 429, "queue_full")
        for upload in uploads:
            upload.close()
        until(lambda: not [*spool.iterdir()])
        assert http.post("/v1/memories/known/documents", **more).status_code == 200


LARGE = (
    b"%s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n{"
)
CHANGES = ("POST {}", "POST {}?wait=true", "PUT {}/a", "PATCH {}/a", "POST {}/delete")


def half_sent(http, change, length):
    connection = connect(http)
    connection.sendall(LARGE % (change.format("/v1/memories/known/documents").encode(), length))
    return connection


def test_large_bodies_on_their_way_are_counted(start, tmp_path):
    """Each is kept in memory, up to 32 MiB of it."""
    with start(tmp_path, max_large_bodies=2) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        held = [half_sent(http, change, 2 << 20) for change in CHANGES[1:3]]
        until(lambda: not server.services.large_bodies._value)
        for change in CHANGES:
            with half_sent(http, change, 2 << 20) as refused:
                assert refused.recv(100).startswith(b"HTTP/1.1 429 "), change
        documents = "/v1/memories/known/documents"
        unbounded = http.post(documents, content=iter([b"{}"]), headers={"content-type": "application/json"})
        assert int(error_of(unbounded, 429, "queue_full") and unbounded.headers["retry-after"]) >= 1
        assert http.post(documents, json={"id": "a", "text": "A small one."}).status_code == 200
        for connection in held:
            connection.close()
        until(lambda: server.services.large_bodies._value == 2)
        assert http.put(f"{documents}/a", json={"text": "x", "metadata": {"m": "y" * (2 << 20)}}).status_code == 413
        assert server.services.large_bodies._value == 2


def test_changes_that_cannot_wait_are_refused_before_their_bodies_are_read(start, tmp_path):
    with start(tmp_path, max_waiting_writes=1, max_operations=1) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        held = threading.Event()
        scheduler = server.services.scheduler
        try:
            for _ in range(2):
                scheduler.submit(lambda job: held.wait(30), Lane.WRITE)
                until(lambda: scheduler.running(Lane.WRITE) == 1)
            for change in CHANGES:
                with half_sent(http, change, 1000) as refused:
                    assert refused.recv(100).startswith(b"HTTP/1.1 429 "), change
            # what becomes an operation needs another kind of room
            lines = {"content": b'{"text": "x"}', "headers": {"content-type": "application/x-ndjson"}}
            http.post("/v1/memories/known/documents", **lines, params={"wait": False})
            for change, length in ((CHANGES[0], 300_000), (f"{CHANGES[0]}?wait=false", 100)):
                with half_sent(http, change, length) as refused:
                    assert refused.recv(100).startswith(b"HTTP/1.1 429 "), change
        finally:
            held.set()


def test_more_connections_than_may_be_open(start, tmp_path):
    """Each takes a file of the process; without files nothing can be read or written any more."""
    with start(tmp_path, max_connections=3) as server:
        address = server.server.servers[0].sockets[0].getsockname()
        held = [socket.create_connection(address) for _ in range(3)]
        until(lambda: len(server.server.server_state.connections) == 3)
        with server.http() as http:
            refused = http.get("/health")
            error_of(refused, 503, "too_many_connections")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["x-request-id"].startswith("req_")
            held.pop().close()
            until(lambda: len(server.server.server_state.connections) == 2)
            assert http.get("/health").status_code == 200
        for connection in held:
            connection.close()


def test_what_is_no_request_has_an_id_too(start, tmp_path):
    with start(tmp_path) as server, server.http() as http, connect(http) as connection:
        connection.sendall(b"no request\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1000), b"")).decode()
        assert answer.startswith("HTTP/1.1 400 ")
        assert '"code": "invalid_http"' in answer
        assert len(re.findall(r"^x-request-id: req_[0-9a-f]{32}\r$", answer, re.MULTILINE)) == 1


def test_as_many_files_may_be_open_as_the_system_allows():
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before, 256), most))
    try:
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
