"""``msa eval qa --judge`` with a judge that fails: what was answered is reported, what was judged is kept."""

import json

import pytest
from eval_command import KEYS, NEEDLE, QUESTION
from judge_endpoint import judge_endpoint

from msa.cli.main import main


def reply(prompt, server):
    """5 to every answer, prose where ``server.broken`` is in the question."""
    return "Well, well." if server.broken and server.broken in prompt else "Score: 5"


@pytest.fixture
def judge(monkeypatch):
    with judge_endpoint(reply, broken="") as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("MSA_JUDGE_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
        monkeypatch.setenv("MSA_JUDGE_MODEL", "grader")
        monkeypatch.delenv("MSA_JUDGE_API_KEY", raising=False)
        yield server


@pytest.fixture
def arguments(tmp_path):
    file = tmp_path / "questions.jsonl"
    lines = [
        {
            "id": key,
            "question": QUESTION.format(key=key),
            "answers": [value],
            "documents": [NEEDLE.format(key=key, value=value)],
        }
        for key, value in KEYS.items()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--model", "msa-tiny", "--ways", "rag-bm25@1", "--judge", "--out", str(tmp_path / "run")]
    return ["eval", "qa", str(file), *given]


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def test_answers_are_reported_where_the_judge_fails_and_a_rerun_judges_only_what_is_missing(
    judge, arguments, tmp_path, capsys
):
    out = tmp_path / "run"
    judge.broken = "brave-river"
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Of 3 answers 1 are not judged: it failed on 'brave-river' of questions (rag-bm25@1, " in error
    assert "Well, well." in error
    assert f"All answers are reported in {out}, without its points" in error
    assert "judge" not in stored(out)["settings"]
    assert any("the judge's points are missing" in note for note in stored(out)["notes"])
    (row,) = stored(out)["results"]["rows"]
    assert row["questions"] == 3
    assert "judge" not in (out / "report.md").read_text().partition("## Every metric")[2]
    answered, judge.broken = (out / "records.jsonl").read_bytes(), ""
    assert main(arguments) == 0
    assert len(judge.asked) == 4
    assert "brave-river" in judge.asked[-1]
    assert (out / "records.jsonl").read_bytes() == answered
    assert stored(out)["settings"]["judge"]["model"] == "grader"
    assert not any("missing" in note for note in stored(out)["notes"])
    assert "judge" in (out / "report.md").read_text().partition("## Every metric")[2]


def test_a_judge_that_refuses_costs_no_answers_and_few_requests(judge, arguments, tmp_path, capsys):
    judge.status = 401
    assert main([*arguments, "--metric", "judge"]) == 1
    error = capsys.readouterr().err
    assert "refused the request (HTTP 401" in error
    assert "0 answers are judged and kept" in error
    assert len(judge.asked) <= 3
    assert stored(tmp_path / "run")["results"]["metric"] == "contains"  # until there are points
    judge.status = 200
    assert main([*arguments, "--metric", "judge"]) == 0
    assert stored(tmp_path / "run")["results"]["metric"] == "judge"


def test_points_of_another_judge_are_refused_before_anything_is_asked(judge, arguments, tmp_path, monkeypatch, capsys):
    assert main(arguments) == 0
    before = (tmp_path / "run" / "report.md").read_bytes()
    monkeypatch.setenv("MSA_JUDGE_MODEL", "another")
    capsys.readouterr()
    assert main([*arguments, "--model", "no/model"]) == 1
    assert "was made by another judge or rubric" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.md").read_bytes() == before
