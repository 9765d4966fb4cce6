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


@pytest.fixture
def routing(scripts):
    """The tables about routing."""
    return importlib.import_module("performance_routing")


@pytest.fixture
def results(scripts, monkeypatch, tmp_path):
    """The stored results, a copy that may be changed; a function that reads one."""
    module = importlib.import_module("result_tables")
    for file in module.RESULTS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module.load


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


def test_other_libraries_appear_once_they_are_measured(routing, results, tmp_path):
    assert tuple(PEERS) == routing.PEERS
    content = results(routing.CPU)
    for shape in routing.CPU_SHAPES:
        sizes = content[shape][routing.CPU_SIZE]
        for peer in routing.PEERS:
            sizes.pop(peer, None)
    file = tmp_path / f"{routing.CPU}.json"
    file.write_text(json.dumps(content))
    assert not any(peer in routing.routing_cpu() for peer in routing.PEERS)
    peer = routing.PEERS[-1]
    for shape in routing.CPU_SHAPES:
        sizes = content[shape][routing.CPU_SIZE]
        sizes[peer] = {length: {"best": 0.5} for length in routing.LENGTHS}
        for form in routing.CPU_FORMS:
            for length in routing.LENGTHS:
                sizes[form][length][f"{peer}: times as long"] = 20.0
    file.write_text(json.dumps(content))
    header, _, *rows = routing.routing_cpu().split("\n\n")[0].splitlines()
    assert f"| folded, ms (slower) | {peer}, ms (slower) | memory added" in header
    assert all("| 500 (20.0×) |" in row for row in rows)
    assert {header.count("|"), *(row.count("|") for row in rows)} == {9}


def test_memory_is_that_of_fresh_processes(routing, results):
    peaks = results(routing.PEAKS)["published"][routing.CPU_SIZE]
    here, written = (peaks[way]["32 tokens"]["peak_added_mib"] for way in ("exact", "as written"))
    assert here > 1
    (row,) = [row for row in routing.routing_cpu().splitlines() if row.startswith("| published, exact, 32 tokens |")]
    assert row.endswith(f"| {here:.0f} / {written:.0f} |")
    assert min(routing.times_the_memory("32 tokens")) <= written / here


def test_the_worse_of_two_runs_decides(scripts, routing, results, tmp_path):
    """The published shape was measured by the script and by ``msa bench``."""
    tables, _ = scripts

    def verdict():
        return re.search(r"as written, 32 tokens, exact.*\n\| … int8 \|(.*)\|", tables.targets())[1].split(" | ")

    slower = results(routing.CPU_AGAIN)
    (part,) = [part for part in slower["routing"] if part["what"] == "routing, 32 tokens, int8 keys"]
    found = part["baselines"]["as written"]["times as fast here"]
    assert verdict()[1:] == [f"{found:.1f}×", "≥ 30×", "**missed** "]
    part["baselines"]["as written"]["times as fast here"] = 33.0
    (tmp_path / f"{routing.CPU_AGAIN}.json").write_text(json.dumps(slower))
    assert verdict()[1:] == ["33.0×", "≥ 30×", "met "]
    first = results(routing.CPU)
    first["published"][routing.CPU_SIZE]["int8"]["32 tokens"]["as written: times as long"] = 29.0
    (tmp_path / f"{routing.CPU}.json").write_text(json.dumps(first))
    assert verdict()[0].strip() == "29.0×"
    assert verdict()[-1] == "**missed** "


def test_keys_that_share_a_direction_stand_beside_random_ones(routing, results, tmp_path):
    sizes = results(routing.ALIKE)["default"]
    random, alike = (
        sizes[size]["exact"]["8 tokens"]["best"] for size in sizes if size.endswith(("tokens", "cosine 0.9"))
    )
    header, _, first, *rows = routing.routing_alike().split("\n\n")[0].splitlines()
    assert f"| 0 (random) | {1000 * random:.3g} |" in first
    (row,) = [row for row in rows if row.startswith("| 0.9 |")]
    assert f"| {1000 * alike:.3g} ({alike / random:.2f}×) |" in row
    assert header.count("|") == row.count("|")
    (tmp_path / f"{routing.ALIKE}.json").unlink()
    assert routing.routing_alike() == ""


