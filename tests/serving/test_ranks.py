"""``msa serve`` under torchrun: several processes share the memories behind the same API."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import rank_checks
from serving_helpers import ANSWER, DOCUMENTS, ENDLESS, QUESTION, error_of, until

import msa
from msa.cli.options import UsageError
from msa.cli.serve import device_of_ranks

MODEL = "msa-tiny@known"
CHAT = "/v1/chat/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
GRASS = [
    {"id": f"g{i}", "text": f"The grass is green, and the sun is yellow. There and back again {i}.", "metadata": {"n": i}}
    for i in range(6)
]  # fmt: skip
SECOND = {"id": "second", "text": "One of the special magic numbers for early-bird is: 7305861."}
LATER = {**ASKED, "messages": [{"role": "user", "content": QUESTION.replace("wandering-age", "early-bird")}]}


class Started:
    """Processes that serve a folder; ``first`` is the one to signal."""

    def __init__(self, first, others, log, url):
        self.first, self.others, self.log, self.url = first, others, log, url

    def http(self):
        return httpx.Client(base_url=self.url, timeout=60)


@pytest.fixture(scope="module")
def servers(start, tiny, tmp_path_factory):
    """Three of the same content, by their number of ranks: 1, 2 without and 3 with torchrun."""
    folder = tmp_path_factory.mktemp("ranks")
    with msa.Memory.open(folder / "1" / "known", tiny) as memory:
        memory.add([*DOCUMENTS, *GRASS])
    for number in (2, 3):
        shutil.copytree(folder / "1", folder / str(number))
    with two_ranks(folder) as two, torchrun(folder) as three, start(folder / "1") as one:
        yield {1: one, 2: serving(two, folder / "2.log"), 3: serving(three, folder / "3.log")}


def command(root):
    return ["-m", "msa.cli.main", "serve", str(root), "--port", "0", "--device", "cpu", "--drain", "5"]


@contextmanager
def two_ranks(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    with open(folder / "2.log", "w") as log:
        for rank in range(2):
            env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen([sys.executable, *command(folder / "2")], env=env, stderr=log))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def torchrun(folder):
    with open(folder / "3.log", "w") as log:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*run, *command(folder / "3")], env=environment, stderr=log)
    try:
        yield [process]
    finally:
        process.terminate()
        process.wait(60)


def serving(processes, log):
    """What was started, once it serves."""
    until(lambda: "http://" in log.read_text() or processes[0].poll() is not None, 120)
    assert processes[0].poll() is None, log.read_text()
    (url,) = re.findall(r"on (http://\S+)", log.read_text())
    started = Started(processes[0], processes[1:], log, url)
    with started.http() as http:
        until(lambda: _is_ready(http))
    return started


def _is_ready(http):
    try:
        return http.get("/ready").status_code == 200
    except httpx.ConnectError:
        return False


def assert_same(found, expected):
    """Two replies, but for what differs from one server and moment to another."""
    rank_checks.assert_same(
        found, expected, lambda reply: {"timings", "created", "url"} | ({"id"} if "created" in reply else set())
    )


def answers(server):
    """All kinds of questions, answered by one server."""
    with server.http() as http:
        found = [
            http.post(CHAT, json={**ASKED, "where": {"lang": "en"}}),
            http.post(CHAT, json={**LATER, "temperature": 0.9, "seed": 3, "max_tokens": 12}),
            http.post("/v1/memories/known/search", json={"query": QUESTION, "top_k": 5, "hybrid": True}),
            http.post("/v1/memories/known/search", json={"query": "grass", "where": {"n": 4}}),
        ]
        assert [response.status_code for response in found] == [200] * len(found), [each.text for each in found]
        with http.stream("POST", CHAT, json={**ASKED, "stream": True, "stream_events": True}) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
        return [response.json() for response in found] + [json.loads(line) for line in lines]


def test_answers_and_sources_are_those_of_one_process(servers):
    def compare():
        expected = answers(servers[1])
        for number in (2, 3):
            assert_same(answers(servers[number]), expected)
        return expected

    first = compare()
    assert first[0]["choices"][0]["message"]["content"] == ANSWER
    assert first[0]["sources"][0]["id"] == "notes/ages.md"
    for number in (1, 2, 3):
        with servers[number].http() as http:
            assert http.post("/v1/memories/known/documents", json=SECOND).status_code == 200
            assert http.delete("/v1/memories/known/documents/g3").status_code == 200
            assert http.post("/v1/memories/known/documents", json={**GRASS[4], "text": "Grass."}).status_code == 200
            assert http.post("/v1/memories/known/compact").status_code == 200
            assert http.put("/v1/memories/fresh", json={}).status_code == 201
            assert http.post("/v1/memories/fresh/documents", json={"id": "f", "text": "Fresh."}).status_code == 200
            hits = http.post("/v1/memories/fresh/search", json={"query": "Fresh"}).json()["data"]
            assert [hit["id"] for hit in hits] == ["f"]
    second = compare()
    assert "second" in [hit["id"] for hit in second[2]["data"]]
    assert second[3]["data"][0]["text"] == "Grass."


def test_questions_side_by_side_get_the_answers_they_get_alone(servers):
    asked = [
        {**ASKED, "where": {"lang": "en"}},
        {**LATER, "temperature": 0.9, "seed": 3, "max_tokens": 12},
        {**ASKED, "retrieval": "routed", "max_tokens": 6},
        {**ASKED, "max_rounds": 1, "stop": "9"},
    ]
    long = {**ASKED, "messages": [{"role": "user", "content": "word " * 6000}]}
    with servers[2].http() as http, ThreadPoolExecutor(16) as clients:
        alone = [http.post(CHAT, json=body).json() for body in asked]
        with http.stream("POST", CHAT, json={**ENDLESS, "model": MODEL, "stream": True}) as endless:
            lines = endless.iter_lines()  # kept: the connection is closed with it
            next(lines)
            too_long = clients.submit(http.post, CHAT, json=long)
            replies = [clients.submit(http.post, CHAT, json=body) for body in asked * 3]
            found = [reply.result(60).json() for reply in replies]
            error_of(too_long.result(60), 400, "context_length_exceeded")
            assert gauge(http, "num_requests_running") == 1, "the long one was there all the time"
        for reply, expected in zip(found, alone * 3, strict=True):
            assert_same(reply, expected)
        until(lambda: gauge(http, "num_requests_running") == 0)
        assert_same(http.post(CHAT, json=asked[0]).json(), alone[0])


def gauge(http, name):
    (value,) = re.findall(rf"^msa:{name}\{{.*\}} (.*)$", http.get("/metrics").text, re.MULTILINE)
    return float(value)


def test_a_client_that_goes_away_frees_the_model(servers):
    with servers[3].http() as http:
        with http.stream("POST", CHAT, json={**ENDLESS, "model": MODEL, "stream": True}) as response:
            next(response.iter_lines())
        started = time.monotonic()
        assert http.post(CHAT, json=ASKED).json()["choices"][0]["message"]["content"] == ANSWER
        assert time.monotonic() - started < 20


def test_a_lost_process_is_an_error_and_the_end(servers):
    two = servers[2]
    with two.http() as http:
        assert http.post(CHAT, json=ASKED).status_code == 200
        (follower,) = two.others
        follower.kill()
        follower.wait()
        error = error_of(http.post(CHAT, json=ASKED), 503, "rank_lost")
    assert "127.0.0.1" not in error["message"]
    assert two.first.wait(30) == 1
    last = two.log.read_text().splitlines()[-1]
    assert last.startswith("msa: rank 0 of 2 could not")
    assert "Traceback" not in two.log.read_text()


def test_sigterm_ends_all(servers):
    three = servers[3]
    pid = three.first.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(workers) == 3
    three.first.send_signal(signal.SIGTERM)
    three.first.wait(60)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert "stopping: 5 s for running requests" in three.log.read_text()
    assert not [line for line in three.log.read_text().splitlines() if line.startswith("msa: ") or "could not" in line]


def test_devices_of_ranks(monkeypatch):
    assert device_of_ranks("cuda:1") is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [device_of_ranks(name) for name in ("auto", "cuda", "cpu")] == [None, None, "cpu"]
    with pytest.raises(UsageError, match="each process of torchrun's has its own; give --device cuda"):
        device_of_ranks("cuda:1")
