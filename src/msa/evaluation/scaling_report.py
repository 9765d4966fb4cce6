"""Memory size and depth as files: the page, its tables, pictures and what each step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.evaluation.cost import Shape, decode_cost, encode_cost, fetch_cost, linear_fit, prefill_cost, route_cost
from msa.evaluation.plots import draw_curves, draw_heat_map, token_count
from msa.evaluation.records import Record
from msa.evaluation.results import write_results
from msa.evaluation.ruler import Placement, density_note
from msa.evaluation.scaling_rates import PARTS, STAGES, scaling_rates
from msa.evaluation.summary import markdown_table

_QUESTION_TOKENS = 32


def report_scaling(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    placement: Placement,
    costs: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    *,
    attention: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
) -> None:
    """The curve over memory size, the maps of depths, and what it cost.

    Args:
        folder, settings, made: see :func:`msa.evaluation.results.write_results`.
        records: of all sizes.
        placement: where the needles stand.
        costs: of each size, see :func:`scaling_costs`.
        notes: of the growing memory.
        attention: ``top_k_docs`` and ``router_layers`` of the model.
    """
    results = scaling_rates(records, placement)
    results |= {"costs": list(costs), **attention, **_fits(results["curve"], costs)}
    task = placement.task.name
    _draw(folder, f"{settings.get('model', 'model')}, {task}", results)
    page = [
        f"## {task}: {curve_title(results['curve'])}",
        curve_table(results["curve"]),
        "![Curve](curve.png)",
        *needles_section(results),
        "## Where the needle stands (begin to end of the memory), share answered",
        *parts_section(results),
        "![Map](depth.png)",
        *(["![Map of those alone in their documents](depth-alone.png)"] if results["alone"] else []),
        "## Cost",
        markdown_table(
            ["tokens", "chunks", "encoded tokens/s", "GB on disk", "GFLOP to route", "MB read to route", "MB fetched"],
            [_cost_cells(cost) for cost in costs],
        ),
        *step_costs(costs),
        *measured_steps(results["curve"]),
        *fit_sentences(results),
    ]
    kept = [*notes, *filter(None, [density_note(placement)])]
    write_results(folder, "Memory size and depth", settings, records, results, page, kept, made=made)


def _draw(folder: Path, asked: str, results: Mapping[str, Any]) -> None:
    curves = {stage: (results["curve"], stage) for stage in STAGES}
    if results["alone"]:
        points = results["alone"]["curve"]
        curves[f"answered, {points[0]['questions']} alone in their documents"] = (points, "answered")
    draw_curves(
        folder / "curve.png",
        {name: [(point["size"], point[stage]["rate"]) for point in points] for name, (points, stage) in curves.items()},
        bands={
            name: [(p["size"], p[stage]["low"], p[stage]["high"]) for p in points]
            for name, (points, stage) in curves.items()
        },
        title=f"{asked}: {curve_title(results['curve'])}",
        ylabel="share of questions",
    )
    for name, what, found in (
        ("depth.png", "answered, by depth of the needle", results),
        ("depth-alone.png", "answered, by depth, alone in their documents", results["alone"]),
    ):
        if found:
            draw_heat_map(
                folder / name,
                found["maps"]["answered"],
                found["asked"],
                rows=[f"{depth:.0f} %" for depth in results["depths"]],
                columns=[token_count(size) for size in results["sizes"]],
                title=f"{asked}: {what}",
            )


def curve_title(points: Sequence[Mapping[str, Any]]) -> str:
    """Which questions a curve is of."""
    return f"the same {points[0]['questions']} questions as the memory grows"


def curve_table(points: Sequence[Mapping[str, Any]]) -> str:
    """A curve, as :func:`report_scaling` stores it, with 95 % intervals."""
    columns = ["tokens in memory", *STAGES, "s a question", "s to first token", "s to route", "GB resident"]
    return markdown_table(columns, [_point_cells(point) for point in points])


def needles_section(results: Mapping[str, Any], heading: str = "##") -> list[str]:
    """What it does to the curve that documents hold several needles; nothing where each holds one."""
    needles, sizes, alone = results["needles"], results["sizes"], results["alone"]
    if len(needles) < 2:
        return []
    rows = [[str(entry["needles"]), *map(rate_cell, entry["answered"])] for entry in needles]
    last = [(entry["needles"], entry["answered"][-1]) for entry in needles if entry["answered"][-1]]
    said = ", ".join(f"{number}: {found['rate']:.3f} (n {found['questions']})" for number, found in last)
    section = [
        f"{heading} How many needles the document of a question holds, share answered",
        f"At {token_count(sizes[-1])} tokens, by needles in the document: {said}. Curves and depths of "
        "questions whose documents hold unlike numbers of needles differ by that, and not only by size or depth.",
        markdown_table(["needles in the document", *map(token_count, sizes)], rows),
    ]
    if alone:
        section += [
            f"{heading} Alone in their documents: {curve_title(alone['curve'])} from {alone['size']:,} tokens on",
            curve_table(alone["curve"]),
        ]
    return section


def parts_section(results: Mapping[str, Any]) -> list[str]:
    """Beginning, middle and end of the memory; also for the questions alone in their documents."""
    tables = [_parts_table(results["parts"], results["sizes"])]
    if results["alone"]:
        tables = ["All questions:", *tables, "Those whose document holds no other needle:"]
        tables.append(_parts_table(results["alone"]["parts"], results["sizes"]))
    return tables


def _parts_table(parts: Mapping[str, Sequence[Mapping[str, float] | None]], sizes: Sequence[int]) -> str:
    rows = [[f"{part} ({PARTS[part][0]}–{PARTS[part][1]} %)", *map(rate_cell, found)] for part, found in parts.items()]
    return markdown_table(["where the needle stands", *map(token_count, sizes)], rows)


def rate_cell(found: Mapping[str, float] | None) -> str:
    """A rate with its interval and number of questions, as :func:`report_scaling` stores it."""
    return f"{_interval(found)[:-1]}, n {found['questions']})" if found else "–"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['rate']:.3f} ({found['low']:.2f}–{found['high']:.2f})"


def measured_steps(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the seconds of an answer are made of, as :func:`report_scaling` stores it; nothing in older results."""
    steps = ("retrieval_seconds", "prefill_seconds", "decode_seconds")
    if not all(step in point for step in steps for point in points):
        return []
    cells = [
        [
            token_count(point["size"]),
            f"{point['search_seconds']:.4f}",
            *(f"{point[step]:.4f}" for step in steps),
            f"{point['token_seconds'] * 1e3:.2f}" if "token_seconds" in point else "–",
        ]
        for point in points
    ]
    explained = (
        "Measured, seconds, medians of the curve's questions. *Search*: one routing pass. *Retrieval*: all rounds of "
        "an answer, each a pass that routes and fetches what it attends to, the ids written and texts looked up. "
        "*Prefill*: from there to the answer's first token, what was found being read. *Decode*: the answer's further "
        "tokens. *ms a token*: a pass for one, ids among them. What fetching takes is inside the passes, not measured "
        "alone."
    )
    columns = ["tokens", "search", "retrieval", "prefill", "decode", "ms a token"]
    return [explained, markdown_table(columns, cells)]


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


