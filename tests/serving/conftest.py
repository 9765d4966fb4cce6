import contextlib
import sys
from pathlib import Path

import pytest

import msa
from msa.serving import ServerSettings

sys.path.insert(0, str(Path(__file__).parent))

from serving_helpers import DOCUMENTS, Running


@pytest.fixture(scope="session")
def tiny():
    """The trained tiny model."""
    return msa.load("msa-tiny")


@pytest.fixture(scope="session")
def start(tiny):
    """Start servers of one's own, in a ``with``."""

    @contextlib.contextmanager
    def running(root, **settings):
        server = Running(ServerSettings(root=root, port=0, **settings), tiny)
        try:
            yield server
        finally:
            server.stop()

    return running


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    """One server a module, with a memory ``known``; tests use other memories to change."""
    with start(tmp_path_factory.mktemp("served")) as server, server.http() as http:
        assert http.put("/v1/memories/known", json={}).status_code == 201
        assert http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS}).status_code == 200
        yield server


@pytest.fixture
def http(server):
    with server.http() as client:
        yield client


@pytest.fixture
def memory(http, request):
    """A fresh memory, named after the test."""
    name = f"m-{abs(hash(request.node.nodeid)):x}"[:40]
    assert http.put(f"/v1/memories/{name}", json={}).status_code == 201
    yield f"/v1/memories/{name}"
    http.delete(f"/v1/memories/{name}")
