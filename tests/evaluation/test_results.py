"""The two files of a run: where their records were measured, however often the run was gone on with or written again."""

import pytest

from msa.errors import EvaluationError
from msa.evaluation.records import RECORDS_NAME, Record, RecordLog
from msa.evaluation.report import report_ruler
from msa.evaluation.results import count_of, measured_in, read_results
from msa.evaluation.rewriting import rewrite_report

SETTINGS = {"task": "ruler", "model": "tiny", "device": "cpu"}


def record(number, size, **fields):
    given = {"set": "s", "task": "niah", "question": "q", "answers": ("7",), "positives": (), "text": "7", **fields}
    return Record(**{"answerer": "msa", **given}, size_tokens=size, question_id=str(number))


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Some records measured on a machine at a commit, and the report of all written there."""
    records = []

    def run(machine, commit, *new):
        versions = {"torch": "2.13"}
        stamp = {"date": "2026-11-26", "commit": commit, "machine": machine, "threads": 2, "versions": versions}
        for module in ("records", "results"):
            monkeypatch.setattr(
                f"msa.evaluation.{module}.environment",
                lambda device=None: stamp | {"device": device, "command": f"msa eval on {machine}"},
            )
        with RecordLog(tmp_path / RECORDS_NAME, SETTINGS) as log:
            for one in new:
                log.append(one)
        records.extend(new)
        report_ruler(tmp_path, SETTINGS, records, [])
        return (tmp_path / "report.md").read_text(encoding="utf-8")

    return run


def test_a_run_that_measured_nothing_keeps_its_stamp(session, tmp_path):
    session("laptop", "abc", record(0, 100))
    before = read_results(tmp_path)
    page = session("server", "def")
    assert read_results(tmp_path) == before
    assert "2026-11-26 · laptop, 2 threads, device cpu · torch 2.13, commit abc\n\n`msa eval on laptop`" in page
    assert "server" not in page
    assert "stretches" not in page


def test_a_run_that_goes_on_elsewhere_names_both_places(session, tmp_path):
    session("laptop", "abc", record(0, 100), record(0, 64_000))
    page = session("server", "", record(1, 64_000))
    assert "Measured in 2 stretches, the last by the command below:" in page
    assert (
        "* 2026-11-26 · laptop, 2 threads, device cpu · torch 2.13, commit abc · 2 records, 100 to 64K tokens" in page
    )
    assert "* 2026-11-26 · server, 2 threads, device cpu · torch 2.13 · 1 record, 64K tokens\n\n`msa eval on s" in page
    found = read_results(tmp_path)
    assert found["environment"]["machine"] == "server"
    assert [(one["machine"], one["records"], one["sizes"]) for one in found["stretches"]] == [
        ("laptop", 2, [100, 64_000]),
        ("server", 1, [64_000]),
    ]
    assert "records" not in found["environment"]
    rewrite_report(tmp_path)
    assert read_results(tmp_path)["stretches"] == found["stretches"]
    (only,) = measured_in(tmp_path, [record(1, 64_000)])  # of what is shown
    assert only["machine"] == "server"


def test_records_of_an_earlier_version_are_counted_apart(session, tmp_path):
    session("laptop", "abc", record(0, 100))
    path = tmp_path / RECORDS_NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    page = session("server", "def")  # without a word on where it was measured: as ever, here and now
    assert "2026-11-26 · server" in page
    assert read_results(tmp_path)["stretches"] == []
    page = session("desktop", "ghi", record(1, 100))
    assert "* not noted where · 1 record, 100 tokens\n* 2026-11-26 · desktop" in page


def test_a_count_names_its_sizes():
    assert count_of({"records": 3, "sizes": [16_000]}) == "3 records, 16K tokens"


def ruler_records(way, size, *tasks):
    return [
        record(f"{task}-{number}", size, answerer=way, task=task, text="7" if number else "no")
        for task in tasks
        for number in range(2)
    ]


def test_columns_are_tasks_by_name_and_unlike_tasks_have_no_mean(tmp_path):
    records = [
        *ruler_records("msa", 100, "single", "vt"),
        *ruler_records("full", 100, "vt"),
        *ruler_records("msa", 200, "vt"),
        *ruler_records("full", 200, "vt"),
    ]
    report_ruler(tmp_path, SETTINGS, records, [])
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| way | single | vt | mean |\n|---|---:|---:|---:|\n| msa | 50.0 | 50.0 | 50.0 (" in page
    assert ") |\n| full | – | 50.0 | – |" in page
    assert "| way | vt | mean |\n|---|---:|---:|\n| msa | 50.0 | 50.0 (" in page
    assert page.count("Not all rows have the same tasks") == 1
    assert not (tmp_path / "ruler.png").exists()  # no two sizes with all tasks
    report_ruler(tmp_path, SETTINGS, [one for one in records if one.task == "vt"], [])
    assert (tmp_path / "ruler.png").exists()


def test_a_report_written_again_has_its_own_tasks_where_the_folder_holds_more(tmp_path):
    asked, more = ruler_records("msa", 100, "single"), ruler_records("msa", 100, "vt")
    with RecordLog(tmp_path / RECORDS_NAME, SETTINGS) as log:
        for one in (*asked, *more):
            log.append(one)
    report_ruler(tmp_path, SETTINGS | {"tasks": ["single"]}, asked, [])
    before = (read_results(tmp_path)["results"], read_results(tmp_path)["stretches"])
    rewrite_report(tmp_path)
    assert (read_results(tmp_path)["results"], read_results(tmp_path)["stretches"]) == before
    path = tmp_path / RECORDS_NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[4:]]))
    with pytest.raises(EvaluationError, match="the records hold 1 answers of msa at 100 tokens, the results 2"):
        rewrite_report(tmp_path)
