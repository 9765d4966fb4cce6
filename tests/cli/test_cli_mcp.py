"""``msa mcp``: its arguments, and real processes that speak MCP over standard input and output, and over HTTP."""

import asyncio
import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import msa as package
from msa.cli import mcp as command
from msa.cli.options import ArgumentParser, UsageError

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

NEEDLE = "One of the special magic numbers for wandering-age is: 1234567."
QUESTION = "What is the special magic number for wandering-age mentioned in the provided text?"
PROGRAM = [sys.executable, "-m", "msa.cli.main", "mcp"]
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memories") / "notes"
    with package.Memory.open(folder, "msa-tiny") as memory:
        memory.add([{"id": "ages", "text": NEEDLE}, {"id": "sky", "text": "The sky is blue."}])
    return folder


def settings(*arguments):
    parser = ArgumentParser(prog="msa")
    command.register(parser.add_subparsers(parser_class=ArgumentParser))
    return command.settings_of(parser.parse_args(["mcp", *map(str, arguments)]))


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("MSA_API_KEYS", "sk-from-environment")
    plain = settings(tmp_path / "notes")
    assert (plain.name, plain.read_only, plain.keys, plain.top_k) == ("notes", False, (), 10)
    keys = tmp_path / "keys"
    keys.write_text("sk-from-the-file notes read\n")
    keys.chmod(0o600)
    given = settings(
        tmp_path, "--http", "--host", "::1", "--port", 0, "--keys", keys, "--read-only", "--top-k", 3, "--hybrid",
        "--max-new-tokens", 7, "--timeout", 9, "--max-waiting", 0, "--model", "msa-tiny", "--content", "ram",
    )  # fmt: skip
    assert (given.host, given.port, given.read_only, given.top_k, given.hybrid) == ("::1", 0, True, 3, True)
    assert (given.max_new_tokens, given.call_timeout_s, given.max_waiting, given.tiers.content) == (7, 9, 0, "ram")
    assert [key.memories for key in given.keys] == [("*",), ("notes",)]


@pytest.mark.parametrize("arguments", [("--port", "8001"), ("--host", "0.0.0.0"), ("--keys", "file")])
def test_options_of_http_need_it(tmp_path, arguments):
    with pytest.raises(UsageError, match=f"{arguments[0]} is for clients that come over HTTP; add --http"):
        settings(tmp_path, *arguments)


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--top-k", "0"), ("--timeout", "soon")])
def test_wrong_arguments(tmp_path, arguments):
    with pytest.raises(SystemExit):
        settings(tmp_path, "--http", *arguments)


def test_an_empty_memory_name():
    with pytest.raises(UsageError, match="empty"):
        settings("")


def test_the_extra_that_is_missing_is_named(msa, memory, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == "mcp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.startswith("msa.serving.mcp.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    result = msa("mcp", memory)
    assert (result.code, result.out) == (1, "")
    assert "pip install 'memory-sparse-attention[mcp]'" in result.err


def test_a_memory_that_is_missing(msa, tmp_path):
    result = msa("mcp", tmp_path / "none", "--read-only")
    assert (result.code, result.out) == (1, "")
    assert len(result.err.splitlines()) == 1


def test_over_standard_input_and_output(memory, tmp_path):
    server = StdioServerParameters(command=PROGRAM[0], args=[*PROGRAM[1:], str(memory)], env=dict(os.environ))

    async def run(errors):
        async with Client(stdio_client(server, errlog=errors)) as client:
            listed = await client.list_tools()
            added = await client.call_tool("add", {"documents": [{"id": "grass", "text": "The grass is green."}]})
            asked = await client.call_tool("ask", {"question": QUESTION})
            found = await client.call_tool("search", {"query": QUESTION})
            wrong = await client.call_tool("fetch", {"id": "none"})
            endless = asyncio.create_task(client.call_tool("ask", {"question": "hello"}))
            await asyncio.sleep(0.5)
            endless.cancel()
            again = await client.call_tool("fetch", {"id": "grass"})
            return listed, added, asked, found, wrong, again

    with open(tmp_path / "errors", "w+", encoding="utf-8") as errors:
        listed, added, asked, found, wrong, again = asyncio.run(run(errors))
        errors.seek(0)
        assert errors.read() == ""
    assert {tool.name for tool in listed.tools} == {"search", "fetch", "ask", "add"}
    assert added.structured_content["ids"] == ["grass"]
    assert "1234567" in asked.content[0].text
    assert json.loads(found.content[0].text)["results"][0]["id"] == "ages"
    assert wrong.is_error
    assert json.loads(again.content[0].text)["url"] == "msa://notes/grass"


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_standard_output_carries_the_protocol_alone(memory, ctrl_c):
    lines = [
        json.dumps(HELLO),
        "this is no JSON",
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
        json.dumps({"jsonrpc": "2.0", "id": 3, "method": "no/such/method"}),
    ]
    process = subprocess.Popen(
        [*PROGRAM, str(memory), "--verbose"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write("\n".join(lines) + "\n")
    process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for _ in range(3)]
    if ctrl_c:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
        process.stdin.close()
        return
    out, err = process.communicate(timeout=60)  # which closes its standard input: the client is gone
    assert out == "" or all(json.loads(line)["jsonrpc"] == "2.0" for line in out.splitlines())
    assert {answer["jsonrpc"] for answer in answers} == {"2.0"}
    assert {2, 3} <= {answer.get("id") for answer in answers} | {
        json.loads(line).get("id") for line in out.splitlines()
    }
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_sigterm_ends_the_server_over_http(memory):
    process = subprocess.Popen(
        [*PROGRAM, str(memory), "--http", "--port", "0", "--read-only"],
        env={**os.environ, "MSA_API_KEYS": "sk-for-everything"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        port = re.search(r"serving the memory notes on http://127\.0\.0\.1:(\d+)/mcp", line)
        assert port, line
        import httpx

        end = time.monotonic() + 30
        while True:
            try:
                response = httpx.post(f"http://127.0.0.1:{port[1]}/mcp", json={})
                break
            except httpx.ConnectError:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert response.status_code == 401
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "Traceback" not in err
    finally:
        process.kill()
