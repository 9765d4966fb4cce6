"""Overload, impatience and hostility: the server answers, and goes on answering."""

import contextlib
import json
import logging
import re
import socket
import threading
import time

import httpx
import openai
import pytest
from pdf_files import slow_pdf
from serving_helpers import ANSWER, DOCUMENTS, ENDLESS, QUESTION, error_of, until

from msa.serving import ServingError
from msa.serving.job import Lane, QueueFullError

ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
SLOW = {"model": "msa-tiny@known", **ENDLESS}


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    """One that has room for one question that runs and one that waits."""
    limits = {
        "max_concurrent": 1, "max_waiting": 1, "max_waiting_writes": 1, "max_request_bytes": 20_000,
        "max_json_bytes": 50_000, "max_upload_bytes": 100_000, "max_document_bytes": 30_000, "body_timeout_s": 1.0,
        "header_timeout_s": 1.0, "max_operations": 2, "pdf_timeout_s": 2.0,
    }  # fmt: skip
    with start(tmp_path_factory.mktemp("limited"), **limits) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        yield server


@pytest.fixture(autouse=True)
def _idle(server):
    """Each test begins and ends with a server that does nothing."""
    yield
    until(lambda: running(server) == 0 and server.services.scheduler.waiting(Lane.ASK) == 0)


def failures(http, code):
    """How many questions failed by this code, as the metrics say."""
    found = re.search(
        rf'^msa:request_failures_total{{code="{code}",.*}} (.*)$', http.get("/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def running(server):
    return sum(server.services.scheduler.running(lane) for lane in Lane)


class Asking(threading.Thread):
    """A client that waits for a slow answer until it hangs up."""

    def __init__(self, server, stream=False):
        super().__init__(daemon=True)
        self._client = server.http()
        self._body = {**SLOW, "stream": stream}
        self.response = None
        self.start()

    def run(self):
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=self._body) as response:
                self.response = response
                for _ in response.iter_raw():
                    pass
        except (httpx.HTTPError, OSError):
            pass

    def hang_up(self):
        for connection in self._client._transport._pool.connections:
            stream = connection._connection._network_stream
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._client.close()


def test_when_the_queue_is_full_more_are_refused_at_once(server, http):
    first = Asking(server)
    until(lambda: running(server) == 1)
    second = Asking(server)
    until(lambda: server.services.scheduler.waiting(Lane.ASK) == 1)
    http.get("/health")
    started = time.monotonic()
    refused = http.post("/v1/chat/completions", json=ASK)
    took = time.monotonic() - started
    assert error_of(refused, 429, "queue_full")["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-should-retry"] == "true"
    assert refused.elapsed.total_seconds() < 0.5, took  # two processes' worth of work share this one core
    error_of(http.post("/v1/memories/known/search", json={"query": "x"}), 429, "queue_full")
    assert http.get("/v1/memories/known/documents/other").status_code == 200, "reading needs no model"
    with server.openai() as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**ASK)
    second.hang_up()
    until(lambda: server.services.scheduler.waiting(Lane.ASK) == 0)
    first.hang_up()
    until(lambda: running(server) == 0)
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("path", "body", "lane"),
    [
        ("/v1/chat/completions", ASK, Lane.ASK),
        ("/v1/memories/known/search", {"query": "x"}, Lane.ASK),
        ("/v1/memories/known/documents", {"documents": [{"id": "late", "text": "late"}]}, Lane.WRITE),
        ("/v1/memories/known/documents/delete", {"ids": ["late"]}, Lane.WRITE),
    ],
)
def test_a_queue_that_fills_while_a_body_arrives_refuses_before_anything_is_done(
    server, http, monkeypatch, path, body, lane
):
    content, filled = json.dumps(body).encode(), contextlib.ExitStack()

    def slowly():  # the head has gone, so there was room
        time.sleep(0.2)
        for _ in range(2):  # one that would run and one that would wait, of which a write has none to spare
            with contextlib.suppress(QueueFullError):
                filled.enter_context(server.services.scheduler.place(lane))
        yield content

    monkeypatch.setattr(server.services.memories, "exists", lambda name: pytest.fail("it was looked at"))
    if path.endswith("documents"):  # which looks for the memory before it reads a body
        monkeypatch.undo()
    headers = {"content-type": "application/json", "content-length": str(len(content))}
    with filled:
        error_of(http.post(path, content=slowly(), headers=headers), 429, "queue_full")
    monkeypatch.undo()
    assert http.get("/v1/memories/known/documents/late").status_code == 404
    assert http.post(path, content=content, headers=headers).status_code == 200, "the places are free again"
    http.delete("/v1/memories/known/documents/late")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(server, http, stream):
    asking = Asking(server, stream)
    until(lambda: running(server) == 1)
    if stream:
        until(lambda: asking.response is not None)
    before = failures(http, "cancelled")
    asking.hang_up()
    started = time.monotonic()
    until(lambda: running(server) == 0)
    assert time.monotonic() - started < 2
    until(lambda: failures(http, "cancelled") == before + 1)
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_deadlines(start, tmp_path, stream):
    with start(tmp_path, request_timeout_s=0.7, ping_s=0.1) as server, server.http() as http:
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        response = http.post("/v1/chat/completions", json={**SLOW, "stream": stream})
        if stream:
            *_, last, done, _ = response.text.split("\n\n")
            assert (json.loads(last.removeprefix("data: "))["error"]["code"], done) == (
                "deadline_exceeded",
                "data: [DONE]",
            )
        else:
            error_of(response, 504, "deadline_exceeded")
            assert response.headers["x-should-retry"] == "false"
        until(lambda: running(server) == 0, seconds=3)


