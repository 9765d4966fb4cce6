"""Any question set, whatever its format, and the parts of one whose questions each have their own documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.sets.longbench import read_longbench, read_longbench_v2
from msa.evaluation.sets.longmemeval import read_longmemeval
from msa.evaluation.sets.ours import QUESTIONS_NAME, read_ours
from msa.evaluation.sets.published import find_published, read_published
from msa.evaluation.sets.questions import CONTEXT, QuestionCollector
from msa.evaluation.sets.retrieval import read_beir_questions, read_hipporag_questions
from msa.evaluation.types import Question, QuestionSet
from msa.training.data.collector import Collector, read_records

FORMATS = ("auto", "msa", "beir", "hipporag", "longbench", "longbench-v2", "longmemeval", "msa-rag-benchmarks")
_CORPUS_SUFFIX = "_corpus.json"
_JOINED = (
    "each question has documents of its own; asked over all documents of the set, it is another test than the "
    "published one"
)
_SEPARATED = "each question is asked over its own documents only"


def read_question_set(
    path: str | Path,
    format: str = "auto",
    *,
    corpus: Iterable[str | Path] = (),
    split: str | None = None,
    max_document_chars: int = 2_000,
    retrieval_only: bool = False,
    skip_bad: bool = False,
    name: str | None = None,
) -> QuestionSet:
    """Read one question set.

    * ``msa``: a folder of ``questions.jsonl`` and ``corpus.jsonl``, or one file of questions. A line has ``question``,
      ``answers`` and, if wanted, ``id``, ``ids`` (of the documents that hold the answer) or ``documents`` (these
      documents themselves, texts or ``{"id", "text"}``), ``positives`` (ids or numbers, where only some of them do),
      ``hops``, ``answerable``, ``task``, ``answer_prefix``, ``max_new_tokens``, ``metadata``.
    * ``beir``: a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.
    * ``hipporag``: a folder with ``<set>.json`` and ``<set>_corpus.json``, or one ``<set>.json`` of it.
    * ``longbench``, ``longbench-v2``: JSON lines, or one JSON list, as published. See :func:`separate`.
    * ``longmemeval``: one JSON list as published. See :func:`separate`.
    * ``msa-rag-benchmarks``: ``qdata_<name>.pkl`` with ``mdata_<name>.pkl`` beside it. Only plain data is read from
      them, and no code is run.

    Args:
        path: the file or folder.
        format: one of :data:`FORMATS`; ``auto`` looks at the files' names and the first record.
        corpus: files of documents for ``msa``, in place of the one beside the questions.
        split: which judgements of a BEIR folder to read; None: ``test``.
        max_document_chars: the most characters of a document that a LongBench context is cut into.
        retrieval_only: whether questions may lack reference answers; BEIR's always do.
        skip_bad: leave out what is wrong, log each record and list them in the set's notes.
        name: of the set; None: the file's or folder's.

    Raises:
        EvaluationError: a path that does not exist, cannot be read or is of no known format; anything wrong in the
            files, all of it counted by kind and the first ten records named with file and line; a set without
            questions or without documents.
        ValueError: an unknown format, or an argument that the format has no use for.
    """
    path, corpus_files = Path(path), _paths(corpus)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if max_document_chars < 1:
        raise ValueError(f"expected max_document_chars of at least 1, found {max_document_chars}")
    _refuse_lost([path, *corpus_files])
    try:
        format = _detect(path) if format == "auto" else format
        if corpus_files and format != "msa":
            raise ValueError(f"corpus is for sets of the format msa; {path} is of the format {format}")
        if split is not None and format != "beir":
            raise ValueError(f"split is for sets of the format beir; {path} is of the format {format}")
        collector = QuestionCollector(files=_wanted(path, format), retrieval_only=retrieval_only or format == "beir")
        _read(path, format, corpus_files, split or "test", max_document_chars, collector)
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"{error.filename or path} cannot be read ({reason}). Check what it is") from error
    own = path.resolve()
    own_name = (own.name if own.is_dir() else own.stem).removeprefix("qdata_")
    return collector.finish_questions(name or own_name, skip_bad=skip_bad)


def _paths(corpus: Iterable[str | Path]) -> list[Path]:
    if isinstance(corpus, str | PurePath):
        raise TypeError(f"expected a list of paths, found the single path {str(corpus)!r}; put it into a list")
    return [Path(file) for file in corpus]


def _refuse_lost(files: Iterable[Path]) -> None:
    lost = [file.as_posix() for file in files if not file.exists()]
    if lost:
        raise EvaluationError(f"{', '.join(lost)} cannot be found. The search began in {Path.cwd()}")


def _detect(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        EvaluationError: none that is known.
    """
    if find_published(path) or path.suffix.lower() == ".pkl":
        return "msa-rag-benchmarks"
    if path.is_dir():
        if (path / QUESTIONS_NAME).is_file():
            return "msa"
        if (path / "queries.jsonl").is_file():
            return "beir"
        if any(path.glob(f"*{_CORPUS_SUFFIX}")):
            return "hipporag"
        what = f"holds neither {QUESTIONS_NAME} nor queries.jsonl (BEIR) nor *{_CORPUS_SUFFIX} (HippoRAG)"
        raise EvaluationError(f"{path} {what}. Name a file in it")
    if path.with_name(f"{path.stem}{_CORPUS_SUFFIX}").is_file():
        return "hipporag"
    # what is broken before the first record is reported when the file is read
    _, record = next(read_records(path, Collector()), (None, None))
    return _format_of(record)


