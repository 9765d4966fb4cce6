"""Records → tables: one row per way of answering, and which of them differ from ours by more than chance."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.metrics import abstention_rates
from msa.evaluation.records import Record
from msa.evaluation.sets import ANSWERABLE
from msa.evaluation.statistics import holm, mean_interval, paired_difference

MIN_SHARED = 30  # questions that ways must share to be compared on them
_Key = tuple[str, str]  # set and id of a question
# what a row of ours is compared with to see what it changes, where that is not ``msa``
_WHOLE = {"msa-one-round": "msa-generative"}
# where metadata says of what kind a question is, else its task does
_KINDS = ("kind", "question_type")
_OF_RETRIEVAL = ("recall@", "precision", "retrieval_f1", "mrr", "ndcg@", "all_hops", "read")


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
        shared, num_shared: the mean over the questions that all ways of this size were asked, and how many those are;
            None for a way that is left out (:func:`shared_questions`).
        chosen, read: documents it chose a question, and those of them that the model was given the texts of, on
            average; None for ways that choose none.
        recall_1, recall: share of the right documents among the first, and the first 10, that it chose.
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
    shared: float | None
    num_shared: int
    chosen: float | None
    read: float | None
    recall_1: float | None
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
    asked: dict[int, dict[str, set[_Key]]] = {}
    for (size, name), group in groups.items():
        asked.setdefault(size, {})[name] = set(map(_key, group))
    shared = {size: shared_questions(by_name) for size, by_name in asked.items()}
    return [_row(name, size, group, metric, shared[size]) for (size, name), group in groups.items()]


def as_one_size(records: Sequence[Record]) -> list[Record]:
    """Records of questions that were each asked over documents of their own, all under the median of their sizes."""
    sizes = {_key(record): record.size_tokens for record in records}
    middle = int(median(sizes.values())) if sizes else 0
    return [replace(record, size_tokens=middle) for record in records]


def shared_questions(asked: Mapping[str, Collection[_Key]]) -> set[_Key]:
    """Questions that all ways were asked; ways that were asked fewer than :data:`MIN_SHARED` are left out, or none is.

    >>> few, many = [("set", "0")], [("set", str(number)) for number in range(40)]
    >>> len(shared_questions({"msa": many, "full": many[5:], "map-reduce": few})), len(shared_questions({"msa": few}))
    (35, 1)
    """
    enough = [set(keys) for keys in asked.values() if len(keys) >= MIN_SHARED]
    return set.intersection(*(enough or map(set, asked.values())))


def means_of_same(records: Sequence[Record], metric: str) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Way → (size, mean) over the same questions at every size, for curves that differ by size alone.

    Returns:
        The curves, and the number of questions: those that all ways of every size were asked, as for
        :func:`shared_questions`. A way that was not asked all of them at a size has no point there.
    """
    sizes = dict.fromkeys(record.size_tokens for record in scored(records, metric))
    asked = {size: _by_way(records, metric, size) for size in sizes}
    same = set.intersection(*(shared_questions({way: [*of] for way, of in ways.items()}) for ways in asked.values()))
    curves: dict[str, list[tuple[float, float]]] = {}
    for size, ways in asked.items():
        for way, scores in ways.items():
            if same and same <= scores.keys():
                curves.setdefault(way, []).append((size, _mean([scores[key] for key in same])))
    return curves, len(same)


def kinds_table(records: Sequence[Record], metric: str) -> str:
    """The metric by kind of question: each way's own questions, how many in brackets; empty where there is one kind."""
    kinds: dict[str, None] = {}
    groups: dict[tuple[int, str], dict[str, list[float]]] = {}
    for record in scored(records, metric):
        kind = next((str(record.metadata[key]) for key in _KINDS if key in record.metadata), record.task)
        kinds[kind] = None
        group = groups.setdefault((record.size_tokens, record.answerer), {})
        group.setdefault(kind, []).append(record.scores[metric])
    if len(kinds) < 2:
        return ""
    cells = []
    for (size, name), group in groups.items():
        found = (group.get(kind, []) for kind in sorted(kinds))
        cells.append([name, f"{size:,}", *(f"{_mean(of):.3f} ({len(of)})" if of else "–" for of in found)])
    return markdown_table(["way", "tokens", *sorted(kinds)], cells)


def _key(record: Record) -> _Key:
    return record.set, record.question_id


def _row(name: str, size: int, records: list[Record], metric: str, shared: set[_Key]) -> Row:
    values = [record.scores[metric] for record in records]
    interval = mean_interval(values)
    of_shared = [record.scores[metric] for record in records if _key(record) in shared]
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
        shared=_mean(of_shared) if shared and len(of_shared) == len(shared) else None,
        num_shared=len(shared),
        chosen=_mean([len(record.retrieved) for record in records]) if chooses else None,
        read=_mean([len(record.read) for record in records]) if chooses else None,
        recall_1=_recall(records, 1) if chooses else None,
        recall=_recall(records, 10) if chooses else None,
        seconds=median(record.seconds for record in records),
        first_token_s=median(record.first_token_s for record in records),
        tokens_seen=sum(record.tokens_seen for record in records) / len(records),
        resident_bytes=max(record.resident_bytes for record in records),
        reason=reasons[0] if reasons else "",
    )


def _recall(records: Sequence[Record], k: int) -> float | None:
    found = [record.scores[f"recall@{k}"] for record in records if f"recall@{k}" in record.scores]
    return _mean(found) if found else None


