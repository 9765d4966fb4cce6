"""Results as files: one versioned JSON, a Markdown page for people, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.evaluation.cost import Shape, decode_cost, encode_cost, fetch_cost, linear_fit, prefill_cost, route_cost
from msa.evaluation.environment import environment
from msa.evaluation.plots import draw_bars, draw_curves, draw_heat_map, token_count
from msa.evaluation.records import SCHEMA, Record
from msa.evaluation.ruler import GrowingMemory, score
from msa.evaluation.scaling import STAGES, curve, depth_rates
from msa.evaluation.summary import compare_best, markdown_table, reasons_list, rows_of, rows_table, scores_table
from msa.training.files import replace_file

RESULTS_NAME, REPORT_NAME = "results.json", "report.md"
COLUMNS_NOTE = (
    "*tokens seen*: prompt tokens processed for a question; documents that a way has read, encoded or indexed before "
    "are not counted again. *MB*: held in memory for the documents, by each way's own count, files left out."
)
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
    text = "\n\n".join([f"# {what}", made, f"`{stamp['command']}`", how, *page]) + "\n"
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
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    metric: str,
    notes: Sequence[str],
    growth: Sequence[Mapping[str, Any]] = (),
) -> None:
    """All ways side by side, as the documents grow, and paired tests of the best of ours and the best of the others."""
    rows = rows_of(records, metric)
    page = [_notes(notes), rows_table(rows, metric), COLUMNS_NOTE, *filter(None, [reasons_list(rows)])]
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
        tests.append({"size": size, **vars(found), "difference": vars(found.difference)})
        page.append(difference_sentence(tests[-1]))
        bars = {row.answerer: (row.score, row.low, row.high) for row in rows if row.size_tokens == size}
        draw_bars(folder / f"ways-{size}.png", bars, title=f"{size:,} tokens of documents", xlabel=metric)
        page.append(f"![{metric} at {size:,} tokens](ways-{size}.png)")
    page += ["## Every metric", scores_table(records)]
    results = {"metric": metric, "rows": [vars(row) for row in rows], "tests": tests, "growth": growth}
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
        *step_costs(costs),
    ]
    results: dict[str, Any] = {"curve": points, "depths": list(growing.depths), "maps": maps, "costs": costs}
    results |= {"top_k_docs": top_k_docs, "router_layers": list(shape.router_layers)}
    if len(points) >= 3:
        fit = linear_fit([c["chunks"] for c in costs], [point["search_seconds"] for point in points])
        results["routing_fit"] = vars(fit)
        page.append(fit_sentence(vars(fit)))
    write_results(folder, "Memory size and depth", settings, results, page)


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
    found = test["difference"]
    return (
        f"At {test['size']:,} tokens, {test['ours']} minus {test['other']} over the same {test['questions']} "
        f"questions: {found['mean']:+.3f} (95 % {found['low']:+.3f} to {found['high']:+.3f}), paired permutation test "
        f"p = {found['p_value']:.2g}."
    )


def step_costs(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each step takes by formula and as torch counted it, as :func:`report_scaling` stores it."""
    if not all("encode_flops" in cost for cost in costs):
        return []
    steps = ("encode", "route", "fetch", "prefill", "decode")
    cells = [
        [
            token_count(cost["tokens"]),
            *(f"{cost[f'{step}_flops'] / 1e9:.3f} / {cost[f'{step}_bytes'] / 1e6:.1f}" for step in steps),
            f"{cost['search_flops'] / 1e9:.3f}" if "search_flops" in cost else "–",
            f"{cost['question_flops'] / 1e9:.2f}" if "question_flops" in cost else "–",
        ]
        for cost in costs
    ]
    columns = ["tokens", "encode a document", *steps[1:4], "decode a token", "search, counted", "answer, counted"]
    explained = (
        "GFLOP / MB read of each step for the first question, by formula: its own tokens, over what one pass selects. "
        "*Counted*: GFLOP by torch's counter while the question was searched for (a checkpoint that writes ids attends "
        "to what it routes to: routing and prefill together) and while it was answered, with all rounds and texts."
    )
    return [explained, markdown_table(columns, cells)]


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
        tokens, prefix = entry.get("question_tokens", _QUESTION_TOKENS), entry.get("prefix_tokens", 0)
        routing = route_cost(
            shape, tokens, entry["chunks"], prefix=prefix, routing_tokens=entry.get("routing_tokens", tokens)
        )
        selected = round(top_k_docs * entry["chunks"] / entry["documents"])
        formulas = {
            "encode": encode_cost(shape, round(entry["tokens"] / entry["documents"])),
            "route": routing,
            "fetch": fetch_cost(shape, selected),
            "prefill": prefill_cost(shape, tokens, selected, prefix=prefix),
            "decode": decode_cost(shape, prefix + tokens, selected),
        }
        counts = {f"{step}_{name}": value for step, cost in formulas.items() for name, value in vars(cost).items()}
        costs.append({**entry, **counts})
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
