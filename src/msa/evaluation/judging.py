"""Records judged by a language model, kept as they come: an interrupted run judges nothing twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError, JudgeError
from msa.evaluation.judge import MAX_SCORE, Case, Judge, JudgeSettings, agreement
from msa.evaluation.records import Record


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
    known = _read(path, stamp)
    wanted = [record for record in records if record.answers and record.key not in known]
    failed: JudgeError | None = None
    if wanted:
        with Judge(settings) as judge, open(path, "a", encoding="utf-8") as file:
            cases = (Case(record.question, record.answers, record.text) for record in wanted)
            for index, judgement in judge.score_all(cases):
                if isinstance(judgement, JudgeError):
                    failed = failed or judgement
                    continue
                key = wanted[index].key
                known[key] = judgement.score
                file.write(json.dumps({"key": key, "score": judgement.score, "reply": judgement.reply}) + "\n")
                file.flush()
                os.fsync(file.fileno())
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


def _read(path: Path, stamp: dict[str, Any]) -> dict[tuple[str, str, int, str], int]:
    """What was judged before; the first line says by whom."""
    if not path.exists() or not path.stat().st_size:
        path.write_text(json.dumps({"judge": stamp}) + "\n", encoding="utf-8")
        return {}
    known: dict[tuple[str, str, int, str], int] = {}
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):  # the line a killed run was writing
        os.truncate(path, end)
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            entry = json.loads(line)
            if number == 1:
                if entry["judge"] != json.loads(json.dumps(stamp)):
                    raise EvaluationError(f"{path} was made by another judge or rubric; remove it to judge anew")
                continue
            answerer, name, size, question = entry["key"]
            known[answerer, name, int(size), question] = int(entry["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}, line {number}, is damaged ({error}); remove it to judge anew") from error
    return known
