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


@pytest.fixture
def questions(tmp_path):
    """Twelve documents, and of every one a question that quotes it whole; those of one source have no answer."""
    rows = [{"id": f"d{i}", "text": " ".join(f"other{100 * i + n}" for n in range(12))} for i in range(12)]
    asked = [{"query": row["text"], "positives": [row["id"]], "source": "no/answers"} for row in rows]
    for question in asked[::2]:
        question |= {"source": "made/up", "answer": question["query"]}
    for name, lines in (("corpus", rows), ("questions", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--corpus", str(tmp_path / "corpus.jsonl"), "--questions", str(tmp_path / "questions.jsonl")]


def test_held_out_questions_lie_at_the_beginning_in_the_middle_and_at_the_end(tmp_path, texts, questions):
    out = tmp_path / "out.json"
    options = ["--model", "msa-tiny", "--tokens", "900", "2500", "--document-tokens", "128", "--tiers", "exact"]
    paths = ["--folder", str(tmp_path / "memory"), "--texts", str(texts), "--out", str(out)]
    command = [sys.executable, SCRIPT, *paths, *options, *questions, "--answered", "2"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    first, last = json.loads(out.read_text())["sizes"]
    assert last["documents"] > first["documents"] + 8
    assert {name.rpartition(", ")[2] for name in first["questions"]["exact"]} == {"beginning"}
    found = last["questions"]["exact"]
    places = ("beginning", "middle", "end")
    assert {place: found[place]["questions"] for place in places} == dict.fromkeys(places, 4)
    for name, scores in found.items():
        assert scores["recall@1"] <= scores["recall@5"] <= scores["recall@16"]
        assert scores["asked"] <= (0 if name.startswith("no, ") else 2)
        assert ("answered" in scores) == (scores["asked"] > 0)
    assert sum(scores["questions"] for name, scores in found.items() if name.startswith("made, ")) == 6
    assert sum(found[place]["recall@16"] for place in places) > 1


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
        assert size["ask"]["int8"]["first_text_seconds"] <= size["ask"]["int8"]["total_seconds"]
    assert str(tmp_path) not in out.read_text()
    assert not memory.exists()