@dataclass(frozen=True)
class Tested:
    """Our row against one alternative.

    Attributes:
        other: name of the alternative.
        questions: asked of both, on which they are tested.
        mean, low, high, p_value: of ours minus the other, see :func:`paired_difference`.
        adjusted: the p-value adjusted for all tests of this size, see :func:`holm`.
    """

    other: str
    questions: int
    mean: float
    low: float
    high: float
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """One row of ours against every alternative at one size.

    Attributes:
        ours: its name.
        left_out: alternatives that share fewer than :data:`MIN_SHARED` questions with it.
        tests: of the others, in the order they were asked.
    """

    ours: str
    left_out: tuple[str, ...]
    tests: tuple[Tested, ...]


def compare_ours(records: Sequence[Record], metric: str, size_tokens: int) -> Comparison | None:
    """Paired tests between ``msa`` and every row that is not named ``msa…`` at one size; None if either is missing.

    Nothing is chosen by the answers: where ``msa`` was not asked, our row is the one that was asked first.
    """
    by_name = _by_way(records, metric, size_tokens)
    ours = "msa" if "msa" in by_name else next(filter(_is_ours, by_name), "")
    others = [name for name in by_name if not _is_ours(name)]
    if not ours or not others:
        return None
    tests = _tested(dict.fromkeys(others, ours), by_name)
    known = {test.other for test in tests}
    return Comparison(ours, tuple(name for name in others if name not in known), tests)


def compare_parts(records: Sequence[Record], metric: str, size_tokens: int) -> tuple[Tested, ...]:
    """Paired tests of what each ``msa-…`` row changes, against the row that is the same but for that.

    That is ``msa``, or :data:`_WHOLE`'s; rows with fewer than :data:`MIN_SHARED` questions in common with it have none.
    """
    by_name = _by_way(records, metric, size_tokens)
    wholes = {name: _WHOLE.get(name, "msa") for name in by_name if _is_ours(name) and name != "msa"}
    return _tested({name: whole for name, whole in wholes.items() if whole in by_name}, by_name)


def _by_way(records: Sequence[Record], metric: str, size_tokens: int) -> dict[str, dict[_Key, float]]:
    found: dict[str, dict[_Key, float]] = {}
    for record in scored(records, metric):
        if record.size_tokens == size_tokens:
            found.setdefault(record.answerer, {})[_key(record)] = record.scores[metric]
    return found


def _tested(pairs: Mapping[str, str], by_name: Mapping[str, Mapping[_Key, float]]) -> tuple[Tested, ...]:
    """Each row against another one, which is the second of a pair, where both have enough questions in common."""
    both = {name: [key for key in by_name[whole] if key in by_name[name]] for name, whole in pairs.items()}
    found = {
        name: paired_difference(*([by_name[side][key] for key in keys] for side in (name, pairs[name])))
        for name, keys in both.items()
        if len(keys) >= MIN_SHARED
    }
    adjusted = holm([one.p_value for one in found.values()])
    return tuple(
        Tested(name, len(both[name]), **vars(one), adjusted=value)
        for (name, one), value in zip(found.items(), adjusted, strict=True)
    )


def _is_ours(name: str) -> bool:
    return name.split("-")[0] == "msa"


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


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
    columns = ["way", "tokens", "questions", metric, "95 %", f"{metric}, shared questions", "documents chosen", "read"]
    columns += ["recall@1", "recall@10", "s", "s to first token", "tokens seen", "MB"]
    cells = [
        [
            row.answerer,
            f"{row.size_tokens:,}",
            f"{row.questions}" + (f" ({row.unanswered} without answer)" if row.unanswered else ""),
            f"{row.score:.3f}",
            f"{row.low:.2f}–{row.high:.2f}",
            "–" if row.shared is None else f"{row.shared:.3f} (n {row.num_shared})",
            "–" if row.chosen is None else f"{row.chosen:.1f}",
            "–" if row.read is None else f"{row.read:.1f}",
            "–" if row.recall_1 is None else f"{row.recall_1:.3f}",
            "–" if row.recall is None else f"{row.recall:.3f}",
            f"{row.seconds:.2f}",
            f"{row.first_token_s:.2f}",
            f"{row.tokens_seen:,.0f}",
            f"{row.resident_bytes / 1e6:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, cells)


def declining(records: Sequence[Record]) -> list[dict[str, Any]]:
    """How often each way declined what nothing answers, and what can be answered; empty where all can be."""
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.size_tokens, record.answerer), []).append(record)
    found = []
    for (size, name), group in groups.items():
        answerable = [record.metadata.get(ANSWERABLE) is not False for record in group]
        if all(answerable):
            continue
        rates = abstention_rates([record.text for record in group], answerable)
        counts = {"unanswerable": answerable.count(False), "answerable": answerable.count(True)}
        found.append({"answerer": name, "size_tokens": size, **counts, **vars(rates)})
    return found


def declining_table(found: Sequence[Mapping[str, Any]]) -> str:
    """What :func:`declining` found, as Markdown."""
    cells = [
        [
            row["answerer"],
            f"{row['size_tokens']:,}",
            *(
                "–" if row[rate] is None else f"{row[rate]:.3f} (n {row[kind]})"
                for rate, kind in (("accuracy", "unanswerable"), ("false_rate", "answerable"))
            ),
        ]
        for row in found
    ]
    return markdown_table(["way", "tokens", "declined, nothing answers it", "declined, it can be answered"], cells)


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
