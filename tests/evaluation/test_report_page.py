"""docs/report.md: every number is that of a stored result, and what has none is listed as not shown."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from msa.cli.main import build_parser, main
from msa.errors import EvaluationError
from msa.evaluation.records import read_records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("report")


@pytest.fixture
def stored(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("stored_runs")


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
    for model in ("msa-tiny", "smollm2-135m"):
        assert f"* {model}: no `msa eval ruler` was run: `msa eval ruler --model {model} --sizes" in missing
    assert "benchmarks/bank_scale.py" in missing
    assert "* msa-tiny: its memory was asked at up to 12K tokens, not at 100M: `msa eval scaling" in missing
    assert "* smollm2-135m: no `msa eval scaling` was run" in missing
    assert "* smollm2-135m: no `msa eval compare` or `msa eval qa` was run: `python benchmarks/real_docu" in missing
    for never in ("RULER's variable tracking", "RULER at 128K tokens", "LongBench", "judged by a model"):
        assert never in missing
    assert "msa-tiny: no `msa eval compare`" not in missing
    assert "msa-tiny: no `msa eval scaling`" not in missing


def scaling_of(stored, model, *sizes):
    content = {
        "settings": {"task": "scaling", "model": model},
        "results": {"curve": [{"size": size} for size in sizes]},
    }
    return stored.Run(Path("folder"), content)


def test_the_largest_memory_of_each_model_counts(stored):
    small, large = scaling_of(stored, "msa-tiny", 16_000, 10_000_000), scaling_of(stored, "msa-tiny", 100_000_000)
    assert any("up to 10M tokens, not at 100M" in text for text in stored.not_run([small]))
    assert not any("msa-tiny" in text and "scaling" in text for text in stored.not_run([small, large]))
    assert any("smollm2-135m: no `msa eval scaling`" in text for text in stored.not_run([small, large]))
    with pytest.raises(EvaluationError, match="not as this version writes it"):
        list(stored.not_run([scaling_of(stored, "msa-tiny")]))


def test_commands_of_what_is_not_shown_can_be_given(stored):
    """Up to the files that they name, which are the user's."""
    for commands in stored.WANTED.values():
        for model, command in commands.items():
            program, *arguments = command.split()
            if program == "msa":
                assert build_parser().parse_args(arguments).model == model


def test_a_run_of_several_stretches_names_all(stored):
    settings = {"task": "scaling", "model": "m", "seed": None}
    made = {"date": "monday", "machine": "laptop", "threads": 2, "device": "cpu", "commit": "abc"}
    once = {"settings": settings, "environment": made}
    line = "`msa eval scaling`: model m (laptop, 2 threads, cpu, monday, commit abc)"
    one = {**made, "records": 5, "sizes": [100, 200]}
    for content in (once, once | {"stretches": []}, once | {"stretches": [one]}):
        assert stored.Run(Path("folder"), content).origin == line
    stretches = [{"records": 1, "sizes": [100]}, one, {**one, "date": "friday", "commit": "", "sizes": [64_000]}]
    assert stored.Run(Path("folder"), once | {"stretches": stretches}).origin == (
        "`msa eval scaling`: model m (not noted where: 1 record, 100 tokens; "
        "laptop, 2 threads, cpu, monday, commit abc: 5 records, 100 to 200 tokens; "
        "laptop, 2 threads, cpu, friday: 5 records, 64K tokens)"
    )


def test_the_commit_of_a_benchmark_is_shown_where_it_was_kept(report):
    found = {"command": "c", "machine": "m", "date": "d"}
    assert [report._origin(found | more) for more in ({}, {"commit": ""}, {"commit": "abc"})] == [
        "`c`, m, d",
        "`c`, m, d",
        "`c`, m, d, commit abc",
    ]


def test_every_benchmark_keeps_the_commit_it_ran_at():
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "report.py"]
    storing = [path for path in scripts if re.search('"machine": |"environment": ', path.read_text())]
    assert len(storing) >= 15
    for path in storing:
        assert re.search(r"\*\*(version_stamp|made_by)\(\)|environment\(", path.read_text()), path


def test_unlike_tasks_of_ruler_stand_in_their_own_columns(report, tmp_path):
    tasks = {"msa": ("single", "vt"), "full": ("vt",)}
    scores = [
        {
            "answerer": way,
            "size": 4096,
            "average": 50.0,
            "low": 40.0,
            "high": 60.0,
            "tasks": [{"task": task, "score": 50.0} for task in own],
        }
        for way, own in tasks.items()
    ]
    made = {"date": "d", "machine": "m", "threads": 2, "device": "cpu", "commit": ""}
    content = {"schema": 1, "settings": {"task": "ruler", "model": "m"}, "environment": made, "notes": []}
    folder = tmp_path / "results" / "ruler"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content | {"results": {"scores": scores}}))
    page = write(report, tmp_path / "results", tmp_path / "none", tmp_path / "report.md")
    assert "| way, size | single | vt | mean |" in page
    assert "| msa, 4096 | 50.0 | 50.0 | 50.0 (40.0–60.0) |\n| full, 4096 | – | 50.0 | – |" in page


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
