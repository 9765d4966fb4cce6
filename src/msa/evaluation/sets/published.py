"""The question sets published with the paper (MSA-RAG-BENCHMARKS): ``qdata_<name>.pkl`` and ``mdata_<name>.pkl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.documents.formats import clean_surrogates
from msa.errors import EvaluationError
from msa.evaluation.sets.ours import write_question_set
from msa.evaluation.sets.plain_data import MAX_BYTES, read_plain_data
from msa.evaluation.sets.questions import QuestionCollector
from msa.evaluation.types import Question, QuestionSet
from msa.training.data.collector import Fault, Place, shorten

_QUESTIONS, _DOCUMENTS, _SUFFIX = "qdata_", "mdata_", ".pkl"


def find_published(path: Path) -> Path | None:
    """The file of questions that ``path`` is or, as a folder, holds; None: it holds none.

    Raises:
        EvaluationError: a folder with several.
    """
    if path.is_file():
        named = path.name.startswith(_QUESTIONS) and path.suffix.lower() == _SUFFIX
        return path if named else None
    found = sorted(path.glob(f"{_QUESTIONS}*{_SUFFIX}"))
    if len(found) > 1:
        raise EvaluationError(f"{path} holds {len(found)} sets. Name one: {', '.join(file.name for file in found)}")
    return found[0] if found else None


def read_published(path: Path, collector: QuestionCollector, *, max_bytes: int = MAX_BYTES) -> None:
    """Read one set: a list of ``query``, ``reference_list``, ``answer``, and the documents in memory.

    The documents are a list of texts, whose ids are their numbers from 0, or a mapping of id to text. A reference is
    the text of a document, its place in the list, or its key in the mapping. A document equal to an earlier one is left
    out.

    Raises:
        EvaluationError: a file that cannot be read, or holds anything but plain data.
    """
    source = find_published(path)
    if source is None:
        what = f"expected {_QUESTIONS}<name>{_SUFFIX}, or a folder that holds one"
        raise EvaluationError(f"{path}: {what}, and {_DOCUMENTS}<name>{_SUFFIX} beside it")
    memory = _memory_of(source)
    questions, documents = read_plain_data(source, max_bytes=max_bytes), read_plain_data(memory, max_bytes=max_bytes)
    name_of = _add_documents(documents, memory, collector)
    if not isinstance(questions, list | tuple):
        raise EvaluationError(f"{source}: expected a list of questions, found a {type(questions).__name__}")
    name = source.stem.removeprefix(_QUESTIONS)
    for item, record in enumerate(questions, start=1):
        place = Place(source.as_posix(), item=item)
        with collector.faults(place):
            collector.add_question(place, _question(record, f"{name}/{item - 1}", name, name_of))


def _memory_of(source: Path) -> Path:
    """The documents of a file of questions: of the same name, or the only ones beside it where it is alone, too.

    Raises:
        EvaluationError: there are none, or it is not plain which.
    """
    memory = source.with_name(_DOCUMENTS + source.name.removeprefix(_QUESTIONS))
    if memory.is_file():
        return memory
    # the authors ask one file of questions over memories of several sizes, each named after its own
    others = sorted(source.parent.glob(f"{_DOCUMENTS}*{_SUFFIX}"))
    if len(others) == 1 and len([*source.parent.glob(f"{_QUESTIONS}*{_SUFFIX}")]) == 1:
        return others[0]
    found = (
        f"; there are {', '.join(file.name for file in others)}: put the two that belong together into a folder"
        if others
        else ""
    )
    raise EvaluationError(f"{memory} does not exist, but its questions do ({source.name}){found}")


def _add_documents(documents: Any, path: Path, collector: QuestionCollector) -> dict[str | int, str]:
    """Put the documents into the set; returns the id of each text and of each place in the list, or key."""
    pairs: list[tuple[Any, Any]]
    if isinstance(documents, Mapping):
        pairs = [*documents.items()]
    elif isinstance(documents, Sequence) and not isinstance(documents, str | bytes):
        pairs = [*enumerate(documents)]
    else:
        raise EvaluationError(f"{path}: expected a list of documents, found a {type(documents).__name__}")
    name_of: dict[str | int, str] = {}
    repeated = 0
    named: dict[str | int, str] = {}  # by place or key; a key that is also a text is the text
    for item, (key, text) in enumerate(pairs, start=1):
        place = Place(path.as_posix(), item=item)
        with collector.faults(place):
            text, name = _text(text, "the document"), str(key)
            repeated += text in name_of
            named[key] = name_of.setdefault(text, name)
            if name_of[text] == name:
                collector.add_document(name, text, place)
    if repeated:
        collector.notes.append(f"{repeated} documents equal to an earlier one are left out")
    return named | name_of


def _question(record: Any, name: str, task: str, name_of: Mapping[str | int, str]) -> Question:
    if not isinstance(record, dict):
        raise Fault("wrong type", f"expected a dict with query, reference_list and answer, found {_kind(record)}")
    for key in ("query", "reference_list", "answer"):
        if key not in record:
            found = ", ".join(shorten(str(key)) for key in list(record)[:8]) or "none"
            raise Fault("missing key", f'has no "{key}" (its keys: {found})')
    references = _listed(record["reference_list"])
    positives = []
    for reference in references:
        known = isinstance(reference, str | int) and not isinstance(reference, bool)
        key = clean_surrogates(reference) if isinstance(reference, str) else reference
        if not known or key not in name_of:
            what = f"reference_list names {shorten(str(reference))}, which is no document of the set"
            raise Fault("unknown id", what)
        positives.append(name_of[key])
    return Question(
        id=name,
        question=_text(record["query"], "query"),
        answers=tuple(dict.fromkeys(_text(answer, "answer") for answer in _listed(record["answer"]))),
        positives=tuple(dict.fromkeys(positives)),
        task=task,
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Fault("wrong type", f"{key} is {_kind(value)}, expected a text")
    return clean_surrogates(str(value))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def convert_published(path: str | Path, folder: str | Path, *, skip_bad: bool = False) -> QuestionSet:
    """Turn one published set into ``questions.jsonl`` and ``corpus.jsonl``, once and for all.

    Args:
        path: ``qdata_<name>.pkl`` with ``mdata_<name>.pkl`` beside it, or a folder that holds one such pair.
        folder: where to write; it is made if it does not exist.
        skip_bad: leave out what is wrong, and say so in the notes of the set returned.

    Raises:
        EvaluationError: a file that holds anything but plain data; records that are wrong; nothing to ask.
        OSError: the folder cannot be written to.
    """
    collector = QuestionCollector()
    read_published(Path(path), collector)
    source = find_published(Path(path)) or Path(path)
    question_set = collector.finish_questions(source.stem.removeprefix(_QUESTIONS), skip_bad=skip_bad)
    write_question_set(question_set, folder)
    return question_set