def test_a_stream_that_waits_shows_signs_of_life(start, tmp_path):
    from msa.serving import streaming

    with start(tmp_path, ping_s=0.05) as server, server.http() as http, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_ERRORS_BEFORE_STREAM_S", 0.05)
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        held = threading.Event()
        server.services.scheduler.submit(lambda job: held.wait(10))
        threading.Timer(0.5, held.set).start()
        text = http.post("/v1/chat/completions", json={**ASK, "stream": True}).text
        assert ": waiting\n\n" in text
        with server.openai() as client:
            threading.Timer(0.3, held.set).start()
            said = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ASK, stream=True)]
        assert "".join(filter(None, said)) == ANSWER


def test_running_out_of_memory_fails_one_request(server, http):
    """What torch raises on a full GPU has a class of its own; the worker and the server go on."""
    import torch

    def work(job):
        raise torch.OutOfMemoryError("CUDA out of memory. /secret/path")

    with pytest.raises(torch.OutOfMemoryError) as error:
        server.services.scheduler.submit(work).future.result(5)
    from msa.serving.errors import to_api_error

    answer = to_api_error(error.value)
    assert (answer.status, answer.code) == (503, "out_of_memory")
    assert "secret" not in answer.message
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200


def test_bodies_that_are_too_large(http):
    big = "x" * 60_000
    documents = "/v1/memories/known/documents"
    for response in (
        http.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": big}]}),
        http.post("/v1/memories/known/search", json={"query": big}),
        http.post(documents, json={"text": big}),
        http.post(documents, json={"text": "x" * 40_000}),
        http.put(f"{documents}/a", json={"text": "x" * 40_000}),
        http.post(documents, files=[("file", ("a.txt", b"x" * 40_000))], params={"wait": True}),
        http.post(documents, files=[("file", ("a.txt", b"x" * 120_000))]),
    ):
        error_of(response, 413, "too_large")
    unbounded = http.post(
        documents, content=iter([b"x" * 1000] * 200), headers={"content-type": "application/x-ndjson"}
    )
    error_of(unbounded, 413, "too_large")
    assert http.get("/v1/memories/known").json()["documents"] == 2


def test_too_many_operations(server, http):
    lines = json.dumps({"id": "d", "text": "word " * 4000}).encode()
    headers = {"content-type": "application/x-ndjson"}
    held = threading.Event()
    server.services.scheduler.submit(lambda job: held.wait(10), Lane.WRITE)
    try:
        addresses = []
        for _ in range(2):
            accepted = http.post("/v1/memories/known/documents", content=lines, headers=headers, params={"wait": False})
            addresses.append(accepted.headers["location"])
        refused = http.post("/v1/memories/known/documents", content=lines, headers=headers, params={"wait": False})
        error_of(refused, 429, "queue_full")
        for address in addresses:
            http.delete(address)
    finally:
        held.set()
    for address in addresses:
        until(lambda address=address: http.get(address).json()["status"] == "cancelled")


