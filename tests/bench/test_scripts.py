"""Scripts in benchmarks/: what they store says what made it, and memory is that of a process that has asked nothing."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAMPS = ("**made_by()", "environment(", '"command": command()')


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_a_result_says_its_command_and_no_folder_of_the_machine(script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--folder", str(tmp_path / "a b"), "--out", "results/x.json"])
    made = script("storing").made_by()
    assert made["command"] == "python benchmarks/x.py --folder 'a b' --out results/x.json"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert "commit" in made


def test_every_script_that_stores_says_so():
    """Those that write to ``--out`` what performance.md or report.md shows; the others make no number."""
    stores = {path.stem for path in BENCHMARKS.glob("*.py") if '"--out"' in path.read_text()} - {
        "report",
        "real_documents",
    }
    assert {"encode_decode", "routing_memory", "bank_scale", "routing_scorer"} <= stores
    silent = {name for name in stores if not any(stamp in (BENCHMARKS / f"{name}.py").read_text() for stamp in STAMPS)}
    assert silent == set()


def test_a_stored_result_says_it_too(tmp_path):
    options = ["--chunks", "64", "--repeats", "1", "--out", str(tmp_path / "memory.json")]
    subprocess.run([sys.executable, str(BENCHMARKS / "routing_memory.py"), *options], check=True, capture_output=True)
    stored = json.loads((tmp_path / "memory.json").read_text())
    assert stored["command"] == "python routing_memory.py --chunks 64 --repeats 1 --out memory.json"
    assert stored["date"]


def test_each_length_has_its_memory_from_a_process_of_its_own(script, monkeypatch):
    scorer, asked = script("routing_scorer"), []

    def printed_by(command):
        assert command[command.index("--cosine") + 1] == "0.9"
        lengths = command[command.index("--question-tokens") + 1 :]
        asked.append(lengths)
        return 2.5 if lengths[-1] == "--memory" else {f"{tokens} tokens": {"best": 1.0} for tokens in lengths}

    monkeypatch.setattr(scorer, "printed_by", printed_by)
    args = SimpleNamespace(question_tokens=[32, 8], repeats=1, device="cpu", plain_chunks=1, memory=False)
    found = scorer.in_own_process(args, "default", 64, "exact", 0.9)
    assert asked == [["8", "32"], ["8", "--memory"], ["32", "--memory"]]
    assert found == {f"{tokens} tokens": {"best": 1.0, "peak_added_mib": 2.5} for tokens in (8, 32)}
    args.memory = True
    assert scorer.in_own_process(args, "default", 64, "exact", 0.9)["32 tokens"] == {"peak_added_mib": 2.5}
    args.device, args.memory = "cuda", False
    assert "peak_added_mib" not in scorer.in_own_process(args, "default", 64, "exact", 0.9)["8 tokens"]


def test_memory_is_found_however_little_the_last_question_took(script):
    """In one process the second length finds the first one's buffers and seems to take nothing."""
    scorer = script("routing_scorer")
    command = [sys.executable, scorer.__file__, "--shapes", "default", "--measure", "exact", "--chunks", "8192"]
    assert scorer.printed_by([*command, "--memory", "--question-tokens", "8"]) > 1
