"""Work in the background over HTTP: deletions that come to nothing, requests that are sent again, places that are kept."""

import json
import shutil
import threading
import time

import httpx
import pytest
from serving_helpers import NEEDLE, error_of, until

from msa.serving.job import Lane, QueueFullError
from msa.serving.ledger import Ledger
from msa.serving.routes import documents

M = "/v1/memories/m"
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
def serve(start, tmp_path):
    """Start a server of the same folder each time, with a memory ``m``."""

    def started(**settings):
        return start(tmp_path, drain_s=2, **settings)

    with started() as server, server.http() as http:
        assert http.put(M, json={}).status_code == 201
    return started


def upload(http, headers=NDJSON, wait=False):
    line = json.dumps({"id": "needle", "text": NEEDLE}) + "\n"
    return http.post(f"{M}/documents", content=line, headers={**NDJSON, **headers}, params={"wait": wait})


def ends(http, response):
    """How the operation of an answer ends."""
    address = response.headers["location"]
    until(lambda: http.get(address).json()["status"] not in ("queued", "running"))
    return http.get(address).json()["status"]


@pytest.mark.parametrize("why", ["full", "late", "gone"])
def test_a_deletion_that_comes_to_nothing_calls_nothing_off(serve, why):
    settings = {"max_waiting_writes": 1} if why == "full" else {"request_timeout_s": 0.5} if why == "late" else {}
    with serve(**settings) as server, server.http() as http:
        held, scheduler = threading.Event(), server.services.scheduler
        scheduler.submit(lambda job: held.wait(60), Lane.WRITE)
        try:
            accepted = upload(http)
            until(lambda: scheduler.waiting(Lane.WRITE) == 1)
            if why == "gone":
                with pytest.raises(httpx.ReadTimeout), server.http() as leaving:
                    leaving.delete(M, timeout=0.5)
                until(lambda: scheduler.waiting(Lane.WRITE) == 1)
            else:
                error_of(http.delete(M), 429 if why == "full" else 504)
            assert http.get(accepted.headers["location"]).json()["status"] == "running"
        finally:
            held.set()
        assert ends(http, accepted) == "succeeded"
        assert http.get(f"{M}/documents/needle").json()["text"] == NEEDLE


def test_a_compaction_stands_aside_for_a_deletion(serve, monkeypatch):
    with serve() as server, server.http() as http:
        http.post(f"{M}/documents", json={"text": NEEDLE})
        begun, memory_type = threading.Event(), type(server.services.memories.open_ones()[0][1])

        def endless(memory, *, check):
            begun.set()
            while True:
                check()
                time.sleep(0.01)

        monkeypatch.setattr(memory_type, "compact", endless)
        accepted = http.post(f"{M}/compact", params={"wait": False})
        assert begun.wait(20)
        assert http.delete(M).status_code == 200
        assert ends(http, accepted) == "cancelled"


def test_one_that_waits_is_called_off_at_once(serve):
    with serve(max_operations=2) as server, server.http() as http:
        held = threading.Event()
        server.services.scheduler.submit(lambda job: held.wait(60), Lane.WRITE)
        try:
            first, second = upload(http), upload(http)
            until(lambda: http.get(first.headers["location"]).json()["status"] == "running")
            error_of(upload(http), 429, "queue_full")
            assert http.delete(second.headers["location"]).json()["status"] == "cancelled"
            assert upload(http).status_code == 202, "its place is free"
        finally:
            held.set()


def test_what_is_answered_again_says_again_where_to_ask(serve):
    with serve() as server, server.http() as http:
        first, again = (upload(http, {"idempotency-key": "k"}) for _ in range(2))
        assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        for name in ("location", "retry-after"):
            assert again.headers[name] == first.headers[name]
        assert ends(http, again) == "succeeded"


def test_a_request_whose_answer_was_never_kept_is_not_done_again(serve, monkeypatch):
    with serve() as server, server.http() as http, monkeypatch.context() as killed:
        killed.setattr(Ledger, "finish_key", lambda *_: None)
        first = upload(http, {"idempotency-key": "k"}, wait=True)
        assert first.status_code == 200
        error_of(upload(http, {"idempotency-key": "k"}, wait=True), 409, "idempotency_key_in_use")
    with serve() as server, server.http() as http:
        again = upload(http, {"idempotency-key": "k"}, wait=True)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert ends(http, again) == "succeeded"
        assert len(http.get("/v1/operations").json()["data"]) == 1


def test_what_was_left_for_a_memory_that_is_gone_is_not_taken_up(serve):
    with serve() as server, server.http() as http:
        held = threading.Event()
        server.services.scheduler.submit(lambda job: held.wait(60), Lane.WRITE)
        left = upload(http)
        server.services.operations.stop()
        held.set()
        root = server.services.root
    shutil.rmtree(root / "m")
    with serve() as server, server.http() as http:
        assert http.get(left.headers["location"]).json()["error"]["code"] == "memory_not_found"
        assert http.put(M, json={}).status_code == 201
        assert http.get(M).json()["documents"] == 0


def test_an_upload_that_added_something_has_got_on(serve):
    with serve() as server, server.http() as http:
        operation = upload(http, wait=True).json()
        assert server.services.ledger.operation(operation["id"])["starts"] == 0
        again = upload(http, wait=True).json()
        assert again["result"]["unchanged"] == 1
        assert server.services.ledger.operation(again["id"])["starts"] == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_what_was_received_is_not_refused_for_others_that_came_later(serve, monkeypatch, as_json):
    """One place, and somebody who wants it as soon as the body is there."""
    with serve(max_operations=1) as server, server.http() as http:
        operations, refused = server.services.operations, []

        def push_in(*_):
            with pytest.raises(QueueFullError):
                operations.start("compact", "m", {})
            refused.append(True)

        name = "spool_documents" if as_json else "start_spooled"
        begin = getattr(documents, name)
        monkeypatch.setattr(documents, name, lambda *arguments: push_in() or begin(*arguments))
        if as_json:
            accepted = http.post(f"{M}/documents", json={"id": "needle", "text": NEEDLE}, params={"wait": False})
        else:
            accepted = upload(http)
        assert (accepted.status_code, refused) == (202, [True])
        assert ends(http, accepted) == "succeeded"
