"""Scores of every way of answering as files: tables of RULER's tasks, and of ways side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.evaluation.plots import draw_bars, draw_curves, token_count
from msa.evaluation.records import Record
from msa.evaluation.results import write_results
from msa.evaluation.ruler import score
from msa.evaluation.summary import (
    MIN_SHARED,
    as_one_size,
    compare_ours,
    compare_parts,
    declining,
    declining_table,
    kinds_table,
    markdown_table,
    means_of_same,
    reasons_list,
    rows_of,
    rows_table,
    scores_table,
)

COLUMNS_NOTE = (
    "*shared questions*: those that all ways of this size were asked, ways asked fewer than "
    f"{MIN_SHARED} left out. *recall@10*: among the documents that a way chose, which are few where it reads few; "
    "*read*: those whose text the model was given. "
    "*tokens seen*: prompt tokens processed for a question; documents that a way has read, encoded or indexed before "
    "are not counted again. *MB*: held in memory for the documents, by each way's own count, files left out."
)
_JUDGED, _JUDGE_NOTE = "judge", "judge: points of 5, as a share of 5: 0.6 are 3 points"
_SEPARATE = (
    "each question has documents of its own, of {:,} to {:,} tokens; tables name the median of these, and seconds and "
    "tokens are over all"
)
UNLIKE_TASKS_NOTE = (
    "Not all rows have the same tasks: a dash stands for one that was not asked, and for the mean of a row that lacks "
    "any."
)


def report_ruler(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    notes: Sequence[str],
    *,
    made: Mapping[str, Any] | None = None,
) -> None:
    """RULER's scores of every way and size: each task, then their plain mean."""
    results: list[dict[str, Any]] = []
    page: list[str] = []
    for size in sorted({record.size_tokens for record in records}):
        entries: list[dict[str, Any]] = []
        for name in dict.fromkeys(record.answerer for record in records if record.size_tokens == size):
            found = score([r for r in records if r.size_tokens == size and r.answerer == name])
            entries.append({"size": size, "answerer": name, "average": found.average, "low": found.low})
            entries[-1] |= {"high": found.high, "tasks": [vars(task) for task in found.tasks]}
        page += [f"## {size:,} tokens", *ruler_table(entries, [entry["answerer"] for entry in entries])]
        results += entries
    curves = _means(results)
    if any(len(points) > 1 for points in curves.values()):
        draw_curves(folder / "ruler.png", curves, title="RULER, mean over tasks", ylabel="score / 100")
        page.append("![RULER over size](ruler.png)")
    write_results(folder, "RULER", settings, records, {"scores": results}, page, notes, made=made)


def ruler_table(scores: Sequence[Mapping[str, Any]], rows: Sequence[str], what: str = "way") -> list[str]:
    """Scores by task, as :func:`report_ruler` stores them, and a sentence where not all rows have the same tasks.

    Args:
        scores: one a row.
        rows: what the rows are called.
        what: title of their column.
    """
    tasks = list(dict.fromkeys(task["task"] for entry in scores for task in entry["tasks"]))
    cells = []
    for row, entry in zip(rows, scores, strict=True):
        by_task = {task["task"]: f"{task['score']:.1f}" for task in entry["tasks"]}
        mean = (
            f"{entry['average']:.1f} ({entry['low']:.1f}–{entry['high']:.1f})" if by_task.keys() == set(tasks) else "–"
        )
        cells.append([row, *(by_task.get(task, "–") for task in tasks), mean])
    unlike = any("–" in cell for cell in cells)
    return [markdown_table([what, *tasks, "mean"], cells), *([UNLIKE_TASKS_NOTE] if unlike else [])]


