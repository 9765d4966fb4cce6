"""benchmarks/gpu_memory.py on a CPU: sizes are reached, what ended each is said, each question is counted once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_memory.py"


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for file in range(6):
        words = " ".join(f"word{file * 1000 + i}" for i in range(200))
        (folder / f"{file}.md").write_text(words)
    (folder / "again.md").write_text((folder / "0.md").read_text())
    (folder / "unreadable.md").write_bytes(b"\xff\xfe" * 50)
    (folder / "other.bin").write_text("not one of the suffixes")
    return folder


def test_a_memory_grows_until_the_texts_are_used_up(tmp_path, texts):
    out, memory = tmp_path / "out.json", tmp_path / "memory"
    options = ["--model", "msa-tiny", "--tokens", "600", "100000", "--document-tokens", "128", "--tiers", "int8"]
    paths = ["--folder", str(memory), "--texts", str(texts), "--out", str(out)]
    subprocess.run([sys.executable, SCRIPT, *paths, *options], check=True, capture_output=True, timeout=300)
    result = json.loads(out.read_text())
    assert result["texts"]["files"] == 6
    first, last = result["sizes"]
    assert (first["ended"], last["ended"]) == ("size", "texts")
    assert 594 <= first["tokens"] < last["tokens"]
    assert last["documents"] == result["texts"]["documents"]
    assert first["adding"]["tokens"] + last["adding"]["tokens"] == last["tokens"]
    for size in (first, last):
        assert size["found"]["int8"] == {
            name: {**counts, "questions": first["found"]["int8"][name]["questions"]}
            for name, counts in size["found"]["int8"].items()
        }
        assert size["ask"]["first_text_seconds"] <= size["ask"]["total_seconds"]
    assert str(tmp_path) not in out.read_text()
    assert not memory.exists()
