"""What the soak's judgement says of a run, and that the page shows the stored one; the run itself takes half an hour."""

import importlib
import re
from pathlib import Path

import pytest

from msa.serving.log_lines import log_line

ROOT = Path(__file__).parents[2]
REPORT = {
    "counts": {"ask 200": 1000, "ask 429": 7, "answer right": 990},
    "arguments": {"minutes": "30.0", "clients": "32", "memories": "4", "model": "msa-tiny"},
    "warm_up_minutes": 5.0,
    "rss_growth_after_warm_up": 0.01,
    "rss_slope_mib_per_minute": 0.2,
    "own_growth_after_warm_up": 0.01,
    "own_slope_mib_per_minute": 0.2,
    "refused_ms_in_the_server": {"refused": {"p99": 7.0, "most": 30.0}},
    "full_queue": {"refused_ms": {"client": {"most": 20.0}}},
    "departures": {"freed_s": 0.2, "next_answer_s": 0.1},
    "kills": {"times": 5, "documents": 2000},
}


@pytest.fixture
def scripts(monkeypatch):
    """The benchmark's modules: the run, its server, its pictures."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return [importlib.import_module(name) for name in ("serving_soak", "soak_server", "soak_pictures")]


def unmet(soak, report=REPORT, minutes=30.0, problems=None):
    return [verdict.what for verdict in soak.verdicts(report, minutes, problems or {}) if verdict.met is False]


def test_a_good_run_meets_everything(scripts):
    assert unmet(scripts[0]) == []


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        ("source of another client", "another client's"),
        ("value that was replaced or deleted", "another client's"),
        ("another answer to an idempotency key", "another client's"),
        ("acknowledged document lost after a kill", "lost"),
        ("acknowledged document another text after a kill", "lost"),
        ("document not deleted in the end", "lost"),
        ("damaged memory", "lost"),
        ("status 500", "anything else"),
        ("the server ended in the middle", "anything else"),
    ],
)
def test_every_problem_fails_the_run_under_one_name(scripts, problem, what):
    (failed,) = unmet(scripts[0], problems={problem: 1})
    assert what in failed


def test_what_the_server_s_log_says_is_read(scripts, tmp_path):
    server = scripts[1].Server.__new__(scripts[1].Server)
    server.log = tmp_path / "log"
    lines = [log_line("request", status=429, ms=1.5), log_line("request", status=200, ms=9.0), "serving x on http://y"]
    server.log.write_text("\n".join([*lines, log_line("error", message="x")]) + "\n")
    assert server.refusals_ms() == [1.5]
    assert len(server.complaints()) == 1


def test_each_measurement_is_judged(scripts):
    soak = scripts[0]
    (grown,) = unmet(soak, {**REPORT, "rss_growth_after_warm_up": 0.04})
    assert "resident memory" in grown
    assert unmet(soak, {**REPORT, "rss_growth_after_warm_up": 0.04}, minutes=1.0) == [], "too short to say"
    (grown,) = unmet(soak, {**REPORT, "own_growth_after_warm_up": 0.04})
    assert "not mapped from files" in grown
    (late,) = unmet(soak, {**REPORT, "refused_ms_in_the_server": {"refused": {"p99": 7.0, "most": 51.0}}})
    assert "in the long run" in late
    (unread,) = unmet(soak, {**REPORT, "refused_ms_in_the_server": {}})
    assert "in the long run" in unread, "refusals that the log does not tell of are no good news"
    assert unmet(soak, {**REPORT, "refused_ms_in_the_server": {}, "counts": {"ask 200": 9}}) == []
    (slow,) = unmet(soak, {**REPORT, "full_queue": {"refused_ms": {"client": {"most": 51.0}}}})
    assert "429" in slow
    (kept,) = unmet(soak, {**REPORT, "departures": {"freed_s": 1.2}})
    assert "leave" in kept


def test_memory_over_minutes(scripts, tmp_path):
    server = object.__new__(scripts[1].Server)
    usage = scripts[1].Usage
    server.samples = [(seconds, usage((100 + seconds // 60) << 20, 90 << 20, 10, 5)) for seconds in range(600)]
    usage = server.usage(warm_up_minutes=5)
    assert usage["rss_mib_by_minute"] == [[minute, 100 + minute] for minute in range(10)]
    assert usage["rss_slope_mib_per_minute"] == pytest.approx(1, abs=0.05)
    assert usage["rss_growth_after_warm_up"] == pytest.approx(5 / 107, abs=0.005)
    assert usage["own_mib"] == {"least": 90, "most": 90}
    assert usage["own_growth_after_warm_up"] == 0


def test_the_page_shows_the_stored_run(scripts):
    pictures = scripts[2]
    page = pictures.PAGE.read_text(encoding="utf-8")
    (shown,) = [found[0] for found in pictures.PLACE.finditer(page)]
    expected = f"{pictures.block(pictures.load(pictures.RESULT))}\n" if pictures.stored(pictures.RESULT) else ""
    assert shown == f"<!-- soak -->\n{expected}<!-- end -->"


def test_a_page_says_what_was_not_met(scripts):
    report = {**REPORT, "verdicts": [vars(v) for v in scripts[0].verdicts(REPORT, 30.0, {"status 500": 2})]}
    lines = [line for line in scripts[2].block_of(report, "origin").splitlines() if "**" in line]
    assert [re.findall(r"\*\*(.*)\*\*", line) for line in lines] == [["status 500: 2"]]
