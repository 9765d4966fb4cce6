"""Records judged by a language model, kept as they come: an interrupted run judges nothing twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError, JudgeError
from msa.evaluation.judge import MAX_SCORE, Case, Judge, JudgeSettings, agreement
from msa.evaluation.line_file import BrokenLineError, LineFile
from msa.evaluation.records import Key, Record


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
        JudgeError: the judge failed on an answer; what was judged before is kept, and running again goes on.
        EvaluationError: the file is damaged, or was made by another judge.
    """
    stamp = settings.stamp()
    lines = LineFile(path)
    is_new = lines.is_new
    known = {} if is_new else _known(lines, stamp)
    wanted = [record for record in records if record.answers and record.key not in known]
    failed: JudgeError | None = None
    if wanted:
        with Judge(settings) as judge, lines:
            if is_new:
                lines.append({"judge": stamp})
            cases = (Case(record.question, record.answers, record.text) for record in wanted)
            for index, judgement in judge.score_all(cases):
                if isinstance(judgement, JudgeError):
                    failed = failed or judgement
                    continue
                key = wanted[index].key
                known[key] = judgement.score
                lines.append({"key": key, "score": judgement.score, "reply": judgement.reply})
    if failed is not None:
        raise JudgeError(f"{failed}. {len(known)} answers are judged and kept in {path}; run it again to go on")
    judged = [
        replace(record, scores={**record.scores, "judge": known[record.key] / MAX_SCORE})
        if record.key in known
        else record
        for record in records
    ]
    both = [(known[r.key], r.scores["exact_match"]) for r in records if r.key in known and "exact_match" in r.scores]
    if both:
        stamp["agreement_with_exact_match"] = vars(agreement([one for one, _ in both], [two for _, two in both]))
    return judged, stamp


def _known(lines: LineFile, stamp: dict[str, Any]) -> dict[Key, int]:
    """The scores given before; the first line says by whom.

    Raises:
        EvaluationError: the file is damaged, or was made by another judge.
    """
    path, entries = lines.path, lines.read()
    try:
        first = next(entries, None)
        if first is None:
            raise EvaluationError(f"{path} ends within its first line; remove it to judge anew")
        header = first[1]
        if not isinstance(header, dict) or "judge" not in header:
            raise BrokenLineError(1, "it does not name the judge")
        if header["judge"] != json.loads(json.dumps(stamp)):
            raise EvaluationError(f"{path} was made by another judge or rubric; remove it to judge anew")
        return dict(_scored(number, entry) for number, entry in entries)
    except BrokenLineError as error:
        what = f"is damaged ({error.reason}); remove it to judge anew"
        raise EvaluationError(f"{path}, line {error.number}, {what}") from error


def _scored(number: int, entry: Any) -> tuple[Key, int]:
    """Which record a line is about, and its score."""
    try:
        answerer, name, size, question = entry["key"]
        return (str(answerer), str(name), int(size), str(question)), int(entry["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenLineError(number, str(error)) from error