def test_both_runs_are_shown(routing):
    shown = routing.routing_again()
    assert shown.count("| published, ") == 9
    (part,) = [
        part for part in routing.load(routing.CPU_AGAIN)["routing"] if part["what"] == "routing, 8 tokens, half keys"
    ]
    assert f"| published, half, 8 tokens | {1000 * part['seconds']['best']:.1f} |" in shown
    assert f"| {part['/ floor']:.2f}× |" in shown  # reading or multiplying is its highest floor
    assert f"({part['baselines']['folded']['times as fast here']:.2f}×)" in shown


def test_texts_that_came_out_otherwise_are_shown(scripts):
    tables, _ = scripts
    rows = [row for row in tables.answering().splitlines() if " together, " in row]
    parts = [part for part in tables.load(tables.ANSWERING)["answering"] if "texts as one at a time" in part]
    assert [row.split("|")[-2].strip() for row in rows] == [str(part["texts as one at a time"]) for part in parts]
    assert "61, 60 and 60 of 64 texts" in PAGE
    assert [part["texts as one at a time"] for part in parts] == [64, 61, 60, 60]


def test_what_a_file_does_not_name_is_said(scripts):
    results = importlib.import_module("result_tables")
    for name in ("encode_decode_2cpu_202611", "routing_memory_2cpu_202611", "bank_scale_2cpu_202611"):
        content, shown = results.load(name), results.origin(name)
        assert ("the file names no command and no commit" in shown) == ("command" not in content)
    assert re.search(r"commit [0-9a-f]{7}(-dirty)?\.$", results.origin("few_row_products_2cpu_202611"))


def test_what_is_missed_is_said(scripts):
    tables, _ = scripts
    rows = re.findall(r"^\| (.+?) \| (.*?) \| (.*?) \| ([≤≥]) ([\d.]+)× \| (.+?) \|$", tables.targets(), re.MULTILINE)
    assert len(rows) > 12
    for what, measured, again, sign, target, verdict in rows:
        values = [float(value) for value in re.findall(r"[\d.]+", f"{measured} {again}")]
        met = max(values) <= float(target) if sign == "≤" else min(values) >= float(target)
        assert verdict == ("met" if met else "**missed**"), what
    assert {"met", "**missed**"} == {row[-1] for row in rows}


def test_questions_together_appear_once_they_are_measured(scripts, results, monkeypatch, tmp_path):
    tables, pictures = scripts
    (tmp_path / f"{tables.CONCURRENCY}.json").unlink(missing_ok=True)
    without = pictures.with_blocks(PAGE, tables.blocks())
    assert "Questions together" not in without
    assert "performance-concurrency" not in without
    row = {"questions/s": 2.5, "tokens/s": 1234.5, "texts as alone": 64, "times one at a time": 1.0}
    content = {
        "what": "questions answered side by side",
        "model": "a model",
        "environment": {"machine": "2 × CPU", "threads": 2, "date": "2026-11-27", "command": "x", "commit": "abc"},
        "throughput": {"one at a time": row, "4 concurrent": {**row, "times one at a time": 2.25}},
        "passes": {"4 rows": {"seconds": 0.0125, "tokens/s": 320.0}},
    }
    (tmp_path / f"{tables.CONCURRENCY}.json").write_text(json.dumps(content))
    page = pictures.with_blocks(PAGE, tables.blocks())
    assert "| 4 concurrent | 2.5 | 1,234 | 2.25× | not noted | 64 |" in page
    assert "| 4 rows | 12.5 | 320 |" in page
    assert "`x`; 2 × CPU, 2 threads; 2026-11-27, commit abc." in page
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
