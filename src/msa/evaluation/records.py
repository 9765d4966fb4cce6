"""What an evaluation found, sample by sample: an append-only file that an interrupted run goes on from."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

import msa.evaluation
from msa.errors import EvaluationError

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One question answered in one way.

    Attributes:
        answerer: name of the way.
        set: name of the question set.
        size_tokens: tokens of the documents it was answered from.
        question_id, task, question, answers, positives: of the question.
        text, retrieved, read, seconds, first_token_s, tokens_seen, note: of the prediction.
        resident_bytes: bytes held for the documents.
        scores: metric → value.
        metadata: of the question.
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

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from all other records of a run."""
        return self.answerer, self.set, self.size_tokens, self.question_id


class RecordLog:
    """``records.jsonl`` of a run: a first line with the settings, then one record a line, each on disk when written.

    Args:
        path: the file; an existing one is gone on from.
        settings: what decides the results, JSON throughout; a file made with others is refused.

    Raises:
        EvaluationError: the file holds something else, is damaged before its last line, or has other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[str, str, int, str], Record] = {}
        settings = json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            found = self._read()
            if found != settings:
                raise EvaluationError(
                    f"{path} was made with other settings: {_differences(found, settings)}. {_ADVICE}"
                )
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        else:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
            self._write({"schema": SCHEMA, "settings": settings})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self.records

    def append(self, record: Record) -> None:
        """Keep one record; it is on disk when this returns."""
        self._write(asdict(record))
        self.records[record.key] = record

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> Any:
        settings, end = None, 0
        for number, line, end_of_line in _lines(self.path):
            if not line.endswith(b"\n"):
                logger.warning("%s: the last line was cut off and is made again", self.path)
                break
            content = _parsed(line, self.path, number)
            if number == 1:
                if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                    raise EvaluationError(f"{self.path} is no results file of schema {SCHEMA}. {_ADVICE}")
                settings = content["settings"]
            else:
                record = _record(content, self.path, number)
                self.records[record.key] = record
            end = end_of_line
        if settings is None:
            raise EvaluationError(f"{self.path} ends within its first line. {_ADVICE}")
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)
        return settings


_ADVICE = "Give another --out, or remove the file to begin again"


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Settings and records of a finished or unfinished run.

    Raises:
        EvaluationError: no such file, or a damaged one; its line is named.
    """
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; an evaluation writes it with --out {path.parent}")
    settings: dict[str, Any] = {}
    records: dict[tuple[str, str, int, str], Record] = {}
    for number, line, _ in _lines(path):
        if not line.endswith(b"\n"):
            break
        content = _parsed(line, path, number)
        if number == 1:
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise EvaluationError(f"{path} is no results file of schema {SCHEMA}")
            settings = content["settings"]
        else:
            record = _record(content, path, number)
            records[record.key] = record
    return settings, list(records.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            yield number, line, end


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{path}, line {number}, is not JSON ({error}). {_ADVICE}") from error


def _record(content: Any, path: Path, number: int) -> Record:
    try:
        lists = {name: tuple(content[name]) for name in ("answers", "positives", "retrieved", "read")}
        return Record(**{**content, **lists})
    except (TypeError, KeyError) as error:
        raise EvaluationError(f"{path}, line {number}, is no record of schema {SCHEMA} ({error}). {_ADVICE}") from error


def _differences(found: Any, wanted: Any) -> str:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return f"{found!r} there, {wanted!r} now"
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    return "; ".join(f"{name} is {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)


def environment() -> dict[str, Any]:
    """Machine, versions, commit and date of a result."""
    return {
        "date": date.today().isoformat(),
        "machine": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("memory-sparse-attention", "torch", "transformers")},
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.machine()


def _commit() -> str:
    """The commit of the checkout this package runs from; an empty string for an installed one."""
    try:
        run = subprocess.run(
            ["git", "-C", str(Path(msa.evaluation.__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()
