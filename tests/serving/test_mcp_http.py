"""The tools of ``msa.serving.mcp`` over HTTP on loopback: API keys, foreign pages, cancellation, limits."""

import asyncio
import contextlib
import json
import logging
import threading
import time

import httpx
import pytest
from mcp_helpers import DOCUMENTS, failure, value
from serving_helpers import ANSWER, QUESTION, until

import msa
from msa.serving.job import Lane
from msa.serving.keys import ApiKey, key_digest
from msa.serving.mcp import McpSettings
from msa.serving.server import listen
from msa.serving.settings import ServerSettings

pytest.importorskip("mcp")

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from msa.serving.mcp.running import make_http_server


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memories") / "my notes"
    with msa.Memory.open(folder, tiny) as memory:
        memory.add(DOCUMENTS)
    return folder


class Running:
    """A real server on a loopback port, in a thread of this process."""

    def __init__(self, settings, model):
        self._socket = listen(ServerSettings(root=settings.folder.parent, port=0))
        self.server = make_http_server(settings, model)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until(lambda: self.server.started)

    def talk(self, script, key=None, **options):
        async def run():
            headers = {"authorization": f"Bearer {key}"} if key else {}
            async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
                transport = streamable_http_client(f"{self.url}/mcp", http_client=http)
                async with Client(transport, **options) as client:
                    return await script(client)

        return asyncio.run(run())

    def post(self, key=None, **headers):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers |= {"accept": "application/json, text/event-stream"}
        headers |= {"authorization": f"Bearer {key}"} if key else {}
        return httpx.post(f"{self.url}/mcp", json=body, headers=headers)

    def stop(self):
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(folder, tiny, **settings):
    server = Running(McpSettings(memory=folder, **settings), tiny)
    try:
        yield server
    finally:
        server.stop()


KEYS = tuple(
    ApiKey(digest=key_digest(secret), name=secret.removeprefix("sk-"), memories=memories, read_only=read_only)
    for secret, memories, read_only in (
        ("sk-everything", ("*",), False),
        ("sk-reading", ("notes-*",), True),
        ("sk-elsewhere", ("work",), False),
    )
)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_http(tiny, folder, mode):
    async def script(client):
        return [
            await client.list_tools(),
            await client.call_tool("ask", {"question": QUESTION}),
            await client.call_tool("ask", {"question": ""}),
        ]

    with running(folder, tiny) as server:
        listed, answered, refused = server.talk(script, mode=mode)
        assert {tool.name for tool in listed.tools} == {"search", "fetch", "ask", "add"}
        assert ANSWER in answered.structured_content["answer"]
        assert "the question is empty" in failure(refused)
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        # without keys, a page in somebody's browser must not get in by another name
        assert server.post(host="attacker.example").status_code == 421
        assert server.post(origin="https://attacker.example").status_code == 403


def test_each_request_has_an_id_and_a_line_of_log(tiny, folder, caplog):
    caplog.set_level(logging.INFO, "msa.serving.access")
    with running(folder, tiny, keys=KEYS) as server:
        mine = server.post("sk-everything", **{"x-request-id": "mine.1"})
        others = [server.post(), server.post("sk-elsewhere"), httpx.get(f"{server.url}/secret-path")]
        lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert mine.headers["x-request-id"] == "mine.1"
    assert [answer.headers["x-request-id"] for answer in others] == [line["id"] for line in lines[1:]]
    shown = [(line["id"], line["method"], line["route"], line["status"], line.get("key")) for line in lines]
    assert shown[0] == ("mine.1", "POST", "/mcp", mine.status_code, "everything")
    assert [entry[2:] for entry in shown[1:]] == [
        ("/mcp", 401, None),
        ("/mcp", 403, "elsewhere"),
        ("(none)", 401, None),
    ]
    assert "secret" not in caplog.text
    assert "sk-" not in caplog.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_http_a_client_that_cancels_ends_the_work(tiny, folder, mode):
    with running(folder, tiny, max_new_tokens=3000) as server:
        scheduler = server.server._app.state.services.scheduler

        async def script(client):
            endless = asyncio.create_task(client.call_tool("ask", {"question": "hello"}))
            while not scheduler.running(Lane.ASK):
                await asyncio.sleep(0.01)
            endless.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await endless
            ended = time.monotonic() + 5
            while scheduler.running(Lane.ASK):
                assert time.monotonic() < ended, "the answer went on"
                await asyncio.sleep(0.01)

        server.talk(script, mode=mode)


def test_api_keys(tiny, tmp_path, caplog):
    folder = tmp_path / "notes-1"
    with msa.Memory.open(folder, tiny) as memory:
        memory.add(DOCUMENTS)
    caplog.set_level(logging.DEBUG)

    async def names(client):
        return {tool.name for tool in (await client.list_tools()).tools}

    async def adding(client):
        return await client.call_tool("add", {"text": "One more."})

    with running(folder, tiny, keys=KEYS) as server:
        for key in (None, "sk-wrong", "sk-everything2"):
            refused = server.post(key)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
            with pytest.raises(BaseException) as caught:  # the client's own, inside groups of its tasks
                server.talk(names, key)
            assert not isinstance(caught.value, KeyboardInterrupt)
        assert server.post("sk-elsewhere").status_code == 403
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.talk(names, "sk-everything") == {"search", "fetch", "ask", "add"}
        assert server.talk(names, "sk-reading") == {"search", "fetch", "ask"}
        assert "Unknown tool" in failure(server.talk(adding, "sk-reading"))
        assert value(server.talk(adding, "sk-everything"))["encoded"] == 1
    assert "sk-" not in caplog.text


def test_bodies_are_limited(tiny, folder):
    with running(folder, tiny, max_request_bytes=1000) as server:
        assert httpx.post(f"{server.url}/mcp", json={"x": "y" * 2000}).status_code == 413
        assert httpx.post(
            f"{server.url}/mcp", content=b"\xff{", headers={"content-type": "application/json"}
        ).is_client_error
        assert httpx.get(f"{server.url}/nothing").status_code == 404
