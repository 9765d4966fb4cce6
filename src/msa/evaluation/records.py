"""What an evaluation found, question by question: an append-only file that an interrupted run goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msa.errors import EvaluationError
from msa.evaluation.digests import value_digest
from msa.evaluation.environment import environment
from msa.evaluation.line_file import BrokenLineError, LineFile
from msa.evaluation.types import Prediction, Question

SCHEMA = 1
RECORDS_NAME = "records.jsonl"
_ADVICE = "Give another --out, or remove the file to begin again"

# what tells a record from all others of a run: way of answering, set, tokens of the documents, id of the question
Key = tuple[str, str, int, str]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One question answered in one way.

    Attributes:
        answerer: name of the way.
        set: name of the question set.
        size_tokens: tokens of the documents it was answered from.
        question_id, task, question, answers, positives: of the question.
        text, retrieved, read, seconds, first_token_s, tokens_seen, note: of the prediction; ``read`` is empty for ways
            that choose no documents, too.
        resident_bytes: bytes held for the documents.
        scores: metric → value.
        metadata: of the question.
        question_digest: of all that the question says; empty in files of earlier versions.
    """

    answerer: str
    set: str
    size_tokens: int
    question_id: str
    task: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    text: str
    retrieved: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    seconds: float = 0.0
    first_token_s: float = 0.0
    tokens_seen: int = 0
    note: str = ""
    resident_bytes: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    question_digest: str = ""

    @classmethod
    def of(
        cls,
        question: Question,
        prediction: Prediction,
        *,
        answerer: str,
        set: str,
        size_tokens: int,
        resident_bytes: int,
        scores: Mapping[str, float],
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """The record of a prediction; ``metadata`` are the question's unless others are given."""
        return cls(
            answerer=answerer,
            set=set,
            size_tokens=size_tokens,
            question_id=question.id,
            task=question.task,
            question=question.question,
            answers=question.answers,
            positives=question.positives,
            **{**vars(prediction), "read": prediction.read or ()},
            resident_bytes=resident_bytes,
            scores=scores,
            metadata=question.metadata if metadata is None else metadata,
            question_digest=value_digest(asdict(question)),
        )

    @property
    def key(self) -> Key:
        """What tells it from all other records of a run."""
        return self.answerer, self.set, self.size_tokens, self.question_id


@dataclass(frozen=True)
class Stretch:
    """What one session of a run measured.

    Attributes:
        environment: of that session; empty for records that come before the first stretch, of earlier versions.
        keys: of its records.
    """

    environment: Mapping[str, Any]
    keys: set[Key] = field(default_factory=set)


class RecordLog:
    """``records.jsonl`` of a run: a first line with the settings, then one record a line, each on disk when written.

    The first line comes with the first record, or with :meth:`begin`: a run that fails before leaves nothing that
    would refuse the next one. A line with the environment precedes the first record of every session that has one, so
    that a run which goes on elsewhere, or later, says what was measured where.

    Args:
        path: the file; an existing one is gone on from.
        settings: what decides the results, JSON throughout; a file made with others is refused.

    Raises:
        EvaluationError: the file holds something else, is damaged before its last line, or has other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.records: dict[Key, Record] = {}
        self._file, self._settings = LineFile(path), json.loads(json.dumps(settings))
        self._has_begun, self._is_stamped = not self._file.is_new, False
        if self._has_begun:
            found, self.records, _ = _contents(self._file)
            if found != self._settings:
                differences = _differences(found, self._settings)
                raise EvaluationError(f"{path} was made with other settings: {differences}. {_ADVICE}")
        self._file.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def begin(self) -> None:
        """Write down the settings, if they are not there; for what is kept beside the records and depends on them."""
        if not self._has_begun:
            self._file.append({"schema": SCHEMA, "settings": self._settings})
            self._has_begun = True

    def append(self, record: Record) -> None:
        """Keep one record; it is on disk when this returns."""
        self.begin()
        if not self._is_stamped:
            self._file.append({_STRETCH: environment(self._settings.get("device"))})
            self._is_stamped = True
        self._file.append(asdict(record))
        self.records[record.key] = record

    def missing(self, answerer: str, set: str, size_tokens: int, questions: Iterable[Question]) -> list[Question]:
        """Those of a set's questions that this way has not answered at this size, in order.

        Raises:
            EvaluationError: under a question's id another one was answered, or scored by other answers or documents.
        """
        missing = []
        for question in questions:
            record = self.records.get((answerer, set, size_tokens, question.id))
            if record is None:
                missing.append(question)
            elif record.question_digest != value_digest(asdict(question)):
                raise EvaluationError(
                    f"{self._file.path} holds another question {question.id!r} of {set!r}, or the same with other "
                    f"answers, documents or details; the questions have changed since. {_ADVICE}"
                )
        return missing

    def of_questions(self, answerer: str, set: str, size_tokens: int, questions: Iterable[Question]) -> list[Record]:
        """The records of a set's questions, in order; none of them may be missing."""
        return [self.records[answerer, set, size_tokens, question.id] for question in questions]


def begun_with(path: Path) -> dict[str, Any] | None:
    """Settings of the run that a file is of; None where none has begun.

    Raises:
        EvaluationError: the file holds something else.
    """
    file = LineFile(path)
    return None if file.is_new else _settings(file)


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Settings and records of a finished or unfinished run.

    Raises:
        EvaluationError: no such file, or a damaged one; its line is named.
    """
    settings, records, _ = _contents(_existing(path))
    return settings, list(records.values())


def read_stretches(path: Path) -> list[Stretch]:
    """The sessions in which the records of a run were measured, in order; those that measured nothing are left out.

    Raises:
        EvaluationError: no such file, or a damaged one; its line is named.
    """
    return [stretch for stretch in _contents(_existing(path))[2] if stretch.keys]


def _existing(path: Path) -> LineFile:
    """A file that is there."""
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; an evaluation writes it with --out {path.parent}")
    return LineFile(path)


def _contents(file: LineFile) -> tuple[dict[str, Any], dict[Key, Record], list[Stretch]]:
    """Settings, records and stretches.

    Raises:
        EvaluationError: the file holds something else, or is damaged before its last line.
    """
    records: dict[Key, Record] = {}
    settings, stretches = _settings(file), [Stretch({})]
    for number, content in islice(_lines(file), 1, None):
        if isinstance(content, dict) and _STRETCH in content:
            stretches.append(_stretch(content[_STRETCH], file.path, number))
            continue
        record = _record(content, file.path, number)
        records[record.key] = record
        stretches[-1].keys.add(record.key)
    return settings, records, stretches


def _settings(file: LineFile) -> dict[str, Any]:
    """What the first line says."""
    path, first = file.path, next(_lines(file), None)
    if first is None:
        raise EvaluationError(f"{path} holds no results yet; run the evaluation with --out {path.parent} again")
    header = first[1]
    if not isinstance(header, dict) or header.get("schema") != SCHEMA or not isinstance(header.get("settings"), dict):
        raise EvaluationError(f"{path} is no results file of schema {SCHEMA}. {_ADVICE}")
    settings: dict[str, Any] = header["settings"]
    return settings


def _lines(file: LineFile) -> Iterator[tuple[int, Any]]:
    try:
        yield from file.read()
    except BrokenLineError as error:
        raise EvaluationError(f"{file.path}, line {error.number}, is not JSON ({error.reason}). {_ADVICE}") from error


def _stretch(content: Any, path: Path, number: int) -> Stretch:
    fits = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in _STAMP.items())
    if not fits:
        raise EvaluationError(
            f"{path}, line {number}, is no stretch of schema {SCHEMA} (it needs {', '.join(_STAMP)}). {_ADVICE}"
        )
    return Stretch(content)


def _record(content: Any, path: Path, number: int) -> Record:
    try:
        if not isinstance(content, dict):
            raise TypeError(f"expected an object, found {type(content).__name__}")
        for name, (expected, fits) in _FIELDS.items():
            if name in content and not fits(content[name]):
                raise TypeError(f"{name} is {content[name]!r:.80}, expected {expected}")
        return Record(**{**content, **{name: tuple(content[name]) for name in _LISTS if name in content}})
    except TypeError as error:
        raise EvaluationError(f"{path}, line {number}, is no record of schema {SCHEMA} ({error}). {_ADVICE}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


_STRETCH = "stretch"  # of a line that is no record: the environment of those that follow
# what a report says of a stretch
_STAMP = {"date": str, "machine": str, "threads": int, "device": str, "versions": dict, "commit": str, "command": str}
_LISTS = ("answers", "positives", "retrieved", "read")
_TEXTS = ("answerer", "set", "question_id", "task", "question", "text", "note", "question_digest")
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_TEXTS, ("a text", lambda value: isinstance(value, str))),
    **dict.fromkeys(_LISTS, ("a list of texts", _are_texts)),
    **dict.fromkeys(("size_tokens", "tokens_seen", "resident_bytes"), ("a whole number", lambda v: type(v) is int)),
    **dict.fromkeys(("seconds", "first_token_s"), ("a number", _is_number)),
    "scores": ("numbers by name", _are_scores),
    "metadata": ("an object", lambda value: isinstance(value, dict)),
}


def _differences(found: Any, wanted: Any) -> str:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return f"{found!r} there, {wanted!r} now"
    there, now = ({name: repr(value) for name, value in one.items()} for one in (found, wanted))
    names = sorted(name for name in {*there, *now} if there.get(name) != now.get(name))
    return "; ".join(f"{name} is {there.get(name, 'missing')} there, {now.get(name, 'missing')} now" for name in names)