def fit_sentences(results: Mapping[str, Any]) -> list[str]:
    """The lines through seconds to route and to encode, as :func:`report_scaling` stores them."""
    lines = (
        ("routing_fit", "Seconds to route against chunks", "chunks"),
        ("encoding_fit", "Seconds to encode what each size adds against its tokens", "tokens"),
    )
    return [_fit_sentence(what, unit, results[name]) for name, what, unit in lines if name in results]


def _fit_sentence(what: str, unit: str, fit: Mapping[str, float]) -> str:
    return (
        f"{what}: {fit['intercept']:.4f} + {fit['slope']:.3g} · {unit}, "
        f"R² = {fit['r_squared']:.4f}, worst relative residual {fit['worst_residual']:.2f}."
    )


def _fits(points: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lines through costs, where there are three sizes."""
    fits = {}
    if len(points) >= 3:
        routing = linear_fit([cost["chunks"] for cost in costs], [point["search_seconds"] for point in points])
        fits["routing_fit"] = vars(routing)
    encoded = [cost for cost in costs if cost["encoded_tokens"]]
    if len(encoded) >= 3:
        seconds = [cost["encode_seconds"] for cost in encoded]
        fits["encoding_fit"] = vars(linear_fit([cost["encoded_tokens"] for cost in encoded], seconds))
    return fits


def scaling_costs(
    sizes: Sequence[int], growth: Sequence[Mapping[str, Any]], shape: Shape, top_k_docs: int
) -> list[dict[str, Any]]:
    """What each size cost to grow to, and what each step costs there by formula."""
    by_size = {entry["size"]: entry for entry in growth}
    costs = []
    for entry in map(by_size.__getitem__, sizes):
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
    return [
        token_count(point["size"]),
        *(_interval(point[stage]) for stage in STAGES),
        f"{point['seconds']:.2f}",
        f"{point['first_token_s']:.2f}",
        f"{point['search_seconds']:.3f}",
        f"{point['resident_bytes'] / 1e9:.2f}",
    ]


def encoding_rate(cost: Mapping[str, Any]) -> str:
    """Tokens a second; a dash where a run that was killed before it noted them had encoded all."""
    return f"{cost['encoded_tokens'] / cost['encode_seconds']:,.0f}" if cost["encoded_tokens"] else "–"


def _cost_cells(cost: Mapping[str, Any]) -> list[str]:
    return [
        token_count(cost["tokens"]),
        f"{cost['chunks']:,}",
        encoding_rate(cost),
        f"{cost['bytes_on_disk'] / 1e9:.3f}",
        f"{cost['route_flops'] / 1e9:.2f}",
        f"{cost['route_bytes'] / 1e6:.1f}",
        f"{cost['fetch_bytes'] / 1e6:.3f}",
    ]
