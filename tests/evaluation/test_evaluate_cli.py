"""``msa eval`` from end to end with the small trained model: runs, reports, pictures, resumption, refusals."""

import io
import json
from itertools import pairwise

import pytest
from eval_command import KEYS, NEEDLE, QUESTION, run

from msa.cli.console import working


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


@pytest.fixture
def question_set(tmp_path):
    """A folder of our own format: three needles among other texts, and a question nothing answers."""
    folder = tmp_path / "questions"
    folder.mkdir()
    documents = [
        {"id": key, "text": f"The grass is green. {NEEDLE.format(key=key, value=v)}"} for key, v in KEYS.items()
    ]
    documents += [{"id": f"other-{i}", "text": f"Here we go, number {i}. The sky is blue."} for i in range(6)]
    questions = [
        {"id": key, "question": QUESTION.format(key=key), "answers": [value], "ids": [key]}
        for key, value in KEYS.items()
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    return folder


def test_scaling_grows_one_memory_and_goes_on_from_it(tmp_path, capsys):
    out = tmp_path / "run"
    common = ["eval", "scaling", "--model", "msa-tiny", "--questions", 11, "--out", out, "--sizes"]
    code, page, _ = run(capsys, *common, "6K", "9K")
    assert code == 0
    assert "the same 11 questions" in page
    first = (out / "records.jsonl").read_text()
    code, page, _ = run(capsys, *common, "6K", "9K", "14K")
    assert code == 0
    assert (out / "records.jsonl").read_text().startswith(first)
    found = results(out)
    assert [point["size"] for point in found["curve"]] == [6000, 9000, 14000]
    assert [cost["size"] for cost in found["costs"]] == [6000, 9000, 14000]
    assert sum(cost["encoded_tokens"] for cost in found["costs"]) == found["costs"][-1]["tokens"]
    assert all(point["routed"]["rate"] > 0.5 for point in found["curve"])
    costs = found["costs"]
    for small, large in pairwise(costs):  # only routing grows; the chunks attended to differ by a few
        counted, formula = (large[key] - small[key] for key in ("search_flops", "route_flops"))
        assert counted == pytest.approx(formula, rel=0.3)
        assert formula > 0
        assert large["question_flops"] > large["search_flops"]
        assert large["decode_bytes"] < 1.1 * small["decode_bytes"]
    assert found["routing_fit"]["worst_residual"] >= 0
    for name in ("curve.png", "depth.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in page


def test_ways_side_by_side_on_growing_documents(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["eval", "compare", "--model", "msa-tiny", "--questions", 3, "--sizes", "6K", "--out", out]
    code, page, _ = run(capsys, *arguments, "--ways", "msa", "rag-bm25@1")
    assert code == 0
    rows = {row["answerer"]: row for row in results(out)["rows"]}
    assert set(rows) == {"msa", "rag-bm25@1"}
    assert all(row["questions"] == 11 and row["seconds"] > 0 and row["tokens_seen"] > 0 for row in rows.values())
    assert rows["rag-bm25@1"]["recall"] == 1.0
    assert "no test: all alternatives have fewer than 30 questions in common with msa: rag-bm25@1" in page
    assert [entry["way"] for entry in results(out)["growth"]] == ["memory", "rag-bm25@1"]
    before = (out / "records.jsonl").read_bytes()
    code, _, _ = run(capsys, *arguments, "--ways", "msa", "rag-bm25@1")
    assert (code, (out / "records.jsonl").read_bytes()) == (0, before)


def test_a_question_set(question_set, tmp_path, capsys):
    out = tmp_path / "run"
    code, page, _ = run(capsys, "eval", "qa", question_set, "--model", "msa-tiny", "--ways", "msa", "--out", out)
    assert code == 0
    (row,) = results(out)["rows"]
    assert row["questions"] == 3
    assert row["recall"] >= 2 / 3
    assert "| msa |" in page
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()][2:]
    assert {"exact_match", "f1", "contains", "mrr", "recall@1"} <= set(records[0]["scores"])
    wanted = 1 / len(records[0]["retrieved"]) if records[0]["scores"]["recall@16"] else 0
    assert records[0]["scores"]["precision"] == wanted
    assert records[0]["scores"]["retrieval_f1"] == pytest.approx(2 * wanted / (1 + wanted))
    assert "| way | tokens | recall@1 |" in page


def test_a_question_set_over_growing_documents(question_set, tmp_path, capsys):
    """Needed documents first: each size asks what it can answer, ways may get fewer questions, nothing is made twice."""
    out = tmp_path / "run"
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--ways", "msa", "rag-bm25@1", "--out", out]
    growing = [*common, "--limits", "rag-bm25@1=1", "--documents"]
    code, page, _ = run(capsys, *growing, 2, 9)
    assert code == 0
    found = results(out)
    asked = [(row["answerer"], row["questions"]) for row in found["rows"]]
    assert asked == [("msa", 2), ("rag-bm25@1", 1), ("msa", 3), ("rag-bm25@1", 1)]
    small, large = (entry for entry in found["growth"] if entry["way"] == "memory")
    assert (small["documents"], large["documents"]) == (2, 7)
    assert small["encoded_tokens"] + large["encoded_tokens"] == large["tokens"]
    assert [(test["left_out"], test["tests"]) for test in found["tests"]] == [(["rag-bm25@1"], [])] * 2  # too few
    assert (out / "ways.png").read_bytes().startswith(b"\x89PNG")
    assert "larger sizes add to smaller ones" in page
    assert "## Taking the documents in" in page
    before = (out / "records.jsonl").read_bytes()
    assert run(capsys, *growing, 2, 9)[0] == 0
    assert (out / "records.jsonl").read_bytes() == before
    for arguments, code, message in (
        ([*growing, 2, 9, "--separate"], 2, "choose one"),
        ([*growing, 2, 99], 1, "has 9 documents, 99 were asked for"),
        ([*common, "--limits", "full=3"], 2, "--limits names 'full', which --ways does not"),
        ([*common, "--limits", "full"], 2, "expected a way and a number of questions such as full=20"),
    ):
        found, _, error = run(capsys, *arguments)
        assert (found, message in error) == (code, True), error


def test_ruler_writes_and_reads_its_own_layout(tmp_path, capsys):
    common = ["eval", "ruler", "--model", "msa-tiny", "--tasks", "niah_single_1", "vt"]
    code, page, _ = run(
        capsys, *common, "--sizes", "1K", "--samples", 2, "--write", tmp_path / "data", "--out", tmp_path / "ours"
    )
    assert code == 0
    assert "| way | niah_single_1 | vt | mean |" in page
    assert (tmp_path / "data/1000/niah_single_1/validation.jsonl").is_file()
    code, _, _ = run(capsys, *common, "--read", tmp_path / "data/1000", "--out", tmp_path / "theirs")
    assert code == 0
    ours, theirs = (results(tmp_path / name)["scores"][0] for name in ("ours", "theirs"))
    assert [(task["task"], task["score"], task["samples"]) for task in ours["tasks"]] == [
        (task["task"], task["score"], task["samples"]) for task in theirs["tasks"]
    ]
    lengths = [
        json.loads(line)["length"]
        for name in ("niah_single_1", "vt")
        for line in (tmp_path / "data/1000" / name / "validation.jsonl").read_text().splitlines()
    ]
    assert ours["size"] == 1000
    assert theirs["size"] == max(lengths)
    assert "samples of files; their size is that of the longest" in (tmp_path / "theirs/report.md").read_text()
    common = ["eval", "ruler", "--model", "msa-tiny", "--read", tmp_path / "data/1000", "--out", tmp_path / "none"]
    for task, message in (("niah_single_2", "holds no samples of niah_single_2"), ("vt_2", "found 'vt_2'")):
        code, _, error = run(capsys, *common, "--tasks", task)
        assert code == 1
        assert message in error


def test_the_ways_are_listed(capsys):
    code, page, _ = run(capsys, "eval", "ways")
    assert code == 0
    assert "streaming-llm" in page
    assert "memn2n" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval"], 2, "usage"),
        (["eval", "compare", "--ways", "oracle", "--out", "x"], 2, "no way of answering is called 'oracle'"),
        (["eval", "scaling", "--sizes", "0", "--out", "x"], 2, "expected tokens such as 16K"),
        (["eval", "qa", "nowhere.jsonl", "--out", "x"], 1, "nowhere.jsonl cannot be found"),
        (["eval", "compare", "--ways", "rag-minilm@1", "--out", "x"], 2, "rag-minilm@1 needs --encoder"),
        (["eval", "ruler", "--sizes", "10", "--model", "msa-tiny", "--out", "x"], 1, "expected a size of at least"),
        (["eval", "scaling", "--task", "niah_9", "--model", "msa-tiny", "--out", "x"], 1, "niah_9"),
        (["eval", "scaling", "--sizes", "9K", "6K", "--model", "msa-tiny", "--out", "x"], 1, "growing sizes"),
    ],
)
def test_nonsense_gets_one_clear_line(arguments, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found, _, error = run(capsys, *arguments)
    assert found == code
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_other_settings_in_the_same_folder_are_refused(question_set, tmp_path, capsys):
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--out", tmp_path / "run"]
    assert run(capsys, *common)[0] == 0
    code, _, error = run(capsys, *common, "--max-new-tokens", 8)
    assert code == 1
    assert "max_new_tokens is 64 there, 8 now" in error
    for name, there, now, message in (
        ("questions.jsonl", '"ids": ["quiet-lamp"]', '"ids": ["other-0"]', "another question 'quiet-lamp'"),
        ("corpus.jsonl", "The sky is blue.", "The sea is blue.", "contents is {'set': "),
    ):
        before = (question_set / name).read_text()
        (question_set / name).write_text(before.replace(there, now))
        code, _, error = run(capsys, *common)
        assert (code, message in error) == (1, True), error
        (question_set / name).write_text(before)
    assert run(capsys, *common)[0] == 0


def test_progress_is_shown_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        with working("the first thing") as say:
            say("a name\nof two lines \x07")
        assert ("a name of two lines \ufffd" in stream.getvalue()) is stream.isatty()
        assert "\x07" not in stream.getvalue()
