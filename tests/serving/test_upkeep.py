"""Verifying, compacting and copying a memory while it is used."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import ANSWER, DOCUMENTS, QUESTION, error_of, until

from msa.serving import memories
from msa.serving.job import Lane
from msa.serving.operations import Operation

ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
KNOWN = "/v1/memories/known"


@pytest.fixture
def own(start, tmp_path):
    """A server that one test has for itself."""
    with start(tmp_path, drain_s=1, request_timeout_s=20) as server, server.http() as http:
        http.put(KNOWN, json={})
        http.post(f"{KNOWN}/documents", json={"documents": DOCUMENTS})
        yield server


def answers(http):
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == ANSWER


class Held:
    """Stands in for a function that takes long: it begins, and ends when it is let go."""

    def __init__(self):
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, *arguments, **options):
        self.begun.set()
        assert self.let_go.wait(60)
        return []


@contextlib.contextmanager
def held_verification(server, monkeypatch):
    """A client, what holds its verification, and the answer to come; the verification is let go in any case."""
    held = Held()
    monkeypatch.setattr(memories, "file_problems", held)
    try:
        with ThreadPoolExecutor(1) as pool, server.http() as http:
            verifying = pool.submit(http.post, f"{KNOWN}/verify")
            assert held.begun.wait(10)
            yield http, held, verifying
    finally:
        held.let_go.set()


def test_a_verification_holds_nobody_up(own, monkeypatch):
    with held_verification(own, monkeypatch) as (http, _, verifying):
        assert http.post(f"{KNOWN}/documents", json={"id": "new", "text": "New."}).json()["encoded"] == 1
        answers(http)
        refused = http.post(f"{KNOWN}/verify")
        error_of(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        began = time.monotonic()
        own.stop()
        assert time.monotonic() - began < 4, "longer than it may take to drain"
        error_of(verifying.result(), 503, "shutting_down")


def test_a_verification_has_the_time_of_a_request(start, tmp_path, monkeypatch):
    real = memories.file_problems

    def slow(folder, check):
        for _ in range(200):
            time.sleep(0.05)
            check()
        return real(folder)

    monkeypatch.setattr(memories, "file_problems", slow)
    with start(tmp_path, request_timeout_s=0.3) as server, server.http() as http:
        http.put(KNOWN, json={})
        error_of(http.post(f"{KNOWN}/verify"), 504, "deadline_exceeded")
        until(lambda: not server.services.verifier.running(Lane.ASK), seconds=2)


def test_a_memory_that_is_deleted_while_it_is_verified(own, monkeypatch):
    with held_verification(own, monkeypatch) as (http, held, verifying):
        assert http.delete(KNOWN).status_code == 200
        http.put(KNOWN, json={})
        held.let_go.set()
        error_of(verifying.result(), 404, "memory_not_found")


def test_what_a_verification_finds(own):
    folder = own.services.root / "known"
    with own.http() as http:
        assert http.post(f"{KNOWN}/verify").json() == {"object": "memory.verification", "ok": True, "problems": []}
        http.post(f"{KNOWN}/documents", json={"id": "new", "text": "New."})
        (folder / "foreign.txt").touch()
        newest = max(folder.glob("manifest-*.json"))
        kept = newest.read_bytes()
        newest.unlink()
        file = min((folder / "segments").glob("*.latents.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        problems = http.post(f"{KNOWN}/verify").json()["problems"]
        newest.write_bytes(kept)
    for name in ("foreign.txt", newest.name, file.name):
        assert any(name in problem for problem in problems), (name, problems)
    assert not any(str(own.services.root) in problem for problem in problems)


def test_questions_are_answered_while_a_memory_is_compacted(own, monkeypatch):
    asked, told = threading.Event(), threading.Event()
    memory_type = type(own.services.memories.open_ones()[0][1])
    compact = memory_type.compact

    def waiting(memory, *, check):
        def wait():
            if not told.is_set():
                asked.set()
                until(lambda: own.services.scheduler.waiting(Lane.ASK) or told.is_set())
                time.sleep(own.services.scheduler._long_s)
            check()

        return compact(memory, check=wait)

    monkeypatch.setattr(memory_type, "compact", waiting)
    with ThreadPoolExecutor(2) as pool, own.http() as http:
        http.delete(f"{KNOWN}/documents/other")
        compacting = pool.submit(http.post, f"{KNOWN}/compact")
        assert asked.wait(10)
        answers(http)
        assert not compacting.done()
        told.set()
        done = compacting.result()
        assert (done.status_code, done.json()["object"], done.json()["removed_parts"]) == (200, "memory.compaction", 1)
        answers(http)
        assert http.post(f"{KNOWN}/verify").json()["ok"]


def test_a_compaction_that_is_called_off_changes_nothing(own, monkeypatch):
    held = Held()
    monkeypatch.setattr("msa.bank.compact._check_sound", held)
    with own.http() as http:
        http.delete(f"{KNOWN}/documents/other")
        before = http.get(KNOWN).json()
        address = http.post(f"{KNOWN}/compact", params={"wait": False}).headers["location"]
        assert held.begun.wait(10)
        assert http.get(address).json()["kind"] == "compact"
        http.delete(address)
        held.let_go.set()
        until(lambda: http.get(address).json()["status"] == "cancelled")
        assert http.get(KNOWN).json() == before
        assert http.post(f"{KNOWN}/verify").json()["ok"]


@pytest.mark.parametrize("again", [True, False])
def test_a_snapshot_of_a_memory_that_is_deleted_before_it_has_a_name(own, monkeypatch, again):
    held = Held()
    check = Operation.check

    def checked(operation):
        check(operation)
        if operation.kind == "snapshot" and list(own.services.state_folder.glob("building/*/manifest-*")):
            held()

    monkeypatch.setattr(Operation, "check", checked)
    with own.http() as http:
        address = http.post(f"{KNOWN}/snapshots", params={"wait": False}).headers["location"]
        assert held.begun.wait(10)
        try:
            assert http.delete(KNOWN).status_code == 200
            if again:
                http.put(KNOWN, json={})
        finally:
            held.let_go.set()
        until(lambda: http.get(address).json()["status"] not in ("queued", "running"))
        ended = http.get(address).json()
        assert (ended["status"], ended["error"]["code"]) == ("failed", "memory_not_found")
        http.put(KNOWN, json={})
        assert http.get(f"{KNOWN}/snapshots").json()["data"] == []
        assert not [*own.services.state_folder.glob("snapshots/*/*")]
        assert http.post(f"{KNOWN}/snapshots").status_code == 201
