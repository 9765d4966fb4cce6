"""Rows, reasons and the paired test out of records, and the page they stand on."""

import json

import pytest

from msa.errors import EvaluationError
from msa.evaluation.records import Record
from msa.evaluation.report import report_comparison
from msa.evaluation.summary import compare_best, reasons_list, rows_of, scores_table

FULL = "prompt and answer take 9000 tokens, the context ends at 8192"


def record(way, number, score, size=100, **fields):
    given = {
        "text": "words",
        "set": "set",
        "task": "",
        "question": "q",
        "answers": ("a",),
        "positives": ("d",),
        **fields,
    }
    scores = {"right": score, **fields.get("scores", {})}
    return Record(**{**given, "answerer": way, "size_tokens": size, "question_id": str(number), "scores": scores})


def records():
    right = {"msa": 3, "msa-int8": 2, "rag-bm25@1": 9, "full": 0}
    made = [record(way, number, float(number < right[way])) for way in right for number in range(10)]
    made = [one if one.answerer != "full" else record("full", one.question_id, 0.0, text="", note=FULL) for one in made]
    return [*made, record("msa", 0, 1.0, size=900), record("rag-bm25@1", 0, 1.0, size=900, retrieved=("d",))]


def test_what_was_not_answered_counts_as_wrong_and_says_why():
    rows = {(row.answerer, row.size_tokens): row for row in rows_of(records(), "right")}
    assert (rows["full", 100].unanswered, rows["full", 100].score, rows["full", 100].reason) == (10, 0.0, FULL)
    assert (rows["msa", 100].unanswered, rows["msa", 100].score, rows["msa", 100].reason) == (0, 0.3, "")
    assert reasons_list(list(rows.values())) == f"* full at 100 tokens, 10 of 10 unanswered: {FULL}"
    assert reasons_list([rows["msa", 100]]) == ""


def test_the_best_of_ours_against_the_best_of_the_others_on_the_same_questions():
    found = compare_best(records(), "right", 100)
    assert (found.ours, found.other, found.questions) == ("msa", "rag-bm25@1", 10)
    assert found.difference.mean == pytest.approx(-0.6)
    assert found.difference.p_value == pytest.approx(2 / 2**6)  # six questions differ, all the same way
    assert compare_best(records()[:20], "right", 100) is None
    with pytest.raises(EvaluationError, match="no record is scored by 'f1'; there are right"):
        compare_best(records(), "f1", 100)


def test_every_metric_is_shown_over_the_questions_that_have_it():
    found = record("msa", 0, 1.0, scores={"mrr": 0.5}, retrieved=("x", "d"))
    chooses_none = record("full", 0, 0.0, scores={"mrr": 0.0, "f1": 0.5})
    lines = scores_table([found, record("msa", 1, 0.0), chooses_none]).splitlines()
    assert lines[0] == "| way | tokens | right | mrr | f1 |"
    assert lines[2:] == ["| msa | 100 | 0.500 | 0.500 | – |", "| full | 100 | 0.000 | – | 0.500 |"]


def test_the_page_has_sizes_reasons_and_what_growing_cost(tmp_path):
    growth = [
        {
            "way": "memory",
            "size": 100,
            "documents": 4,
            "seconds": 1.5,
            "encoded_tokens": 99,
            "bytes_on_disk": 2_000_000,
        },
        {"way": "full", "size": 100, "documents": 4, "seconds": 0.25},
        {"way": "memory", "size": 50, "documents": 2, "seconds": 1.0, "encoded_tokens": 50, "bytes_on_disk": 1},
    ]
    report_comparison(tmp_path, {"task": "qa"}, records(), "right", ["a note"], growth)
    page = (tmp_path / "report.md").read_text()
    for line in (
        f"* full at 100 tokens, 10 of 10 unanswered: {FULL}",
        "| memory | 100 | 4 | 1.5 | 99 | 2.0 |",
        "| full | 100 | 4 | 0.2 | – | – |",
        "![right over size](ways.png)",
        "* a note",
    ):
        assert line in page
    assert "At 100 tokens, msa minus rag-bm25@1 over the same 10 questions: -0.600" in page
    assert "| memory | 50 |" not in page  # a size that nothing was asked at
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"]["growth"] == growth[:2]
    assert f"`{results['environment']['command']}`" in page
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")
