"""The comparison over real documents: what is asked, and that one command asks it."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("debian/request", "wordnet/gloss")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("real_documents", ROOT / "benchmarks" / "real_documents.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    """A folder as recipes/build_data.py writes it: 60 documents of two real sources, 10 made-up ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    corpus, questions = [], []
    for number in range(60):
        kind = KINDS[number % 2]
        name, word = f"{kind.split('/')[0]}/{number}", f"word{number}"
        corpus.append({"id": name, "text": f"{word}: a tool of number {number}.", "source": kind.split("/")[0]})
        questions.append({"query": f"Which tool is {number}?", "positives": [name], "answer": word, "source": kind})
    for number in range(10):
        corpus.append({"id": f"biographies/{number}", "text": "Born.", "source": "biographies"})
    no_answer = {"query": "?", "positives": ["debian/0"], "answer": "elsewhere", "source": KINDS[0]}
    unsaid = {"query": "What is it?", "positives": ["debian/0"], "source": "debian/name"}
    for file, rows in (("corpus.jsonl", corpus), ("test.jsonl", [no_answer, unsaid, *questions])):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_questions_of_each_kind_whose_answer_can_be_read(benchmark, data):
    made = benchmark.real_question_set(data, 50, 20)
    assert benchmark.real_question_set(data, 50, 20) == made
    assert len(made.documents) == 50
    assert "Born." not in made.documents.values()
    assert [question.metadata["kind"] for question in made.questions] == [*KINDS] * 10
    for question in made.questions:
        assert question.answers[0] in made.documents[question.positives[0]]
        assert question.answers[0] not in question.positives[0]  # an id tells nothing
    order = [list(made.documents).index(question.positives[0]) for question in made.questions]
    assert order != sorted(order)
    with pytest.raises(ValueError, match="has 60 documents and 20 questions for 61 and 20"):
        benchmark.real_question_set(data, 61, 20)


def test_one_command_asks_every_way_and_goes_on(benchmark, data, tmp_path, capsys, monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.setattr(benchmark, "MOST", 30)
    monkeypatch.setattr(benchmark, "SMALL", 40)
    monkeypatch.setattr(benchmark, "MAX_NEW_TOKENS", 4)
    ways = ["msa", "msa-int8", "msa-dot", "rag-bm25@1", "full"]
    arguments = ["--data", data, "--out", tmp_path / "out", "--model", "msa-tiny", "--documents", 50, "--most", 2]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in ("", *arguments, "--ways", *ways)])
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            benchmark.main()
        assert end.value.code == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [(row["answerer"], row["questions"]) for row in found["rows"]] == [(way, 2) for way in ways] * 2
    assert [(test["ours"], test["tests"]) for test in found["tests"]] == [("msa", [])] * 2  # too few questions
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 2 + 2 * 2 * len(ways)  # settings, where it was measured, and records
    assert set(benchmark.WAYS) <= set(_ways(capsys))


def test_what_the_default_model_was_trained_on_is_noted(benchmark, tmp_path):
    given = {"encoder": None, "documents": 50, "most": 2, "ways": ["msa"], "out": tmp_path}
    arguments = benchmark.command(argparse.Namespace(**given, model=None), tmp_path)
    assert [arguments[place + 1] for place, part in enumerate(arguments) if part == "--note"] == [*benchmark.NOTES]
    assert "--note" not in benchmark.command(argparse.Namespace(**given, model="msa-tiny"), tmp_path)


def _ways(capsys):
    from msa.cli.main import main

    capsys.readouterr()
    main(["eval", "ways"])
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()]