@pytest.mark.parametrize(
    "head", [b"", b"POST /v1/chat/comp", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /he"]
)
def test_a_head_that_does_not_come_is_not_waited_for(server, head):
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname()) as connection:
        connection.sendall(head)
        connection.settimeout(10)
        while connection.recv(1000):
            pass  # until the server closes it


def test_a_body_that_does_not_come_is_not_waited_for(server):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"content-length: 1000\r\nconnection: close\r\n\r\n{"
    )
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname()) as connection:
        connection.sendall(head)
        connection.settimeout(10)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_stopping_lets_running_requests_end(start, tmp_path):
    with start(tmp_path, drain_s=30) as server, server.openai() as client, server.http() as http:
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        answer = client.chat.completions.create(**{**SLOW, "max_tokens": 150}, stream=True)
        next(answer)
        server.server.should_exit = True
        *_, last = answer
        assert last.choices[0].finish_reason in ("stop", "length")
        server.join()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


def test_stopping_refuses_what_is_new(server, tmp_path, start):
    with start(tmp_path) as stopping, stopping.http() as http:
        http.put("/v1/memories/known", json={})
        http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        stopping.services.stop_accepting()
        error_of(http.post("/v1/chat/completions", json=ASK), 503, "shutting_down")
        error_of(http.post("/v1/memories/known/documents", json={"text": "x"}), 503, "shutting_down")
        error_of(http.get("/ready"), 503)
        assert http.get("/health").status_code == 200


def test_the_log_says_what_happened_and_nothing_of_the_texts(http, caplog):
    caplog.set_level(logging.INFO, "msa.serving")
    secret = {"id": "secret-id", "text": "secret-text", "metadata": {"m": "secret-meta"}}
    http.post("/v1/memories/known/documents", json=secret, headers={"x-request-id": "mine.1"})
    http.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": "secret-text"}],
                                            "max_tokens": 4})  # fmt: skip
    http.get("/v1/memories/known/documents/secret-id?after=secret-query")
    http.delete("/v1/memories/known/documents/secret-id")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "msa.serving.access"]
    assert "secret" not in caplog.text
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ", lines[0].pop("time"))
    assert lines[0] | {"ms": 0} == {
        "event": "request", "id": "mine.1", "method": "POST", "route": "/v1/memories/{name}/documents",
        "status": 200, "ms": 0,
    }  # fmt: skip


@pytest.mark.parametrize("given", ["ok-1", "bad id", "x" * 200, "a\tb"])
def test_request_ids(http, given):
    found = http.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert found == given if given == "ok-1" else found.startswith("req_")


def test_one_process_writes_and_others_read(server, start):
    with pytest.raises(ServingError, match="serves .* already"), start(server.services.root):
        pass
    with start(server.services.root, read_only=True) as replica, replica.http() as reader, server.http() as writer:
        assert reader.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == ANSWER
        writer.post("/v1/memories/known/documents", json={"id": "later", "text": "Later."})
        assert reader.get("/v1/memories/known/documents/later").json()["text"] == "Later."
        hits = reader.post("/v1/memories/known/search", json={"query": "Later."}).json()["data"]
        assert "later" in [hit["id"] for hit in hits]
        writer.delete("/v1/memories/known/documents/later")
        documents = "/v1/memories/known/documents"
        for response in (
            reader.put("/v1/memories/x", json={}),
            reader.delete("/v1/memories/known"),
            reader.post(documents, json={"text": "x"}),
            reader.delete(f"{documents}/other"),
            reader.post("/v1/memories/known/snapshots"),
        ):
            error_of(response, 403, "read_only")
        writer.put("/v1/memories/fresh", json={})
        writer.post("/v1/memories/fresh/documents", json={"id": "one", "text": "One."})
        assert reader.get("/v1/memories/fresh/documents/one").status_code == 200
        writer.delete("/v1/memories/fresh")
        writer.put("/v1/memories/fresh", json={})
        error_of(reader.get("/v1/memories/fresh/documents/one"), 404, "document_not_found")
        writer.delete("/v1/memories/fresh")


