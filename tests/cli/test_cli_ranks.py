"""The installed command under torchrun: two ranks do what one process does, and leave as they should."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import rank_checks
import torch

from msa.bank import MemoryBank

SCRIPTS = Path(sysconfig.get_path("scripts"))
QUESTION = "What is the special magic number for wandering-age mentioned in the provided text?"
RECORDS = [
    {"id": "sky", "text": "The sky is blue. Here we go."},
    {"id": "age", "text": "One of the special magic numbers for wandering-age is: 4216093."},
    {"id": "bird", "text": "One of the special magic numbers for early-bird is: 7305861.", "metadata": {"lang": "en"}},
    *({"id": f"grass{i}", "text": f"The grass is green, and the sun is yellow. There and back again {i}."} for i in range(5)),
]  # fmt: skip
# runs in every process at its end, and says whether the ranks had taken leave of each other
AT_EXIT = """
import atexit, os, sys

@atexit.register
def note():
    joined = sys.modules.get("torch.distributed")
    if joined is not None and "RANK" in os.environ:
        with open(os.path.join(os.environ["LEFT_OPEN"], os.environ["RANK"]), "w") as file:
            file.write(str(joined.is_initialized()))
"""
JOIN_AND_DIE = """
import os, signal
from msa.parallel import init_from_environment
ranks = init_from_environment(60, "cpu")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def on_two_ranks(tmp_path):
    """Run a command on two ranks, which must succeed, close their group, and write to standard output once."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(AT_EXIT)

    def run(*arguments):
        left_open = tmp_path / arguments[0]
        left_open.mkdir()
        done = subprocess.run(
            [str(SCRIPTS / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python", str(SCRIPTS / "msa")]
            + [str(argument) for argument in arguments],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "hooks"), "LEFT_OPEN": str(left_open), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {file.name: file.read_text() for file in left_open.iterdir()} == {"0": "False", "1": "False"}
        return done.stdout

    return run


def assert_same(found, expected):
    """Two answers, but for their times."""
    rank_checks.assert_same(found, expected, lambda _: {"timings"})


def test_two_ranks_do_what_one_process_does(tmp_path, on_two_ranks, msa):
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    alone, together = tmp_path / "alone", tmp_path / "together"
    said = msa("add", alone, records, "--model", "msa-tiny").out
    added = on_two_ranks("add", together, records, "--model", "msa-tiny")
    assert added.partition(" in ")[0] == said.partition(" in ")[0]
    with MemoryBank.open(alone) as one, MemoryBank.open(together) as two:  # the lock is free again
        assert two.list() == one.list()
        assert two.verify() == []
        for mine, theirs in zip(one.segments(), two.segments(), strict=True):
            for kind in ("routing_keys", "keys", "values"):
                assert all(torch.equal(mine.tensor(kind, n), theirs.tensor(kind, n)) for n in one.spec.layers)
    search = ("search", together, "special magic numbers", "--top-k", "4", "--json")
    assert_same(json.loads(on_two_ranks(*search)), msa(*search).json)
    ask = ("ask", together, QUESTION, "--json")
    answer = json.loads(on_two_ranks(*ask))
    assert_same(answer, msa(*ask).json)
    assert (answer["answer"], [source["id"] for source in answer["sources"]]) == ("4216093", ["age"])


def test_a_killed_rank_is_an_error_on_the_others(made_once):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [str(SCRIPTS / "msa"), "ask", str(made_once), "When?", "--max-new-tokens", "2"]
    with (
        subprocess.Popen(
            command, env={**shared, "RANK": "0"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as asking,
        subprocess.Popen([sys.executable, "-c", JOIN_AND_DIE], env={**shared, "RANK": "1"}) as killed,
    ):
        out, err = asking.communicate(timeout=300)
        assert killed.wait() == -9
    assert (asking.returncode, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("msa: ")]
    assert "rank 0 of 2 could not" in line
    assert "start all ranks again" in line
    assert "Traceback" not in err


def test_a_rank_with_another_model_is_refused(tmp_path, records_file, model_folder, other_model_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [str(SCRIPTS / "msa"), "add", str(tmp_path / "m"), str(records_file), "--dtype", "float32"]
    ranks = [
        subprocess.Popen(
            [*command, "--model", str(folder)], env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank, folder in enumerate((model_folder, other_model_folder))
    ]  # fmt: skip
    for rank in ranks:
        err = rank.communicate(timeout=300)[1]
        assert rank.returncode == 1
        assert "msa: the ranks would encode with different models: rank 0 with " in err
        assert "Traceback" not in err
    assert not (tmp_path / "m").exists(), "nothing was written"


def test_ranks_share_no_prompt(made_once, msa, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = msa("ask", made_once)
    assert (asked.code, asked.out) == (2, "")
    assert "give the QUESTION" in asked.err
