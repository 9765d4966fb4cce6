"""Results as files: one versioned JSON, a Markdown page for people, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.evaluation.cost import Shape, fetch_cost, linear_fit, route_cost
from msa.evaluation.environment import environment
from msa.evaluation.plots import draw_bars, draw_curves, draw_heat_map, token_count
from msa.evaluation.records import SCHEMA, Record
from msa.evaluation.ruler import GrowingMemory, score
from msa.evaluation.scaling import STAGES, curve, depth_rates
from msa.evaluation.summary import compare_best, markdown_table, rows_of, rows_table
from msa.training.files import replace_file

RESULTS_NAME, REPORT_NAME = "results.json", "report.md"
_QUESTION_TOKENS = 32


def write_results(
    folder: Path, what: str, settings: Mapping[str, Any], results: Mapping[str, Any], page: Sequence[str]
) -> None:
    """Write ``results.json`` and ``report.md``, each whole or not at all.

    Args:
        folder: of the run.
        what: its title.
        settings: all that decides the results.
        results: numbers, JSON throughout.
        page: paragraphs and tables of the report.
    """
    stamp = environment()
    content = {"schema": SCHEMA, "what": what, "settings": settings, "environment": stamp, "results": results}
    machine = f"{stamp['machine']}, {stamp['threads']} threads, device {stamp['device']}"
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    commit = f", commit {stamp['commit']}" if stamp["commit"] else ""
    made = f"{stamp['date']} · {machine} · {versions}{commit}"
    how = "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    text = "\n\n".join([f"# {what}", made, how, *page]) + "\n"
    replace_file(folder / RESULTS_NAME, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    replace_file(folder / REPORT_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def report_ruler(folder: Path, settings: Mapping[str, Any], records: Sequence[Record], notes: Sequence[str]) -> None:
    """RULER's scores of every way and size: each task, then their plain mean."""
    results: list[dict[str, Any]] = []
    page = [_notes(notes)]
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
    write_results(folder, "RULER", settings, {"scores": results}, page)


def report_comparison(
    folder: Path, settings: Mapping[str, Any], records: Sequence[Record], metric: str, notes: Sequence[str]
) -> None:
    """All ways side by side, and the paired test between the best of ours and the best of the others."""
    rows = rows_of(records, metric)
    page = [_notes(notes), rows_table(rows, metric)]
    tests = []
    for size in dict.fromkeys(row.size_tokens for row in rows):
        found = compare_best(records, metric, size)
        if found is None:
            continue
        tests.append({"size": size, **vars(found), "difference": vars(found.difference)})
        page.append(difference_sentence(tests[-1]))
        bars = {row.answerer: (row.score, row.low, row.high) for row in rows if row.size_tokens == size}
        draw_bars(folder / f"ways-{size}.png", bars, title=f"{size:,} tokens of documents", xlabel=metric)
        page.append(f"![{metric} at {size:,} tokens](ways-{size}.png)")
    results = {"metric": metric, "rows": [vars(row) for row in rows], "tests": tests}
    write_results(folder, "Ways of answering, side by side", settings, results, page)


