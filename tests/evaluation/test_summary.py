"""Rows, reasons and the paired test out of records, and the page they stand on."""

import json
from dataclasses import replace

import pytest

from msa.errors import EvaluationError
from msa.evaluation.records import Record
from msa.evaluation.report import report_comparison
from msa.evaluation.summary import (
    compare_ours,
    compare_parts,
    kinds_table,
    means_of_same,
    reasons_list,
    rows_of,
    rows_table,
    scores_table,
)
from msa.training.data.needles import NOT_IN_MEMORY

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
    made = [record(way, number, float(number % 10 < right[way])) for way in right for number in range(40)]
    made = [one if one.answerer != "full" else record("full", one.question_id, 0.0, text="", note=FULL) for one in made]
    return [*made, record("msa", 0, 1.0, size=900), record("rag-bm25@1", 0, 1.0, size=900, retrieved=("d",))]


def test_what_was_not_answered_counts_as_wrong_and_says_why():
    rows = {(row.answerer, row.size_tokens): row for row in rows_of(records(), "right")}
    assert (rows["full", 100].unanswered, rows["full", 100].score, rows["full", 100].reason) == (40, 0.0, FULL)
    assert (rows["msa", 100].unanswered, rows["msa", 100].score, rows["msa", 100].reason) == (0, 0.3, "")
    assert reasons_list(list(rows.values())) == f"* full at 100 tokens, 40 of 40 unanswered: {FULL}"
    assert reasons_list([rows["msa", 100]]) == ""


def test_ours_against_every_alternative_on_the_same_questions():
    found = compare_ours(records(), "right", 100)
    assert (found.ours, found.left_out) == ("msa", ())
    bm25, full = found.tests
    assert (bm25.other, bm25.questions, full.other, full.questions) == ("rag-bm25@1", 40, "full", 40)
    assert (bm25.mean, full.mean) == (pytest.approx(-0.6), pytest.approx(0.3))
    assert bm25.low < bm25.mean < bm25.high < 0 < full.low
    assert bm25.p_value < full.p_value < 0.01
    assert (bm25.adjusted, full.adjusted) == (2 * bm25.p_value, max(2 * bm25.p_value, full.p_value))
    assert compare_ours(records()[:80], "right", 100) is None
    assert compare_ours(records()[80:], "right", 100) is None
    with pytest.raises(EvaluationError, match="no record is scored by 'f1'; there are right"):
        compare_ours(records(), "f1", 100)


def test_which_of_our_rows_is_tested_does_not_depend_on_the_answers():
    better = [record("msa-int8", number, 1.0) for number in range(40)]
    assert compare_ours([*better, *records()], "right", 100).ours == "msa"
    without = [one for one in records() if one.answerer != "msa"]
    first = [record("msa-dot", number, 0.0) for number in range(40)]
    assert compare_ours([*first, *better, *without], "right", 100).ours == "msa-dot"


def unequal():
    """``msa`` is asked 60 questions of which the last 30 are hard; ``msa-int8`` the easy ones only, and fails one."""
    made = [record("msa", number, float(number < 30), scores={"recall@1": 0.5}) for number in range(60)]
    made += [record("msa-int8", number, float(number > 0)) for number in range(30)]
    made += [record("msa-one-round", number, 1.0) for number in range(12)]
    return made + [record("full", number, float(number % 2)) for number in range(60)]


def test_ways_are_tested_on_all_questions_that_both_were_asked(tmp_path):
    asked = [*unequal(), *(record("map-reduce", number, 0.0) for number in range(12))]
    found = compare_ours(asked, "right", 100)
    assert [(test.other, test.questions) for test in found.tests] == [("full", 60)]
    assert found.tests[0].mean == pytest.approx(0.0)
    assert found.left_out == ("map-reduce",)
    report_comparison(tmp_path, {"task": "qa"}, asked, "right", [])
    page = (tmp_path / "report.md").read_text()
    assert "nor are those with fewer than 30 questions in common with msa: map-reduce." in page
    assert "| msa minus | questions | difference | 95 % | p | p (Holm) |" in page
    assert "| full | 60 | +0.000 | " in page


def test_too_few_shared_questions_are_not_tested(tmp_path):
    few = [one for one in unequal() if int(one.question_id) < 20]
    found = compare_ours(few, "right", 100)
    assert (found.ours, found.tests, found.left_out) == ("msa", (), ("full",))
    report_comparison(tmp_path, {"task": "qa"}, few, "right", [])
    page = (tmp_path / "report.md").read_text()
    assert "At 100 tokens, no test: all alternatives have fewer than 30 questions in common with msa: full." in page


def test_the_table_has_the_score_over_shared_questions():
    rows = {row.answerer: row for row in rows_of(unequal(), "right")}
    assert {name: row.shared for name, row in rows.items()} == {
        "msa": 1.0,
        "msa-int8": pytest.approx(29 / 30),
        "msa-one-round": None,
        "full": 0.5,
    }
    assert {row.num_shared for row in rows.values()} == {30}
    chooses = record("rag", 0, 1.0, retrieved=("x", "d"), scores={"recall@1": 0.0, "recall@10": 1.0})
    (row,) = rows_of([chooses], "right")
    assert (row.chosen, row.recall_1, row.recall) == (2.0, 0.0, 1.0)
    table = rows_table([rows["msa"], rows["msa-one-round"], row], "right").splitlines()
    assert "| right, shared questions | documents chosen | read | recall@1 | recall@10 |" in table[0]
    assert "| 1.000 (n 30) | – | – | – | – |" in table[2]
    assert "| 1.000 | 0.76–1.00 | – | – | – | – | – |" in table[3]
    assert "| 1.000 (n 1) | 2.0 | 0.0 | 0.000 | 1.000 |" in table[4]


