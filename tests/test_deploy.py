"""The files in ``deploy/``, and what their documentation names: all of it must exist."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import msa
from msa.cli.main import build_parser
from msa.serving.keys import find_key, read_keys

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = {name: (ROOT / name).read_text() for name in ("deploy/README.md", "docs/mcp.md")}
NEEDLE = "One of the special magic numbers for wandering-age is: 1234567."
QUESTION = "What is the special magic number for wandering-age mentioned in the provided text?"


def parse(words):
    """The arguments of an ``msa`` command line, which the command line itself must accept."""
    try:
        return build_parser().parse_args(words)
    except SystemExit as stop:
        pytest.fail(f"msa {shlex.join(words)}: exit {stop.code}")


def instructions():
    """Instructions of the Dockerfile: word and the rest, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def compose():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def unit():
    """Lines of the systemd unit: the last value of each setting."""
    lines = [line for line in (DEPLOY / "msa.service").read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def extras_in(text):
    return {extra for group in re.findall(r"memory-sparse-attention\[([\w,-]+)\]", text) for extra in group.split(",")}


def test_the_image_runs_a_command_that_exists():
    found = dict(instructions())
    command = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert command[0] in PROJECT["scripts"]
    args = parse(command[1:])
    assert f"EXPOSE {args.port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{args.port}/health" in found["HEALTHCHECK"]
    assert args.root in json.loads(found["VOLUME"])
    assert args.host == "0.0.0.0"
    assert dict(line.split("=", 1) for line in found["ENV"].split())["MSA_CACHE"] in json.loads(found["VOLUME"])


def test_the_image_is_built_from_what_is_there():
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    sources = [source for group in copied for source in group]
    assert {"pyproject.toml", "src"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert let_in == set(sources)
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= set(sources), "the package's build reads them"
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    torch = next(name for name in PROJECT["dependencies"] if name.startswith("torch"))
    assert f'"{torch}"' in DOCKERFILE
    assert arguments["VARIANT"] == "cpu"
    assert "USER msa" in DOCKERFILE.split("FROM")[-1], "it must not run as root"


def test_shell_in_the_image_is_sound():
    for word, rest in instructions():
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def run_in_the_image(word, tmp_path, **arguments):
    """What the programs in the instruction that names ``word`` are asked, when they succeed."""
    (instruction,) = [rest for kind, rest in instructions() if kind == "RUN" and word in rest]
    for program in ("pip", "apt-get", "rm"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    env = {"PATH": str(tmp_path), **arguments}
    done = subprocess.run(["/bin/sh", "-c", instruction], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("variant", "index", "options"),
    [
        ("cpu", "", ""),
        ("cuda", "", ""),
        ("cpu", "https://wheels.example/cpu", "--index-url https://wheels.example/cpu "),
        ("cuda", "https://wheels.example/cu", "--index-url https://wheels.example/cu "),
    ],
)
def test_torch_is_found_where_the_build_is_told(tmp_path, variant, index, options):
    asked = run_in_the_image("torch>=", tmp_path, VARIANT=variant, TORCH_INDEX=index)
    assert asked == [f"pip install {options}torch>=2.6"]


def test_the_variant_for_gpus_can_compile_kernels(tmp_path):
    """Triton needs a C compiler where it runs, and a folder to keep and load what it makes."""
    assert run_in_the_image("gcc", tmp_path, VARIANT="cpu") == []
    _, install, _ = run_in_the_image("gcc", tmp_path, VARIANT="cuda")
    assert {"gcc", "libc6-dev"} <= set(install.split())
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert last.index("\nARG VARIANT=") < last.index("gcc"), "of no use in a stage that is not kept"
    environment = dict(line.split("=", 1) for line in dict(instructions())["ENV"].split())
    assert str(Path(environment["TRITON_CACHE_DIR"]).parent) in json.loads(dict(instructions())["VOLUME"])
    settings = unit()
    variables = dict(word.split("=", 1) for word in settings["Environment"].split())
    assert variables["TRITON_CACHE_DIR"].startswith(f"%C/{settings['CacheDirectory']}/")


def test_compose_keeps_the_cache_where_it_can_be_written():
    for name, service in compose()["services"].items():
        assert "cache:/cache" in service["volumes"], name


def test_compose_runs_commands_that_exist():
    services = compose()["services"]
    assert set(services) == {"msa", "replica", "mcp", "cuda"}
    for name, service in services.items():
        args = parse(service["command"])
        (published,) = service["ports"]
        assert published.startswith("127.0.0.1:")
        assert published.endswith(f":{args.port}")
        assert args.host == "0.0.0.0"
        assert args.keys == "/run/secrets/keys"
        targets = {volume.split(":")[1] for volume in service["volumes"]}
        folder = args.memory if name == "mcp" else args.root
        assert any(folder == target or folder.startswith(f"{target}/") for target in targets)
        if getattr(args, "drain", 0):
            assert int(service["stop_grace_period"].rstrip("s")) > args.drain
        if "build" in service:
            build = service["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
            assert set(build["args"]) <= {rest.split("=")[0] for word, rest in instructions() if word == "ARG"}


def test_compose_has_one_writer():
    services = compose()["services"]
    for name in ("replica", "mcp"):
        assert parse(services[name]["command"]).read_only
        assert "memories:/memories:ro" in services[name]["volumes"]
    assert not parse(services["msa"]["command"]).read_only
    assert services["cuda"]["profiles"] == ["cuda"], "two writers must not start together"
    first, last = map(int, re.search(r":(\d+)-(\d+):", services["replica"]["ports"][0]).groups())
    assert last - first + 1 >= services["replica"]["deploy"]["replicas"] > 1


def test_files_that_compose_and_the_unit_read_have_examples():
    described = compose()
    needed = {described["services"]["msa"]["env_file"], described["secrets"]["keys"]["file"]}
    assert needed == {"msa.env", "keys"}
    assert all((DEPLOY / f"{name}.example").exists() for name in needed)
    assert unit()["EnvironmentFile"] == "-/etc/msa/msa.env"
    assert unit()["LoadCredential"] == "keys:/etc/msa/keys"


def test_example_keys_are_read_and_open_nothing(tmp_path):
    copy = tmp_path / "keys"
    shutil.copy(DEPLOY / "keys.example", copy)
    copy.chmod(0o600)
    keys = read_keys(copy)
    assert [(key.memories, key.read_only) for key in keys] == [
        (("*",), False),
        (("notes", "work-*"), False),
        (("notes",), True),
    ]
    words = {word for line in copy.read_text().splitlines() for word in line.split()}
    assert not any(find_key(keys, word) for word in words), "the example must hold no key that works"


def test_variables_are_documented():
    known = (ROOT / "docs" / "environment.md").read_text()
    text = (DEPLOY / "msa.env.example").read_text() + DOCKERFILE + (DEPLOY / "msa.service").read_text()
    variables = set(re.findall(r"\b(MSA_[A-Z_]+|TRITON_[A-Z_]+|OMP_NUM_THREADS)\b", text + PAGES["docs/mcp.md"]))
    assert variables
    assert {name for name in variables if f"`{name}`" not in known} == set()


def test_the_unit_runs_a_command_that_exists():
    settings = unit()
    program, *words = shlex.split(settings["ExecStart"])
    assert Path(program).name in PROJECT["scripts"]
    args = parse(words)
    assert args.host == "127.0.0.1"
    assert args.root == f"%S/{settings['StateDirectory']}"
    assert args.keys == f"%d/{settings['LoadCredential'].split(':')[0]}"
    assert int(settings["TimeoutStopSec"]) > args.drain


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    program = shlex.split(unit()["ExecStart"])[0]
    copy = tmp_path / "msa.service"
    copy.write_text((DEPLOY / "msa.service").read_text().replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if "msa.service" in line]  # other units are not ours
    assert about_it == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_what_exists(page):
    text = PAGES[page]
    assert extras_in(text) <= set(PROJECT["optional-dependencies"])
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)
    assert [link for link in links if not (folder / link).exists()] == []
    for line in re.findall(r"^msa .*$", text, re.MULTILINE):
        parse(shlex.split(line, comments=True)[1:])
    for line in re.findall(r"^(?:docker build|docker compose).*$", text, re.MULTILINE):
        file = re.search(r"-f (\S+)", line)[1]
        assert (ROOT / file).exists()
        if profile := re.search(r"--profile (\w+)", line):
            assert any(profile[1] in service.get("profiles", ()) for service in compose()["services"].values())
    for example in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        for server in json.loads(example)["mcpServers"].values():
            if "args" in server:
                parse(server["args"])


def test_the_page_of_mcp_names_the_tools_and_limits():
    from msa.serving.mcp import McpSettings

    settings = McpSettings(memory="m")
    text = PAGES["docs/mcp.md"]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == {"search", "fetch", "ask", "add"}
    assert f"{settings.max_query_characters:,} characters" in text
    assert f"document {settings.max_document_bytes >> 20} MiB" in text
    assert f"{settings.max_request_bytes >> 20} MiB" in text
    assert f"{settings.max_waiting} may wait" in text
    assert f"{settings.call_timeout_s:.0f} s" in text
    assert f"{settings.top_k} of them" in text
    assert settings.max_fetched_characters == 1_000_000


RAY_SCRIPT = """
import sys
import openai, ray
from ray import serve
sys.path.insert(0, sys.argv[1])
import ray_serve
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[3])})
serve.run(ray_serve.application({"root": sys.argv[2], "replicas": "2"}))
client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[3]}/v1", api_key="sk-for-the-replicas")
answer = client.chat.completions.create(model="msa-tiny@notes", messages=[{"role": "user", "content": sys.argv[4]}])
print("ANSWER", answer.choices[0].message.content)
try:
    openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[3]}/v1", api_key="sk-wrong").models.list()
except openai.AuthenticationError:
    print("REFUSED")
serve.shutdown()
ray.shutdown()
"""


def test_ray_s_queues_are_bounded_by_what_a_replica_admits(monkeypatch, tmp_path):
    """Without Ray: what it would be told."""
    from unittest.mock import MagicMock

    from msa.serving import ServerSettings

    ray = MagicMock()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "ray_serve", raising=False)
    settings = ServerSettings(root=tmp_path, read_only=True, max_concurrent=3, max_waiting=5)
    importlib.import_module("ray_serve").build(settings)
    told = ray.serve.deployment.return_value.options.call_args.kwargs
    assert 8 < told["max_ongoing_requests"] <= 16
    assert 0 < told["max_queued_requests"] <= 8
    monkeypatch.delitem(sys.modules, "ray_serve")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_replicas_under_ray_serve(tmp_path):
    import socket

    with msa.Memory.open(tmp_path / "notes", "msa-tiny") as memory:
        memory.add([{"id": "ages", "text": NEEDLE}])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", RAY_SCRIPT, str(ROOT / "examples"), str(tmp_path), str(port), QUESTION],
        env={**os.environ, "MSA_API_KEYS": "sk-for-the-replicas", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "ANSWER 1234567" in done.stdout, done.stderr[-3000:]
    assert "REFUSED" in done.stdout