def _means(scores: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Way → (size, mean), without those that lack a task which others have: their means do not compare."""
    tasks = {task["task"] for entry in scores for task in entry["tasks"]}
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in scores:
        if {task["task"] for task in entry["tasks"]} == tasks:
            curves.setdefault(entry["answerer"], []).append((entry["size"], entry["average"] / 100))
    return curves


def report_comparison(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    metric: str,
    notes: Sequence[str],
    growth: Sequence[Mapping[str, Any]] = (),
    *,
    made: Mapping[str, Any] | None = None,
) -> None:
    """All ways side by side, as the documents grow, and paired tests of ours against every alternative."""
    if settings.get("separate"):
        sizes_asked = sorted({record.size_tokens for record in records})
        records = as_one_size(records)
        if len(sizes_asked) > 1:
            notes = [*notes, _SEPARATE.format(sizes_asked[0], sizes_asked[-1])]
    if any(_JUDGED in record.scores for record in records) and _JUDGE_NOTE not in notes:
        notes = [*notes, _JUDGE_NOTE]
    rows = rows_of(records, metric)
    page = [rows_table(rows, metric), COLUMNS_NOTE, *filter(None, [reasons_list(rows)])]
    sizes = {row.size_tokens for row in rows}
    if len(sizes) > 1:
        curves, number = means_of_same(records, metric)
        if curves:
            title = f"Ways of answering as the documents grow: the same {number} questions"
            draw_curves(folder / "ways.png", curves, title=title, ylabel=metric)
            what = f"of the {number} questions that all ways were asked at every size"
            page.append(f"![{metric} over size, {what}](ways.png)")
    growth = [entry for entry in growth if entry["size"] in sizes]
    if growth:
        page += ["## Taking the documents in", growth_table(growth)]
    tests: list[dict[str, Any]] = []
    for size in dict.fromkeys(row.size_tokens for row in rows):
        found = compare_ours(records, metric, size)
        if found is None:
            continue
        tests.append({"size": size, **vars(found), "left_out": list(found.left_out)})
        tests[-1]["tests"] = [vars(test) for test in found.tests]
        tests[-1]["parts"] = [vars(test) for test in compare_parts(records, metric, size)]
        page += [f"## Tests at {size:,} tokens", *tests_section(tests[-1]), *parts_of_ours(tests[-1])]
        bars = {row.answerer: (row.score, row.low, row.high) for row in rows if row.size_tokens == size}
        draw_bars(folder / f"ways-{size}.png", bars, title=f"{size:,} tokens of documents", xlabel=metric)
        page.append(f"![{metric} at {size:,} tokens](ways-{size}.png)")
    declined = declining(records)
    if declined:
        page += ["## Declining", declining_table(declined)]
    kinds = kinds_table(records, metric)
    if kinds:
        page += ["## By kind of question", f"{metric}, in brackets how many questions:", kinds]
    page += ["## Every metric", scores_table(records)]
    results = {"metric": metric, "rows": [vars(row) for row in rows], "tests": tests, "growth": growth}
    results["declining"] = declined
    write_results(folder, "Ways of answering, side by side", settings, records, results, page, notes, made=made)


def growth_table(growth: Sequence[Mapping[str, Any]]) -> str:
    """What further documents cost each way, as :func:`report_comparison` stores it; memories are shared by our rows."""
    cells = [
        [
            str(entry["way"]),
            token_count(entry["size"]),
            f"{entry['documents']:,}",
            f"{entry['seconds']:,.1f}",
            f"{entry['encoded_tokens']:,}" if "encoded_tokens" in entry else "–",
            f"{entry['bytes_on_disk'] / 1e6:,.1f}" if "bytes_on_disk" in entry else "–",
        ]
        for entry in growth
    ]
    columns = ["way or memory", "tokens", "documents added", "s", "tokens encoded", "MB on disk"]
    return markdown_table(columns, cells)


def tests_section(compared: Mapping[str, Any]) -> list[str]:
    """Paired tests of one size, as :func:`report_comparison` stores them."""
    ours, tests, left_out = compared["ours"], compared["tests"], ", ".join(compared["left_out"])
    lacking = f"fewer than {MIN_SHARED} questions in common with {ours}: {left_out}"
    if not tests:
        return [f"At {compared['size']:,} tokens, no test: all alternatives have {lacking}."]
    said = (
        f"At {compared['size']:,} tokens, {ours} minus every alternative over the questions both were asked, with 95 % "
        "intervals; paired permutation tests, *p (Holm)* adjusted for their number. Nothing is chosen by the answers: "
        f"other rows of ours are not tested{f', nor are those with {lacking}' if left_out else ''}."
    )
    return [said, _tests_table(f"{ours} minus", tests)]


def parts_of_ours(compared: Mapping[str, Any]) -> list[str]:
    """Tests of what is changed in each row of ours, as :func:`report_comparison` stores them; empty: none."""
    if not compared["parts"]:
        return []
    said = (
        f"At {compared['size']:,} tokens, what a part of ours is worth: the whole minus the row without it (`msa`; for "
        "`msa-one-round`, which is without interleave, `msa-generative`), tested in the same way among themselves:"
    )
    return [said, _tests_table("the whole minus", compared["parts"])]


def _tests_table(first: str, tests: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            test["other"],
            str(test["questions"]),
            f"{test['mean']:+.3f}",
            f"{test['low']:+.3f} to {test['high']:+.3f}",
            f"{test['p_value']:.2g}",
            f"{test['adjusted']:.2g}",
        ]
        for test in tests
    ]
    return markdown_table([first, "questions", "difference", "95 %", "p", "p (Holm)"], cells)