def _format_of(record: Any) -> str:
    keys = record.keys() if isinstance(record, dict) else set()
    if {"context", "choice_A"} <= keys:
        return "longbench-v2"
    if {"context", "input", "answers"} <= keys:
        return "longbench"
    return "longmemeval" if "haystack_sessions" in keys else "msa"


def _wanted(path: Path, format: str) -> list[str] | None:
    """Of a HippoRAG folder the two files of the set that was named; None: whatever is read."""
    if format != "hipporag" or path.is_dir():
        return None
    return [path.as_posix(), path.with_name(f"{path.stem}{_CORPUS_SUFFIX}").as_posix()]


def _read(
    path: Path, format: str, corpus: list[Path], split: str, max_document_chars: int, collector: QuestionCollector
) -> None:
    folder_or_file = {"beir": "folder", "longbench": "file", "longbench-v2": "file", "longmemeval": "file"}
    wanted = folder_or_file.get(format)
    if wanted and path.is_dir() != (wanted == "folder"):
        raise EvaluationError(f"{path} is not a {wanted}; the format {format} is read from one")
    if format == "msa":
        read_ours(path, corpus, collector)
    elif format == "beir":
        read_beir_questions(path, split, collector)
    elif format == "hipporag":
        read_hipporag_questions(path, collector)
    elif format == "longbench":
        read_longbench(path, max_document_chars, collector)
    elif format == "longbench-v2":
        read_longbench_v2(path, max_document_chars, collector)
    elif format == "longmemeval":
        read_longmemeval(path, collector)
    else:
        read_published(path, collector)
    if format in ("longbench", "longbench-v2", "longmemeval"):
        collector.notes.append(_JOINED)


def separate(question_set: QuestionSet) -> Iterator[QuestionSet]:
    """One set for each group of questions that are asked about the same documents, in order.

    LongBench and LongMemEval ask each question about its own context or history. Read as one set, all of them lie in
    one memory, which is a different and harder test; the parts are the published one. A set whose questions share
    their documents is given back as it is.
    """
    groups: dict[tuple[str, ...], list[Question]] = {}
    for question in question_set.questions:
        groups.setdefault(tuple(question.metadata.get(CONTEXT, ())), []).append(question)
    if set(groups) == {()}:
        yield question_set
        return
    for context, questions in groups.items():
        documents = {name: question_set.documents[name] for name in context} if context else question_set.documents
        notes = (*(note for note in question_set.notes if note != _JOINED), _SEPARATED)
        name = f"{question_set.name}/{questions[0].id}"
        yield replace(question_set, name=name, documents=documents, questions=tuple(questions), notes=notes)