def report_scaling(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    growing: GrowingMemory,
    growth: Sequence[Mapping[str, Any]],
    shape: Shape,
    top_k_docs: int,
) -> None:
    """The curve over memory size, the map of depths, and what it cost."""
    points = curve(records, growing.base_questions())
    maps = {stage: depth_rates(records, growing, stage) for stage in STAGES}
    costs = _costs(points, growth, shape, top_k_docs)
    title = f"{growing.task.name}: the same {points[0]['questions']} questions as the memory grows"
    draw_curves(
        folder / "curve.png",
        {stage: [(point["size"], point[stage]["rate"]) for point in points] for stage in STAGES},
        bands={s: [(p["size"], p[s]["low"], p[s]["high"]) for p in points] for s in STAGES},
        title=title,
        ylabel="share of questions",
    )
    draw_heat_map(
        folder / "depth.png",
        maps["answered"],
        rows=[f"{depth:.0f} %" for depth in growing.depths],
        columns=[token_count(size) for size in growing.sizes],
        title=f"{growing.task.name}: answered, by depth of the needle",
    )
    page = [
        _notes(growing.notes),
        f"## {title}",
        markdown_table(
            ["tokens", *STAGES, "95 % of answered", "s a question", "s to first token", "s to route", "GB resident"],
            [_point_cells(point) for point in points],
        ),
        "![Curve](curve.png)",
        "## Where the needle stands (begin to end of the memory), share answered",
        "![Map](depth.png)",
        "## Cost",
        markdown_table(
            ["tokens", "chunks", "encoded tokens/s", "GB on disk", "GFLOP to route", "MB read to route", "MB fetched"],
            [_cost_cells(cost) for cost in costs],
        ),
    ]
    results: dict[str, Any] = {"curve": points, "depths": list(growing.depths), "maps": maps, "costs": costs}
    results |= {"top_k_docs": top_k_docs, "router_layers": list(shape.router_layers)}
    if len(points) >= 3:
        fit = linear_fit([c["chunks"] for c in costs], [point["search_seconds"] for point in points])
        results["routing_fit"] = vars(fit)
        page.append(fit_sentence(vars(fit)))
    write_results(folder, "Memory size and depth", settings, results, page)


def difference_sentence(test: Mapping[str, Any]) -> str:
    """A paired test, as :func:`report_comparison` stores it."""
    found = test["difference"]
    return (
        f"At {test['size']:,} tokens, {test['ours']} minus {test['other']} over the same {test['questions']} "
        f"questions: {found['mean']:+.3f} (95 % {found['low']:+.3f} to {found['high']:+.3f}), paired permutation test "
        f"p = {found['p_value']:.2g}."
    )


def fit_sentence(fit: Mapping[str, float]) -> str:
    """The line through seconds to route, as :func:`report_scaling` stores it."""
    return (
        f"Seconds to route against chunks: {fit['intercept']:.4f} + {fit['slope']:.3g} · chunks, "
        f"R² = {fit['r_squared']:.4f}, worst relative residual {fit['worst_residual']:.2f}."
    )


def _costs(
    points: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]], shape: Shape, top_k_docs: int
) -> list[dict[str, Any]]:
    by_size = {entry["size"]: entry for entry in growth}
    costs = []
    for point in points:
        entry = by_size[point["size"]]
        routing = route_cost(shape, _QUESTION_TOKENS, entry["chunks"])
        costs.append(
            {
                **entry,
                "route_flops": routing.flops,
                "route_bytes": routing.bytes,
                "fetch_bytes": fetch_cost(shape, round(top_k_docs * entry["chunks"] / entry["documents"])).bytes,
            }
        )
    return costs


def _point_cells(point: Mapping[str, Any]) -> list[str]:
    answered = point["answered"]
    return [
        token_count(point["size"]),
        *(f"{point[stage]['rate']:.3f}" for stage in STAGES),
        f"{answered['low']:.2f}–{answered['high']:.2f}",
        f"{point['seconds']:.2f}",
        f"{point['first_token_s']:.2f}",
        f"{point['search_seconds']:.3f}",
        f"{point['resident_bytes'] / 1e9:.2f}",
    ]


def _cost_cells(cost: Mapping[str, Any]) -> list[str]:
    encoded = cost["encoded_tokens"]  # 0 where a run that was killed before it noted them had encoded all
    return [
        token_count(cost["tokens"]),
        f"{cost['chunks']:,}",
        f"{encoded / cost['encode_seconds']:,.0f}" if encoded else "–",
        f"{cost['bytes_on_disk'] / 1e9:.3f}",
        f"{cost['route_flops'] / 1e9:.2f}",
        f"{cost['route_bytes'] / 1e6:.1f}",
        f"{cost['fetch_bytes'] / 1e6:.3f}",
    ]


def _notes(notes: Sequence[str]) -> str:
    return "\n".join(f"* {note}" for note in dict.fromkeys(notes)) or "No notes."
