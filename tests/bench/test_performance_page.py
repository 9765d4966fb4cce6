"""docs/performance.md: its tables are those of the stored results, its pictures and commands exist."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from msa.bench.peers import PEERS
from msa.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts that make the page."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("performance_tables"), importlib.import_module("performance_pictures")


def test_every_table_is_that_of_the_stored_results(scripts):
    tables, pictures = scripts
    assert pictures.with_blocks(PAGE, tables.blocks()) == PAGE


def test_numbers_come_from_the_files():
    stored = json.loads((ROOT / "benchmarks" / "results" / "encode_decode_2cpu_202611.json").read_text())
    assert f"generate: {stored['decoding']['transformers_generate']:.1f}" in PAGE
    exact = json.loads((ROOT / "benchmarks" / "results" / "routing_scorer_2cpu_202611.json").read_text())["published"]
    best = exact["4194304 tokens"]["exact"]["32 tokens"]["best"]
    assert f"| published, exact, 32 tokens | {1000 * best:.1f} |" in PAGE
    few = json.loads((ROOT / "benchmarks" / "results" / "few_row_products_2cpu_202611.json").read_text())
    assert few["bytes"] == pytest.approx(270e6, rel=0.01)  # the default model's weights, which decoding reads
    times = few["floor"] * stored["decoding"]["msa_decode"]
    assert f"| {1 / times:.2f}× the time |" in PAGE


def test_other_libraries_appear_once_they_are_measured(scripts, monkeypatch, tmp_path):
    tables, _ = scripts
    assert tuple(PEERS) == tables.PEERS
    name = "routing_scorer_2cpu_202611"
    content = tables.load(name)
    for shape in tables.CPU_SHAPES:
        sizes = content[shape][tables.CPU_SIZE]
        for peer in tables.PEERS:
            sizes.pop(peer, None)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(content))
    assert not any(peer in tables.routing_cpu() for peer in tables.PEERS)
    peer = tables.PEERS[-1]
    for shape in tables.CPU_SHAPES:
        sizes = content[shape][tables.CPU_SIZE]
        sizes[peer] = {length: {"best": 0.5} for length in tables.LENGTHS}
        for form in tables.CPU_FORMS:
            for length in tables.LENGTHS:
                sizes[form][length][f"{peer}: times as long"] = 20.0
    file.write_text(json.dumps(content))
    header, _, *rows = tables.routing_cpu().split("\n\n")[0].splitlines()
    assert f"| folded, ms (slower) | {peer}, ms (slower) | memory added" in header
    assert all("| 500 (20.0×) |" in row for row in rows)
    assert {header.count("|"), *(row.count("|") for row in rows)} == {9}


def test_what_is_missed_is_said(scripts):
    tables, _ = scripts
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ([≤≥]) ([\d.]+)× \| (.+?) \|$", tables.targets(), re.MULTILINE)
    assert len(rows) > 12
    for what, measured, sign, target, verdict in rows:
        values = [float(value) for value in re.findall(r"[\d.]+", measured)]
        met = max(values) <= float(target) if sign == "≤" else min(values) >= float(target)
        assert verdict == ("met" if met else "**missed**"), what
    assert {"met", "**missed**"} == {row[-1] for row in rows}


def test_questions_together_appear_once_they_are_measured(scripts, monkeypatch, tmp_path):
    tables, pictures = scripts
    for file in tables.RESULTS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / f"{tables.CONCURRENCY}.json").unlink(missing_ok=True)
    without = pictures.with_blocks(PAGE, tables.blocks())
    assert "Questions together" not in without
    assert "performance-concurrency" not in without
    row = {"questions/s": 2.5, "tokens/s": 1234.5, "texts as alone": 64, "times one at a time": 1.0}
    content = {
        "what": "questions answered side by side",
        "model": "a model",
        "environment": {"machine": "2 × CPU", "threads": 2, "date": "2026-11-27"},
        "throughput": {"one at a time": row, "4 concurrent": {**row, "times one at a time": 2.25}},
        "passes": {"4 rows": {"seconds": 0.0125, "tokens/s": 320.0}},
    }
    (tmp_path / f"{tables.CONCURRENCY}.json").write_text(json.dumps(content))
    page = pictures.with_blocks(PAGE, tables.blocks())
    assert "| 4 concurrent | 2.5 | 1,234 | 2.25× | 64 |" in page
    assert "| 4 rows | 12.5 | 320 |" in page
    assert "2 × CPU, 2 threads; 2026-11-27" in page
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    pictures.draw_concurrency()
    assert (tmp_path / "performance-concurrency.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_place_is_refused(scripts):
    _, pictures = scripts
    with pytest.raises(ValueError, match="no place for 'targets'"):
        pictures.with_blocks("nothing", {"targets": "text"})


def test_links_and_pictures_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", PAGE)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    anchors = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_commands_parse():
    lines = re.findall(r"^msa .+$", PAGE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        assert build_parser().parse_args(shlex.split(line, comments=True)[1:]).run
