"""LongMemEval (xiaowu0162/LongMemEval): each session of a chat history is one document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa.evaluation.sets.ours import write_lines
from msa.evaluation.sets.questions import ANSWERABLE, CONTEXT, QuestionCollector, answer_texts, strings
from msa.evaluation.types import Question, QuestionSet
from msa.training.data.collector import Fault, read_records, shorten
from msa.training.data.fields import as_list, as_object, identifier, missing, optional_string, string

_SESSIONS = ("haystack_session_ids", "haystack_dates", "haystack_sessions")
_ABSTENTION_SUFFIX = "_abs"


def read_longmemeval(path: Path, collector: QuestionCollector) -> None:
    """Read ``longmemeval_s.json``, ``_m`` or ``_oracle``: a list of questions, each with its own history.

    A session becomes the document ``<question id>/<session id>``: a line with its date, then a line ``user: …`` or
    ``assistant: …`` a turn. The question is asked with the date it was asked on. A question whose id ends with
    ``_abs`` cannot be answered: its reference answer says why, and it has no positives, as in the benchmark's own
    retrieval scores. Metadata: ``question_date``, and :data:`CONTEXT`, the sessions of its history.
    """
    empty = 0
    for place, record in read_records(path, collector):
        with collector.faults(place):
            record = as_object(record, '{"question_id": "...", "haystack_sessions": [...]}')
            name = identifier(record, "question_id")
            if "answer" not in record:
                raise missing(record, "answer")
            documents, num_empty = _sessions(record, name)
            answerable = not name.endswith(_ABSTENTION_SUFFIX)
            evidence = strings(record.get("answer_session_ids") or [], "answer_session_ids")
            date = optional_string(record, "question_date")
            question = string(record, "question")
            metadata: dict[str, Any] = {"question_date": date} if date else {}
            metadata |= {} if answerable else {ANSWERABLE: False}
            for document, text in documents.items():
                collector.add_document(document, text, place)
            collector.add_question(
                place,
                Question(
                    id=name,
                    question=f"Current Date: {date}\nQuestion: {question}" if date and question.strip() else question,
                    answers=answer_texts(record["answer"], "answer"),
                    positives=tuple(f"{name}/{session}" for session in evidence) if answerable else (),
                    task=string(record, "question_type"),
                    metadata={**metadata, CONTEXT: list(documents)},
                ),
            )
            empty += num_empty
    collector.notes.append("a session is a document that begins with its date; the question tells its own date")
    if empty:
        collector.notes.append(f"{empty} sessions without words are left out")


def _sessions(record: dict[str, Any], question: str) -> tuple[dict[str, str], int]:
    """Documents by id, in the order of the history; and how many sessions had no words."""
    lacking = [key for key in _SESSIONS if key not in record]
    if lacking:
        raise missing(record, lacking[0])
    ids, dates, sessions = (as_list(record[key], key) for key in _SESSIONS)
    if not len(ids) == len(dates) == len(sessions):
        what = f"has {len(ids)} session ids, {len(dates)} dates and {len(sessions)} sessions. Give one of each"
        raise Fault("wrong type", what)
    documents: dict[str, str] = {}
    empty = 0
    for session, date, turns in zip(strings(ids, _SESSIONS[0]), strings(dates, _SESSIONS[1]), sessions, strict=True):
        lines = [_turn(turn) for turn in as_list(turns, _SESSIONS[2])]
        if not any(lines):
            empty += 1
            continue
        name, text = f"{question}/{session}", "\n".join([f"Date: {date}", *filter(None, lines)])
        if documents.setdefault(name, text) != text:
            raise Fault("one id, two texts", f"the session {shorten(session)} is there twice, with two texts")
    return documents, empty


def _turn(turn: Any) -> str:
    """One line of a dialogue; empty where nothing is said."""
    turn = as_object(turn, '{"role": "user", "content": "..."}')
    content = string(turn, "content").strip()
    return f"{string(turn, 'role')}: {content}" if content else ""


def write_hypotheses(path: str | Path, question_set: QuestionSet, answers: Mapping[str, str]) -> None:
    """Write what the benchmark's own judge reads: ``{"question_id", "hypothesis"}`` a line, in the set's order.

    Args:
        path: the file; one that is there is replaced.
        question_set: what was asked.
        answers: question id → the answer's text; an empty one where there was none.

    Raises:
        ValueError: a question without an answer, which the benchmark would leave out of its mean, or an answer to a
            question that is not in the set.
        OSError: the file cannot be written.
    """
    ids = [question.id for question in question_set.questions]
    lacking, strange = [name for name in ids if name not in answers], answers.keys() - set(ids)
    if lacking or strange:
        raise ValueError(
            f"expected one answer to each of {len(ids)} questions of {question_set.name}: {len(lacking)} have none "
            f"{lacking[:3]}, {len(strange)} answers belong to no question {sorted(strange)[:3]}. Answer the rest first"
        )
    write_lines(Path(path), ({"question_id": name, "hypothesis": answers[name]} for name in ids))
