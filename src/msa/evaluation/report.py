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
    compare_best,
    declining,
    declining_table,
    markdown_table,
    reasons_list,
    rows_of,
    rows_table,
    scores_table,
)

COLUMNS_NOTE = (
    "*shared questions*: those that all ways of this size were asked, ways asked fewer than "
    f"{MIN_SHARED} left out. *recall@10*: among the documents that a way chose, which are few where it reads few. "
    "*tokens seen*: prompt tokens processed for a question; documents that a way has read, encoded or indexed before "
    "are not counted again. *MB*: held in memory for the documents, by each way's own count, files left out."
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
    sizes = sorted({record.size_tokens for record in records})
    for size in sizes:
        cells = []
        for name in dict.fromkeys(record.answerer for record in records):
            group = [r for r in records if r.size_tokens == size and r.answerer == name]
            if not group:
                continue
            found = score(group)
            results.append({"size": size, "answerer": name, "average": found.average, "low": found.low})
            results[-1] |= {"high": found.high, "tasks": [vars(task) for task in found.tasks]}
            cells.append([name, *(f"{t.score:.1f}" for t in found.tasks), f"{found.average:.1f}"])
            tasks = [task.task for task in found.tasks]
        page += [f"## {size:,} tokens", markdown_table(["way", *tasks, "mean"], cells)]
    if len(sizes) > 1:
        curves: dict[str, list[tuple[float, float]]] = {}
        for entry in results:
            curves.setdefault(entry["answerer"], []).append((entry["size"], entry["average"] / 100))
        draw_curves(folder / "ruler.png", curves, title="RULER, mean over tasks", ylabel="score / 100")
        page.append("![RULER over size](ruler.png)")
    write_results(folder, "RULER", settings, records, {"scores": results}, page, notes, made=made)


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
    """All ways side by side, as the documents grow, and paired tests of the best of ours and the best of the others."""
    rows = rows_of(records, metric)
    page = [rows_table(rows, metric), COLUMNS_NOTE, *filter(None, [reasons_list(rows)])]
    sizes = {row.size_tokens for row in rows}
    if len(sizes) > 1:
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            curves.setdefault(row.answerer, []).append((row.size_tokens, row.score))
        draw_curves(folder / "ways.png", curves, title="Ways of answering as the documents grow", ylabel=metric)
        page.append(f"![{metric} over size](ways.png)")
    growth = [entry for entry in growth if entry["size"] in sizes]
    if growth:
        page += ["## Taking the documents in", growth_table(growth)]
    tests: list[dict[str, Any]] = []
    for size in dict.fromkeys(row.size_tokens for row in rows):
        found = compare_best(records, metric, size)
        if found is None:
            continue
        difference = found.difference and vars(found.difference)
        tests.append({"size": size, **vars(found), "left_out": list(found.left_out), "difference": difference})
        page.append(difference_sentence(tests[-1]))
        bars = {row.answerer: (row.score, row.low, row.high) for row in rows if row.size_tokens == size}
        draw_bars(folder / f"ways-{size}.png", bars, title=f"{size:,} tokens of documents", xlabel=metric)
        page.append(f"![{metric} at {size:,} tokens](ways-{size}.png)")
    declined = declining(records)
    if declined:
        page += ["## Declining", declining_table(declined)]
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


def difference_sentence(test: Mapping[str, Any]) -> str:
    """A paired test, as :func:`report_comparison` stores it."""
    found, left_out = test["difference"], ", ".join(test["left_out"])
    chosen = f"{test['shared']} questions that all ways were asked" + (f" but {left_out}" if left_out else "")
    if found is None:
        return f"At {test['size']:,} tokens, no test: there are {chosen}; it takes {MIN_SHARED}, of ways of both sides."
    return (
        f"At {test['size']:,} tokens, {test['ours']} minus {test['other']} over the same {test['questions']} "
        f"questions: {found['mean']:+.3f} (95 % {found['low']:+.3f} to {found['high']:+.3f}), paired permutation test "
        f"p = {found['p_value']:.2g}. They are the best of ours and of the others on the {chosen}."
    )
