"""Waiting for clients and for workers, and giving up on either without a word too many."""

import asyncio
import gc
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from types import SimpleNamespace

import pytest
from serving_helpers import error_of, until

from msa.serving.http import outcome_of, result_of
from msa.serving.job import CancelledJobError, DeadlineError, Lane
from msa.serving.scheduler import Scheduler


def services(scheduler, **settings):
    return SimpleNamespace(scheduler=scheduler, settings=SimpleNamespace(**settings))


@pytest.fixture
def scheduler():
    scheduler = Scheduler(8, 8)
    yield scheduler
    scheduler.abort()
    assert scheduler.join(10)


class Client:
    """A request whose client goes away after so long."""

    def __init__(self, stays_s=60.0):
        self._stays_s = stays_s

    async def receive(self):
        await asyncio.sleep(self._stays_s)
        return {"type": "http.disconnect"}


def complaints(work):
    """Run ``work`` and collect what the event loop complains of."""
    heard = []

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["message"]))
        await work()
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(run())
    return heard


@pytest.mark.parametrize(
    ("stays_s", "deadline_s", "raised"), [(0.0, 60, CancelledJobError), (60.0, 0.02, DeadlineError)]
)
def test_a_failure_that_comes_too_late_is_nobody_s_complaint(scheduler, stays_s, deadline_s, raised):
    def work(job):
        while job.stop_reason is None:
            time.sleep(0.002)
        time.sleep(0.3)
        raise KeyError("late")

    async def ask():
        job = scheduler.submit(work, deadline=time.monotonic() + deadline_s)
        with pytest.raises(raised):
            await result_of(job, Client(stays_s), services(scheduler))
        while not job.future.done():
            await asyncio.sleep(0.005)
        assert job.future.exception() is not None

    assert complaints(ask) == []


def test_an_operation_that_fails_after_its_time_is_nobody_s_complaint(scheduler):
    async def ask():
        job = scheduler.submit(fail_late)
        assert await outcome_of(job.future, services(scheduler, request_timeout_s=0.01)) is None
        while not job.future.done():
            await asyncio.sleep(0.005)

    assert complaints(ask) == []


def fail_late(job):
    time.sleep(0.1)
    raise KeyError("late")


def test_results_and_failures_that_come_in_time(scheduler):
    async def ask():
        waiting = services(scheduler, request_timeout_s=10)
        assert await result_of(scheduler.submit(lambda job: 7), Client(), waiting) == 7
        assert await outcome_of(scheduler.submit(lambda job: 8).future, waiting) == 8
        for wait in (lambda job: result_of(job, Client(), waiting), lambda job: outcome_of(job.future, waiting)):
            with pytest.raises(KeyError):
                await wait(scheduler.submit(fail_late))

    assert complaints(ask) == []


def test_an_upload_that_drips_for_ever_is_ended(start, tmp_path):
    """Every piece comes in time, but the whole does not."""
    settings = {"upload_timeout_s": 0.8, "body_timeout_s": 30.0}
    with start(tmp_path / "root", **settings) as server, server.http() as http:
        http.put("/v1/memories/m", json={})
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as connection:
            head = "POST /v1/memories/m/documents HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
            connection.sendall(f"{head}Content-Length: 90000\r\n\r\n".encode())
            started = time.monotonic()
            connection.settimeout(0.1)
            while True:
                connection.sendall(b"{")
                try:
                    connection.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    assert time.monotonic() - started < 15
            connection.settimeout(20)
            answer = HTTPResponse(connection)  # which may come in several pieces
            answer.begin()
            assert (answer.status, b"body_timeout" in answer.read()) == (408, True)
        assert os.listdir(server.services.operations.spool) == []
        lines = "\n".join('{"text": "x"}' for _ in range(2))
        headers = {"content-type": "application/x-ndjson"}
        assert http.post("/v1/memories/m/documents", content=lines, headers=headers).status_code in (200, 202)
        error_of(http.post("/v1/memories/m/documents", content="{", headers=headers), 400)


def test_two_changes_of_one_document_at_a_time_are_both_kept(http, server, memory):
    """One changes the text, the other the metadata, and neither has seen what the other did."""
    address = f"{memory}/documents/a"
    assert http.put(address, json={"text": "old", "metadata": {"old": True}}).status_code == 200
    scheduler, held = server.services.scheduler, threading.Event()
    scheduler.submit(lambda job: held.wait(30), Lane.WRITE)
    changes = [("PUT", {"text": "new", "metadata": {"old": True}}), ("PATCH", {"metadata": {"new": True}})]
    with ThreadPoolExecutor(2) as pool:
        answers = []
        for number, (method, body) in enumerate(changes, start=1):
            answers.append(pool.submit(http.request, method, address, json=body))
            until(lambda number=number: scheduler.waiting(Lane.WRITE) == number)
        held.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    document = http.get(address).json()
    assert (document["text"], document["metadata"]) == ("new", {"new": True})
    error_of(http.patch(f"{memory}/documents/nothing", json={"text": "x"}), 404, "document_not_found")
