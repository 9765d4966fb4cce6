"""The arguments of ``msa serve``, and what stops it from starting."""

import argparse
import builtins
import socket
import sys

import pytest
import torch

import msa
from msa.cli import serve as command
from msa.cli.options import ArgumentParser, UsageError
from msa.routing import Tiers
from msa.serving import ServerSettings, ServingError, create_app, serve
from msa.serving.mcp import McpSettings
from msa.serving.mcp.tools import MemoryTools
from msa.serving.services import Services, model_of


def settings(*arguments, monkeypatch=None):
    parser = ArgumentParser(prog="msa")
    command.register(parser.add_subparsers(parser_class=ArgumentParser))
    return command.settings_of(parser.parse_args(["serve", *map(str, arguments)]))


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    monkeypatch.delenv("MSA_API_KEYS", raising=False)


def test_arguments(tmp_path, monkeypatch):
    plain = settings(tmp_path)
    assert (plain.host, plain.port, plain.keys, plain.read_only) == ("127.0.0.1", 8000, (), False)
    assert plain.allowed_hosts == ("127.0.0.1", "::1", "localhost")
    monkeypatch.setenv("MSA_API_KEYS", "sk-from-environment")
    keys = tmp_path / "keys"
    keys.write_text("sk-from-the-file a read\n")
    keys.chmod(0o600)
    given = settings(
        tmp_path, "--host", "0.0.0.0", "--port", 0, "--model", "msa-tiny", "--keys", keys, "--read-only",
        "--max-upload", "2MB", "--max-size", "1GB", "--timeout", 7, "--cors-origin", "https://a", "--routing-keys", "int8",
    )  # fmt: skip
    assert [key.memories for key in given.keys] == [("*",), ("a",)]
    assert (given.port, given.model, given.read_only, given.request_timeout_s) == (0, "msa-tiny", True, 7)
    assert (given.max_upload_bytes, given.max_memory_bytes) == (2_000_000, 1_000_000_000)
    assert (given.cors_origins, given.tiers.routing_keys, given.allowed_hosts) == (("https://a",), "int8", ())


def test_names_of_a_proxy_are_added_to_this_machine_s(tmp_path):
    given = settings(tmp_path, "--allowed-host", "memories.example", "--allowed-host", "other")
    assert given.allowed_hosts == ("127.0.0.1", "::1", "localhost", "memories.example", "other")


@pytest.mark.parametrize(
    "arguments", [("--port", "70000"), ("--port", "x"), ("--timeout", "0"), ("--max-size", "much")]
)
def test_wrong_arguments(tmp_path, arguments):
    with pytest.raises(SystemExit):
        settings(tmp_path, *arguments)


@pytest.mark.parametrize(
    "url",
    ["", "memories.example", "//memories.example", "ftp://a", "https://", "https:///a", "https://a/?b=c", "https://a/#b",
     "https://me:pw@a", "https://a b", "https://a:x", "https://a:99999", "http://[::1"],
)  # fmt: skip
def test_public_urls_that_are_none(tmp_path, url, capsys):
    with pytest.raises(SystemExit) as error:
        settings(tmp_path, "--public-url", url)
    assert error.value.code == 2
    assert f"such as https://memories.example/msa; got {url!r}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a public URL begins with"):
        ServerSettings(root=tmp_path, public_url=url)


@pytest.mark.parametrize("url", ["https://memories.example", "http://[::1]:8000", "https://memories.example/msa/"])
def test_public_urls(tmp_path, url):
    assert settings(tmp_path, "--public-url", url).public_url == url


def test_an_empty_root():
    with pytest.raises(UsageError, match="empty"):
        settings("")


def test_what_stops_it_from_starting(tmp_path, tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = ServerSettings(root=tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ServingError, match="cannot listen on 127.0.0.1 port"):
            serve(busy, tiny)
    with pytest.raises(ServingError, match="no folder .* to serve"):
        serve(ServerSettings(root=tmp_path / "missing", port=0, read_only=True), tiny)
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="cannot be written"):
        serve(ServerSettings(root=tmp_path / "file", port=0), tiny)
    with pytest.raises(msa.MSAError, match="no model"):
        serve(ServerSettings(root=tmp_path, port=0, model="./nothing"))
    serve_again = ServerSettings(root=tmp_path, port=0, model="./nothing")
    with pytest.raises(msa.MSAError, match="no model"):  # and not that it is served already
        serve(serve_again)


def test_the_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("fastapi", "uvicorn"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    for module in ("msa.serving.app", "msa.serving.server"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    for start in (create_app, serve):
        with pytest.raises(ServingError, match=r"not installed \((fastapi|uvicorn).*\[serve\]"):
            start(ServerSettings(root=tmp_path))
    assert not (tmp_path / ".msa-server").exists()


def test_the_model_is_the_one_that_made_the_memories(tmp_path, tiny, caplog):
    from tiny import tiny_model

    assert model_of(tmp_path) is None
    assert model_of(tmp_path / "missing") is None
    msa.Memory.open(tmp_path / "a", model=tiny).close()
    (tmp_path / "no memory").mkdir()
    assert model_of(tmp_path) == "msa-tiny"
    msa.Memory.open(tmp_path / "b", model=tiny_model()).close()
    assert model_of(tmp_path) is None
    assert "different models (msa-tiny, tiny)" in caplog.text


def test_help_is_complete():
    parser = ArgumentParser(prog="msa")
    commands = parser.add_subparsers(parser_class=ArgumentParser)
    command.register(commands)
    (options,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    text = options.choices["serve"].format_help()
    assert "msa serve memories/" in text
    assert "--read-only" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_page_locked_memory_without_a_gpu(tmp_path):
    tiers = Tiers(content="pinned")
    for start in (
        lambda: Services(ServerSettings(root=tmp_path, model="./nothing/here", tiers=tiers)),
        lambda: MemoryTools(McpSettings(memory=tmp_path / "notes", model="./nothing/here", tiers=tiers)),
    ):
        with pytest.raises(ValueError, match="page-locked for a CUDA GPU, but none is visible"):
            start()
