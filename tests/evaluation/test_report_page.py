"""docs/report.md: every number is that of a stored result, and what has none is listed as not shown."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from msa.cli.main import main
from msa.evaluation.records import read_records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report_page", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A scaling run and a comparison, as the commands leave them."""
    folder = tmp_path_factory.mktemp("results")
    common = ["--model", "msa-tiny", "--task", "niah_single_1", "--sizes", "8K", "12K", "--questions", "4"]
    assert main(["eval", "scaling", *common, "--out", str(folder / "scaling")]) == 0
    assert main(["eval", "compare", *common, "--ways", "msa", "rag-bm25@1", "--out", str(folder / "ways")]) == 0
    return folder


def write(report, results, benchmarks, out):
    benchmarks.mkdir(exist_ok=True)
    report.write_report(results, benchmarks, out)
    return out.read_text(encoding="utf-8")


def test_the_page_has_the_numbers_of_the_runs(report, runs, tmp_path):
    page = write(report, runs, tmp_path / "none", tmp_path / "report.md")
    scaling = json.loads((runs / "scaling" / "results.json").read_text())["results"]
    for point in scaling["curve"]:
        for stage in ("routed", "read", "answered"):
            found = point[stage]
            assert f"{found['rate']:.3f} ({found['low']:.2f}–{found['high']:.2f})" in page
    for row in json.loads((runs / "ways" / "results.json").read_text())["results"]["rows"]:
        (line,) = [
            line for line in page.splitlines() if line.startswith(f"| {row['answerer']} | {row['size_tokens']:,} |")
        ]
        assert f"| {row['score']:.3f} | {row['low']:.2f}–{row['high']:.2f} |" in line
    for picture in ("curve.png", "depth.png"):
        (link,) = [part.split(")")[0] for part in page.split("](") if part.split(")")[0].endswith(picture)]
        assert (tmp_path / link).exists()


def test_beginning_middle_and_end_are_counted_once_each(report, runs, tmp_path):
    page = write(report, runs, tmp_path / "none", tmp_path / "report.md")
    _, records = read_records(runs / "scaling" / "records.jsonl")
    asked = [record for record in records if record.size_tokens == 12000]
    rows = [line for line in page.splitlines() if line.startswith(("| beginning", "| middle", "| end"))]
    counts = [int(row.split("|")[3].rpartition("n ")[2].strip(" )")) for row in rows]
    assert len(counts) == 3
    assert sum(counts) == len(asked)


def test_the_notes_of_a_run_are_on_the_page(report, runs, tmp_path):
    page = write(report, runs, tmp_path / "none", tmp_path / "report.md")
    for name in ("scaling", "ways"):
        notes = json.loads((runs / name / "results.json").read_text())["notes"]
        assert "one memory for all questions of the task" in notes[0]
        assert page.count(f"* {notes[0]}\n") == 2


def test_damaged_results_are_named_in_one_line(report, runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "results")
    path = tmp_path / "results" / "scaling" / "results.json"
    content = json.loads(path.read_text())
    del content["results"]["parts"]
    for text, message in (
        ('{"schema": 1,\n"what": }', r"results\.json, line 2, is not JSON"),
        (
            json.dumps(content),
            r"results\.json is not as this version writes it \(KeyError\('parts'\)\); write it again",
        ),
    ):
        path.write_text(text)
        given = ["report.py", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "report.md")]
        monkeypatch.setattr("sys.argv", given)
        with pytest.raises(SystemExit, match=message):
            report.main()
    assert not (tmp_path / "report.md").exists()


def test_what_was_not_run_is_said(report, runs, tmp_path):
    page = write(report, runs, tmp_path / "none", tmp_path / "report.md")
    missing = page.partition("## What is not shown")[2]
    assert "no `msa eval ruler` was run" in missing
    assert "benchmarks/bank_scale.py" in missing
    assert "msa eval scaling" not in missing
    empty = write(report, tmp_path / "nowhere", tmp_path / "none", tmp_path / "empty.md")
    assert "no `msa eval scaling` was run" in empty.partition("## What is not shown")[2]


def test_the_stored_benchmarks_are_all_readable(report, tmp_path):
    report.write_report(tmp_path / "nowhere", ROOT / "benchmarks" / "results", tmp_path / "report.md")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for title in (
        "The default model",
        "Routers of a frozen backbone",
        "The tiny recipe with one thing left out",
        "Needles",
    ):
        assert f"### {title}" in page
    assert not re.search(r"\bnan\b", page)
