"""Our own question sets: JSON lines of questions with a corpus beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from msa.documents.formats import clean_surrogates
from msa.errors import EvaluationError
from msa.evaluation.sets.questions import ANSWERABLE, QuestionCollector, answer_texts, flag
from msa.evaluation.types import Question, QuestionSet
from msa.training.data.collector import Fault, Place, read_records, shorten
from msa.training.data.fields import (
    as_list,
    as_object,
    document_text,
    identifier,
    kind_of,
    optional_list,
    optional_string,
    read_corpus,
    string,
)
from msa.training.files import replace_file

CORPUS_NAME, QUESTIONS_NAME = "corpus.jsonl", "questions.jsonl"
_KEYS = (
    "id",
    "question",
    "answers",
    "documents",
    "ids",
    "positives",
    "hops",
    "task",
    "answer_prefix",
    "max_new_tokens",
    "answerable",
    "metadata",
)
_EXAMPLE = '{"question": "...", "answers": ["..."], "ids": ["a"]}'


def read_ours(path: Path, corpus: Sequence[Path], collector: QuestionCollector) -> None:
    """Read a folder of ``questions.jsonl`` and ``corpus.jsonl``, or one file of questions and the corpus beside it.

    The corpus of ``x.jsonl`` is what ``corpus`` names, else ``x_corpus.jsonl``, else ``corpus.jsonl``, else nothing but
    the documents inside the questions.
    """
    questions = path / QUESTIONS_NAME if path.is_dir() else path
    if not questions.is_file():
        collector.add_problem(Place(path.as_posix()), "missing file", f"holds no {QUESTIONS_NAME}")
        return
    beside = [questions.with_name(f"{questions.stem}_corpus.jsonl"), questions.with_name(CORPUS_NAME)]
    files = corpus or [file for file in beside if file.is_file() and file != questions][:1]
    for file in files:
        read_corpus(file, collector)
    if files:
        collector.notes.append(f"documents from {', '.join(file.name for file in files)}")
    for place, record in read_records(questions, collector):
        with collector.faults(place):
            _add(as_object(record, _EXAMPLE), place, questions.name, collector)


def _add(record: dict[str, Any], place: Place, file: str, collector: QuestionCollector) -> None:
    where = f"{file}:{place.line}" + (f".{place.item}" if place.item else "")
    texts, given = _inline(record, where, collector)
    positives, hops = _positives(record, given)
    metadata = record.get("metadata")
    metadata = {} if metadata is None else dict(as_object(metadata, '{"date": "..."}'))
    if not flag(record, "answerable", True):
        metadata[ANSWERABLE] = False
    limit = record.get("max_new_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise Fault("wrong type", f'"max_new_tokens" is {shorten(str(limit))}. Give a whole number from 1')
    question = Question(
        id=where if record.get("id") is None else identifier(record, "id"),
        question=string(record, "question"),
        answers=() if record.get("answers") is None else answer_texts(record["answers"], "answers"),
        positives=positives,
        hops=hops,
        task=optional_string(record, "task") or "",
        answer_prefix=optional_string(record, "answer_prefix") or "",
        max_new_tokens=limit,
        metadata=metadata,
    )
    for name, text in texts:
        collector.add_document(name, text, place)
    collector.add_question(place, question)
    collector.note_unused(record, _KEYS)


def _inline(
    record: dict[str, Any], where: str, collector: QuestionCollector
) -> tuple[list[tuple[str, str]], list[str]]:
    """The documents that stand in the question itself: (id, text) of each, and the ids."""
    texts = []
    for index, item in enumerate(optional_list(record, "documents")):
        item = {"text": item} if isinstance(item, str) else as_object(item, '{"id": "a", "text": "..."}')
        name = f"{where}#{index}" if item.get("id") is None else identifier(item, "id")
        texts.append((name, document_text(item)))
        collector.note_unused(item, ("id", "text", "title"))
    return texts, [name for name, _ in texts]


def _positives(record: dict[str, Any], given: list[str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The documents that hold the answer: ``positives``, else ``ids`` and all the question's own; and the hops."""
    ids = _names(optional_list(record, "ids"), given, "ids")
    hops = tuple(tuple(_names(as_list(hop, "hops"), given, "hops")) for hop in optional_list(record, "hops"))
    if any(not hop for hop in hops):
        raise Fault("invalid question", '"hops" holds a step without documents')
    if record.get("positives") is not None:
        positives = _names(as_list(record["positives"], "positives"), given, "positives")
    elif ids or given:
        positives = [*ids, *given]
    else:
        positives = [name for hop in hops for name in hop]
    positives = list(dict.fromkeys(positives))
    strange = [name for hop in hops for name in hop if name not in positives]
    if strange:
        raise Fault("invalid question", f'"hops" names {shorten(strange[0])}, which does not hold the answer')
    return tuple(positives), hops


def _names(items: Sequence[Any], given: Sequence[str], key: str) -> list[str]:
    """Ids, from ids and from numbers that count the question's own documents."""
    names = []
    for item in items:
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, bool) or not isinstance(item, int):
            raise Fault("wrong type", f'"{key}" holds {kind_of(item)}. Give ids, or numbers that count "documents"')
        elif 0 <= item < len(given):
            names.append(given[item])
        else:
            what = f'"{key}" names document number {item}, but "documents" has {len(given)}, counted from 0'
            raise Fault("unknown id", what)
    return names


def write_question_set(question_set: QuestionSet, folder: str | Path) -> None:
    """Write ``questions.jsonl`` and ``corpus.jsonl``, which :func:`read_ours` reads back as the same questions.

    Each file is there whole or not at all; files of these names are replaced. Notes are not written, and lone
    surrogates become U+FFFD.

    Args:
        question_set: what to write.
        folder: where; it is made if it does not exist.

    Raises:
        EvaluationError: metadata that JSON cannot hold.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = ({"id": name, "text": text} for name, text in question_set.documents.items())
    write_lines(folder / CORPUS_NAME, corpus)
    write_lines(folder / QUESTIONS_NAME, map(_to_json, question_set.questions))


def _to_json(question: Question) -> dict[str, Any]:
    metadata = dict(question.metadata)
    fields: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "positives": list(question.positives),
        "hops": [list(hop) for hop in question.hops],
        "task": question.task,
        "answer_prefix": question.answer_prefix,
        "max_new_tokens": question.max_new_tokens,
        "answerable": metadata.pop(ANSWERABLE, True),
        "metadata": metadata,
    }
    optional = ("hops", "task", "answer_prefix", "max_new_tokens", "metadata")
    return {key: value for key, value in fields.items() if value or key not in optional}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines; the file is there whole or not at all.

    Raises:
        EvaluationError: a record that JSON cannot hold.
        OSError: the file cannot be written.
    """
    replace_file(path, _writer(records))


def _writer(records: Iterable[dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="\n") as out:
            for number, record in enumerate(records, start=1):
                try:
                    line = json.dumps(record, ensure_ascii=False)
                except (TypeError, ValueError, RecursionError) as error:
                    raise EvaluationError(f"record {number} cannot be written as JSON ({error})") from error
                out.write(clean_surrogates(line) + "\n")
            out.flush()
            os.fsync(out.fileno())

    return write