def test_curves_are_of_the_same_questions_at_every_size():
    small = [record(way, number, float(number < 35)) for way in ("msa", "full") for number in range(40)]
    large = [replace(one, size_tokens=900) for one in small if int(one.question_id) >= 5]
    few = [record("slow", 0, 1.0)]
    curves, number = means_of_same([*small, *large, *few], "right")
    assert (curves, number) == ({way: [(100, 30 / 35), (900, 30 / 35)] for way in ("msa", "full")}, 35)


def test_rows_of_ours_are_tested_against_what_they_change(tmp_path):
    right = {"msa": 40, "msa-int8": 40, "msa-latents": 0, "msa-generative": 30, "msa-one-round": 20, "full": 10}
    asked = [record(way, number, float(number < most)) for way, most in right.items() for number in range(40)]
    asked += [record("msa-dot", number, 0.0) for number in range(29)]
    found = {test.other: test.mean for test in compare_parts(asked, "right", 100)}
    assert found == {"msa-int8": 0.0, "msa-latents": 1.0, "msa-generative": 0.25, "msa-one-round": 0.25}
    report_comparison(tmp_path, {"task": "qa"}, asked, "right", [])
    page = (tmp_path / "report.md").read_text()
    assert "| the whole minus | questions | difference |" in page
    assert "| msa-one-round | 40 | +0.250 |" in page
    assert compare_parts([one for one in asked if not one.answerer.startswith("msa")], "right", 100) == ()


def test_kinds_of_questions_have_scores_of_their_own():
    asked = [record("msa", number, float(number), metadata={"kind": "ab"[number]}) for number in range(2)]
    lines = kinds_table([*asked, record("full", 0, 0.5, metadata={"question_type": "c"})], "right").splitlines()
    assert lines[0] == "| way | tokens | a | b | c |"
    assert lines[2:] == ["| msa | 100 | 0.000 (1) | 1.000 (1) | – |", "| full | 100 | – | – | 0.500 (1) |"]
    assert kinds_table(asked[:1], "right") == ""


def test_questions_over_documents_of_their_own_are_one_row_and_tested(tmp_path):
    """As LongBench's: otherwise each context would be a size with one question."""
    asked = [
        replace(record(way, number, float(way == "msa")), size_tokens=100 + number)
        for way in ("msa", "full")
        for number in range(41)
    ]
    report_comparison(tmp_path, {"task": "qa", "separate": True}, asked, "right", [])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["answerer"], row["size_tokens"], row["questions"]) for row in results["results"]["rows"]] == [
        ("msa", 120, 41),
        ("full", 120, 41),
    ]
    (tested,) = results["results"]["tests"]
    assert tested["tests"][0]["mean"] == 1.0
    assert any("of 100 to 140 tokens" in note for note in results["notes"])


def test_declining_is_shown_where_something_cannot_be_answered(tmp_path):
    asked = [
        record("msa", 0, 1.0, text=NOT_IN_MEMORY, metadata={"answerable": False}),
        record("msa", 1, 0.0, text="Paris", metadata={"answerable": False}),
        record("msa", 2, 0.0, text="I do not know."),
        *(record("msa", number, 1.0, text="Paris") for number in (3, 4, 5)),
    ]
    report_comparison(tmp_path, {"task": "qa"}, asked, "right", [])
    page = (tmp_path / "report.md").read_text()
    assert "| way | tokens | declined, nothing answers it | declined, it can be answered |" in page
    assert "| msa | 100 | 0.500 (n 2) | 0.250 (n 4) |" in page
    (found,) = json.loads((tmp_path / "results.json").read_text())["results"]["declining"]
    assert (found["accuracy"], found["false_rate"]) == (0.5, 0.25)
    report_comparison(tmp_path, {"task": "qa"}, asked[2:], "right", [])
    assert "## Declining" not in (tmp_path / "report.md").read_text()


def test_every_metric_is_shown_over_the_questions_that_have_it():
    found = record("msa", 0, 1.0, scores={"mrr": 0.5, "read": 1.0}, retrieved=("x", "d"))
    # earlier versions kept that it had read nothing
    chooses_none = record("full", 0, 0.0, scores={"mrr": 0.0, "read": 0.0, "f1": 0.5})
    lines = scores_table([found, record("msa", 1, 0.0), chooses_none]).splitlines()
    assert lines[0] == "| way | tokens | right | mrr | read | f1 |"
    assert lines[2:] == ["| msa | 100 | 0.500 | 0.500 | 1.000 | – |", "| full | 100 | 0.000 | – | – | 0.500 |"]


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
        f"* full at 100 tokens, 40 of 40 unanswered: {FULL}",
        "| memory | 100 | 4 | 1.5 | 99 | 2.0 |",
        "| full | 100 | 4 | 0.2 | – | – |",
        "![right over size, of the 1 questions that all ways were asked at every size](ways.png)",
        "* a note",
    ):
        assert line in page
    assert "At 100 tokens, msa minus every alternative over the questions both were asked" in page
    assert "| rag-bm25@1 | 40 | -0.600 | -0.750 to -0.450 | 0.0001 | 0.0002 |" in page
    assert "| memory | 50 |" not in page  # a size that nothing was asked at
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"]["growth"] == growth[:2]
    tested, untested = results["results"]["tests"]
    assert (untested["size"], untested["tests"], untested["left_out"]) == (900, [], ["rag-bm25@1"])
    assert (tested["size"], tested["ours"], [one["other"] for one in tested["tests"]]) == (
        100,
        "msa",
        ["rag-bm25@1", "full"],
    )
    assert f"`{results['environment']['command']}`" in page
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")
