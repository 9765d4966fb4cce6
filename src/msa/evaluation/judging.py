"""Records judged by a language model, kept as they come: an interrupted run judges nothing twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError, JudgeError
from msa.evaluation.digests import value_digest
from msa.evaluation.judge import MAX_SCORE, Case, Judge, JudgeSettings, JudgeUnavailableError
from msa.evaluation.judge_agreement import agreement
from msa.evaluation.line_file import BrokenLineError, LineFile
from msa.evaluation.records import Key, Record

# what a score was given for: a record's key, and a digest of question, reference answers and the very answer
Judged = tuple[Key, str]
JUDGE_NAME = "judge.jsonl"
_NAMED = 10  # answers that an error names


def unjudged(records: Sequence[Record], path: Path, settings: JudgeSettings) -> list[Record]:
    """Records that have reference answers and no score yet.

    Raises:
        EvaluationError: as :func:`judge_records`.
    """
    known = _known(LineFile(path), settings.stamp())
    return [record for record in records if record.answers and _judged(record) not in known]


def judge_records(
    records: Sequence[Record], path: Path, settings: JudgeSettings
) -> tuple[list[Record], dict[str, Any]]:
    """Give every answered record a score ``judge`` from 0 to 1, the judge's 0 to 5 divided by 5.

    Args:
        records: what was answered; those without reference answers are left as they are.
        path: JSON lines of what was judged; gone on from.
        settings: of the judge.

    Returns:
        The records, and the judge's stamp with its agreement with exact match.

    Raises:
        JudgeError: the judge failed on an answer, or is gone and no more were sent
            (:meth:`~msa.evaluation.judge.Judge.score_all`); those it failed on are named, what was judged is kept, and
            running again goes on with the others.
        EvaluationError: the file is damaged, or was made by another judge.
    """
    stamp = settings.stamp()
    lines = LineFile(path)
    is_new, known = lines.is_new, _known(lines, stamp)
    wanted = unjudged(records, path, settings)
    failed, reason = _judge(wanted, known, lines, settings, stamp if is_new else None) if wanted else ([], None)
    given = [(record, known.get(_judged(record))) for record in records]
    if reason is not None:
        kept = sum(points is not None for _, points in given)
        left = sum(_judged(record) not in known for record in wanted)
        raise JudgeError(
            f"{reason}. Of {len(wanted)} answers {left} are not judged: it failed on {_named(failed)}. {kept} answers "
            f"are judged and kept in {path}; run it again to go on"
        )
    judged = [
        record if points is None else replace(record, scores={**record.scores, "judge": points / MAX_SCORE})
        for record, points in given
    ]
    exact = [(points, record.scores.get("exact_match")) for record, points in given]
    both = [(points, match) for points, match in exact if points is not None and match is not None]
    if both:
        stamp["agreement_with_exact_match"] = vars(agreement([one for one, _ in both], [two for _, two in both]))
    return judged, stamp


def _judge(
    records: Sequence[Record],
    known: dict[Judged, int],
    lines: LineFile,
    settings: JudgeSettings,
    stamp: dict[str, Any] | None,
) -> tuple[list[Key], JudgeError | None]:
    """Ask about every record, keep each score in ``known`` and the file; returns what failed, and why."""
    failed: list[Key] = []
    reason: JudgeError | None = None
    with Judge(settings) as judge, lines:
        if stamp is not None:
            lines.append({"judge": stamp})
        cases = (Case(record.question, record.answers, record.text) for record in records)
        try:
            for index, judgement in judge.score_all(cases):
                key, digest = place = _judged(records[index])
                if isinstance(judgement, JudgeError):
                    failed.append(key)
                    reason = reason or judgement
                    continue
                known[place] = judgement.score
                lines.append({"key": key, "case": digest, "score": judgement.score, "reply": judgement.reply})
        except JudgeUnavailableError as error:  # it is why the others were not asked about
            reason = error
    return failed, reason


def _named(keys: Sequence[Key]) -> str:
    """Answers in words, the first of them.

    >>> _named([("msa", "capitals", 10, "a")])
    "'a' of capitals (msa, 10 tokens)"
    """
    shown = [f"{question!r} of {name} ({way}, {size:,} tokens)" for way, name, size, question in keys[:_NAMED]]
    return ", ".join(shown) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _judged(record: Record) -> Judged:
    return record.key, value_digest([record.question, record.answers, record.text])


def _known(lines: LineFile, stamp: dict[str, Any]) -> dict[Judged, int]:
    """The scores given before, none where the file has not begun; the first line says by whom.

    Raises:
        EvaluationError: the file is damaged, or was made by another judge.
    """
    path, entries = lines.path, lines.read()
    try:
        first = next(entries, None)
        if first is None:
            return {}
        header = first[1]
        if not isinstance(header, dict) or "judge" not in header:
            raise BrokenLineError(1, "it does not name the judge")
        if header["judge"] != json.loads(json.dumps(stamp)):
            raise EvaluationError(f"{path} was made by another judge or rubric; remove it to judge anew")
        return dict(_scored(number, entry) for number, entry in entries)
    except BrokenLineError as error:
        what = f"is damaged ({error.reason}); remove it to judge anew"
        raise EvaluationError(f"{path}, line {error.number}, {what}") from error


def _scored(number: int, entry: Any) -> tuple[Judged, int]:
    """Which answer a line is about, and its score."""
    try:
        answerer, name, size, question = entry["key"]
        key, score = (str(answerer), str(name), int(size), str(question)), int(entry["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenLineError(number, str(error)) from error
    if "case" not in entry:  # a file of an earlier version
        raise BrokenLineError(number, "it does not say which answer was judged")
    return (key, str(entry["case"])), score
