"""Records → tables: one row per way of answering, and whether the best two differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from msa.errors import EvaluationError
from msa.evaluation.records import Record
from msa.evaluation.statistics import Difference, mean_interval, paired_difference

_OF_RETRIEVAL = ("recall@", "precision", "retrieval_f1", "mrr", "ndcg@", "all_hops")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of answering, over the questions it was asked.

    Attributes:
        answerer: its name.
        size_tokens: tokens of the documents.
        questions: how many it was asked.
        unanswered: how many of them got no answer, for a reason in the record's note; they count as wrong.
        reason: the first of these reasons; empty where every question was answered.
        score, low, high: mean of the metric and its 95 % interval.
        recall: share of the right documents among the first 10 it chose; None for ways that choose none.
        seconds, first_token_s: medians.
        tokens_seen: mean per question.
        resident_bytes: held for the documents.
    """

    answerer: str
    size_tokens: int
    questions: int
    unanswered: int
    score: float
    low: float
    high: float
    recall: float | None
    seconds: float
    first_token_s: float
    tokens_seen: float
    resident_bytes: int
    reason: str = ""


def scored(records: Sequence[Record], metric: str) -> list[Record]:
    """The records that have the metric.

    Raises:
        EvaluationError: none has; those there are named.
    """
    found = [record for record in records if metric in record.scores]
    if not found:
        known = sorted({name for record in records for name in record.scores})
        raise EvaluationError(f"no record is scored by {metric!r}; there are {', '.join(known) or 'no scores'}")
    return found


def rows_of(records: Sequence[Record], metric: str) -> list[Row]:
    """One row per way and size, in the order they were asked.

    Raises:
        EvaluationError: no record has the metric.
    """
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in scored(records, metric):
        groups.setdefault((record.size_tokens, record.answerer), []).append(record)
    return [_row(name, size, group, metric) for (size, name), group in groups.items()]


def _row(name: str, size: int, records: list[Record], metric: str) -> Row:
    values = [record.scores[metric] for record in records]
    interval = mean_interval(values)
    recalls = [record.scores["recall@10"] for record in records if "recall@10" in record.scores]
    chooses = any(record.retrieved for record in records)
    reasons = [record.note for record in records if record.note and not record.text]
    return Row(
        answerer=name,
        size_tokens=size,
        questions=len(records),
        unanswered=len(reasons),
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        recall=sum(recalls) / len(recalls) if recalls and chooses else None,
        seconds=median(record.seconds for record in records),
        first_token_s=median(record.first_token_s for record in records),
        tokens_seen=sum(record.tokens_seen for record in records) / len(records),
        resident_bytes=max(record.resident_bytes for record in records),
        reason=reasons[0] if reasons else "",
    )


@dataclass(frozen=True)
class Comparison:
    """The best of our rows and the best of the others, on the questions both were asked; see ``difference``.

    Attributes:
        ours, other: their names.
        questions: asked of both.
        difference: ours minus the other, with interval and p-value.
    """

    ours: str
    other: str
    questions: int
    difference: Difference


def compare_best(records: Sequence[Record], metric: str, size_tokens: int) -> Comparison | None:
    """Paired test between the best row named ``msa…`` and the best other row at one size; None if one is missing.

    The best of several rows is chosen on the questions it is tested on, which favours both sides alike.
    """
    by_name: dict[str, dict[tuple[str, str], float]] = {}
    for record in scored(records, metric):
        if record.size_tokens == size_tokens:
            by_name.setdefault(record.answerer, {})[record.set, record.question_id] = record.scores[metric]
    ours = {name: values for name, values in by_name.items() if name.split("-")[0] == "msa"}
    others = {name: values for name, values in by_name.items() if name not in ours}
    if not ours or not others:
        return None
    best, rival = (max(side, key=lambda name: _mean(side[name])) for side in (ours, others))
    shared = [key for key in by_name[best] if key in by_name[rival]]
    if not shared:
        return None
    first, second = ([by_name[name][key] for key in shared] for name in (rival, best))
    return Comparison(best, rival, len(shared), paired_difference(first, second))


def _mean(values: dict[tuple[str, str], float]) -> float:
    return sum(values.values()) / len(values)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers.

    >>> print(markdown_table(["way", "score"], [["msa", "0.5"]]))
    | way | score |
    |---|---:|
    | msa | 0.5 |
    """
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def rows_table(rows: Sequence[Row], metric: str) -> str:
    """The rows as Markdown."""
    columns = ["way", "tokens", "questions", metric, "95 %", "recall@10", "s", "s to first token", "tokens seen", "MB"]
    cells = [
        [
            row.answerer,
            f"{row.size_tokens:,}",
            f"{row.questions}" + (f" ({row.unanswered} without answer)" if row.unanswered else ""),
            f"{row.score:.3f}",
            f"{row.low:.2f}–{row.high:.2f}",
            "–" if row.recall is None else f"{row.recall:.3f}",
            f"{row.seconds:.2f}",
            f"{row.first_token_s:.2f}",
            f"{row.tokens_seen:,.0f}",
            f"{row.resident_bytes / 1e6:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, cells)


def reasons_list(rows: Sequence[Row]) -> str:
    """Why questions got no answer, row by row; empty where all did."""
    return "\n".join(
        f"* {row.answerer} at {row.size_tokens:,} tokens, {row.unanswered} of {row.questions} unanswered: {row.reason}"
        for row in rows
        if row.reason
    )


def scores_table(records: Sequence[Record]) -> str:
    """Means of every metric of every way and size as Markdown; each over the questions that have it.

    A way that chooses no documents has no metrics of retrieval.
    """
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.size_tokens, record.answerer), []).append(record)
    metrics = list(dict.fromkeys(name for record in records for name in record.scores))
    cells = []
    for (size, name), group in groups.items():
        chooses = any(record.retrieved for record in group)
        has = [metric for metric in metrics if chooses or not metric.startswith(_OF_RETRIEVAL)]
        found = [[one.scores[metric] for one in group if metric in has and metric in one.scores] for metric in metrics]
        cells.append([name, f"{size:,}", *(f"{sum(values) / len(values):.3f}" if values else "–" for values in found)])
    return markdown_table(["way", "tokens", *metrics], cells)