def test_a_memory_that_another_process_writes_can_still_be_asked(server, http, tiny):
    import msa

    http.put("/v1/memories/shared", json={})
    with server.services.memories._lock:
        entry = server.services.memories._open.get("shared")
        server.services.memories._retire("shared", entry)
    with msa.Memory.open(server.services.root / "shared", model=tiny) as writer:
        writer.add([{"id": "a", "text": "theirs"}])
        assert http.get("/v1/memories/shared/documents/a").json()["text"] == "theirs"
        refused = http.post("/v1/memories/shared/documents", json={"text": "ours"})
        assert str(server.services.root) not in error_of(refused, 409, "memory_locked")["message"]
    assert http.post("/v1/memories/shared/documents", json={"text": "ours"}).status_code == 200
    http.delete("/v1/memories/shared")


def test_memories_of_another_model_and_damaged_ones(server, http, tiny):
    from tiny import tiny_model

    import msa

    root = server.services.root
    msa.Memory.open(root / "foreign", model=tiny_model()).close()
    http.put("/v1/memories/broken", json={})
    http.post("/v1/memories/broken/documents", json={"id": "a", "text": "x"})
    with server.services.memories._lock:
        server.services.memories._retire("broken", server.services.memories._open["broken"])
    for file in (root / "broken").glob("manifest-*.json"):
        file.write_bytes(b"{}")
    listed = {entry["id"]: entry["available"] for entry in http.get("/v1/memories").json()["data"]}
    assert (listed["foreign"], listed["broken"], listed["known"]) == (False, False, True)
    assert "msa-tiny@foreign" not in [entry["id"] for entry in http.get("/v1/models").json()["data"]]
    error = error_of(
        http.post("/v1/chat/completions", json={**ASK, "model": "msa-tiny@foreign"}), 409, "model_mismatch"
    )
    assert str(root) not in error["message"]
    error_of(http.get("/v1/memories/broken/documents"), 500, "memory_damaged")
    for name in ("foreign", "broken"):
        gone = http.delete(f"/v1/memories/{name}").json()
        assert (gone["deleted"], gone["documents"]) == (True, None)
    assert [entry["id"] for entry in http.get("/v1/memories").json()["data"]] == ["known"]
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200


def test_a_memory_s_size_is_limited(start, tmp_path):
    with start(tmp_path, max_memory_bytes=200_000) as server, server.http() as http:
        http.put("/v1/memories/m", json={})
        refused = http.post("/v1/memories/m/documents", json={"text": "many words " * 3000})
        error_of(refused, 507, "memory_full")
        assert refused.headers["x-should-retry"] == "false"
        assert http.get("/v1/memories/m").json()["documents"] == 0


def test_few_memories_stay_open(start, tmp_path):
    with start(tmp_path, max_open_memories=2) as server, server.http() as http:
        for name in "abcde":
            http.put(f"/v1/memories/{name}", json={})
            http.post(f"/v1/memories/{name}/documents", json={"id": name, "text": name})
        assert len(server.services.memories.open_ones()) <= 2
        for name in "abcde":
            assert http.get(f"/v1/memories/{name}/documents/{name}").json()["text"] == name


@pytest.mark.parametrize("name", ["slow.pdf", "slow.html"])
def test_a_file_that_takes_for_ever_is_refused_and_holds_nobody(server, name):
    data = slow_pdf() if name == "slow.pdf" else b"<a " * 9_900
    assert len(data) < 30_000
    with server.http() as http:
        files = [("file", (name, data, "application/octet-stream"))]
        error = error_of(http.post("/v1/memories/known/documents", files=files), 400, "invalid_document")
        assert f"{name} took longer than 2 s to read" in error["message"]
        files = [("file", ("note.txt", b"A note.", "text/plain"))]
        assert http.post("/v1/memories/known/documents", files=files).status_code == 200
        assert http.delete("/v1/memories/known/documents/note.txt").status_code == 200
