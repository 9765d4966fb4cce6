"""Records of a growing memory → rates: over its size, over depth, and by how many needles a document holds.

Questions whose needles share a document are another task than one needle in a document of its own. Where a run has
both, every rate is there twice: over all questions, and over those alone in their documents.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median
from typing import Any

from msa.evaluation.records import Record
from msa.evaluation.ruler import Placement
from msa.evaluation.statistics import mean_interval

STAGES = ("routed", "read", "answered")
# parts of the memory by where a needle's document stands in it, in percent; the last one has its end
PARTS = {"beginning": (0, 20), "middle": (20, 80), "end": (80, 100)}
_ENOUGH = 30  # questions of a curve


def scaling_rates(records: Sequence[Record], placement: Placement) -> dict[str, Any]:
    """All rates of a run.

    Returns:
        ``curve``, ``maps``, how many questions each field of a map is of (``asked``) and ``parts`` of all questions;
        ``needles``: answered by the needles a document holds;
        ``alone``: the same four and the first size of the questions alone in their documents, None where all are or
        none is; ``sizes`` and ``depths``: of the tables.
    """
    base = [placed.id for placed in placement.by_size[0]]
    by_density: dict[int, list[Record]] = {}
    for record in records:
        by_density.setdefault(placement.density(record.question_id), []).append(record)
    needles = [
        {"needles": number, "answered": [rate(_at(by_density[number], size)) for size in placement.sizes]}
        for number in sorted(by_density)
    ]
    return {
        "sizes": list(placement.sizes),
        "depths": list(placement.depths),
        "curve": curve(records, base),
        **_by_depth(records, placement),
        "needles": needles,
        "alone": _alone(by_density[1], placement) if 1 in by_density and len(by_density) > 1 else None,
    }


def _alone(records: Sequence[Record], placement: Placement) -> dict[str, Any]:
    """Rates of the questions alone in their documents; the curve begins with the first size that has enough of them."""
    for size in placement.sizes:
        asked = {record.question_id for record in _at(records, size)}
        if len(asked) >= _ENOUGH:
            break
    later = [record for record in records if record.size_tokens >= size]
    return {"size": size, "curve": curve(later, asked), **_by_depth(records, placement)}


def _by_depth(records: Sequence[Record], placement: Placement) -> dict[str, Any]:
    return {
        "maps": {stage: depth_rates(records, placement, stage) for stage in STAGES},
        "asked": depth_questions(records, placement),
        "parts": part_rates(records, placement),
    }


def curve(records: Sequence[Record], ids: Collection[str]) -> list[dict[str, Any]]:
    """Per size the stages' rates of the questions that are asked at every size, with 95 % intervals, and times."""
    wanted = set(ids)
    points = []
    for size in sorted({record.size_tokens for record in records}):
        group = [record for record in _at(records, size) if record.question_id in wanted]
        if not group:
            continue
        point: dict[str, Any] = {"size": size, "questions": len(group)}
        point |= {stage: rate(group, stage) for stage in STAGES}
        point["seconds"] = median(record.seconds for record in group)
        point["first_token_s"] = median(record.first_token_s for record in group)
        point["search_seconds"] = median(record.metadata["search_seconds"] for record in group)
        point["resident_bytes"] = max(record.resident_bytes for record in group)
        points.append(point | _step_seconds(group))
    return points


def _step_seconds(records: Sequence[Record]) -> dict[str, float]:
    """Medians of what an answer's seconds are made of; those of a pass for one token where records have them."""
    asked = [record for record in records if record.first_token_s and "route_seconds" in record.metadata]
    if not asked:
        return {}
    seconds = {
        "retrieval_seconds": median(one.metadata["route_seconds"] for one in asked),
        "prefill_seconds": median(one.first_token_s - one.metadata["route_seconds"] for one in asked),
        "decode_seconds": median(map(_decode_seconds, asked)),
    }
    passes = [
        one.metadata["pass_seconds"] / one.metadata["decode_passes"]
        for one in asked
        if one.metadata.get("decode_passes")
    ]
    return seconds | ({"token_seconds": median(passes)} if passes else {})


def _decode_seconds(record: Record) -> float:
    """After an answer's first token; records of earlier versions have it with what precedes the question's start."""
    seconds: float = record.metadata.get("decode_seconds", record.seconds - record.first_token_s)
    return seconds


def rate(records: Sequence[Record], stage: str = "answered") -> dict[str, float] | None:
    """Mean of a stage with its 95 % interval, and over how many questions; None without any."""
    if not records:
        return None
    found = mean_interval([record.scores[stage] for record in records])
    return {"rate": found.mean, "low": found.low, "high": found.high, "questions": len(records)}


def depth_rates(records: Sequence[Record], placement: Placement, stage: str) -> list[list[float | None]]:
    """Rate of a stage for each depth of the grid (rows) at each size (columns); None where nothing was asked."""
    cells = _depth_cells(records, placement, stage)
    return [[sum(values) / len(values) if values else None for values in row] for row in cells]


def depth_questions(records: Sequence[Record], placement: Placement) -> list[list[int]]:
    """How many questions each rate of :func:`depth_rates` is of."""
    return [[len(values) for values in row] for row in _depth_cells(records, placement, STAGES[-1])]


def _depth_cells(records: Sequence[Record], placement: Placement, stage: str) -> list[list[list[float]]]:
    """A stage's scores for each depth of the grid (rows) at each size (columns)."""
    by_key = {(record.size_tokens, record.question_id): record.scores[stage] for record in records}
    columns = [
        [[by_key[size, name] for name in cell if (size, name) in by_key] for cell in placement.depth_map(size).values()]
        for size in placement.sizes
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def part_rates(records: Sequence[Record], placement: Placement) -> dict[str, list[dict[str, float] | None]]:
    """Share answered for each of :data:`PARTS` of the memory, at each size."""
    parts: dict[str, list[dict[str, float] | None]] = {part: [] for part in PARTS}
    for size in placement.sizes:
        found: dict[str, list[Record]] = {part: [] for part in PARTS}
        for record in _at(records, size):
            depth = placement.depth(record.question_id, size)[0]
            found[next((part for part, (_, end) in PARTS.items() if depth < end), "end")].append(record)
        for part, group in found.items():
            parts[part].append(rate(group))
    return parts


def _at(records: Sequence[Record], size: int) -> list[Record]:
    return [record for record in records if record.size_tokens == size]
