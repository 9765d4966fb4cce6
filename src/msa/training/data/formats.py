"""Read and write training sets: our own JSON lines, and what others publish (:mod:`msa.training.data.foreign`)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from msa.documents.formats import clean_surrogates
from msa.errors import TrainingDataError
from msa.training.data.collector import Collector, Fault, Place, read_records
from msa.training.data.fields import (
    as_list,
    as_object,
    document_text,
    identifier,
    kind_of,
    missing,
    optional_list,
    optional_string,
    read_corpus,
    string,
)
from msa.training.data.foreign import ANCHORS, POSITIVES, TABLE_SUFFIXES, read_beir, read_hipporag, read_pairs
from msa.training.data.samples import TrainingSet

FORMATS = ("auto", "msa", "sentence-transformers", "beir", "hipporag")
CORPUS_NAME, SAMPLES_NAME = "corpus.jsonl", "samples.jsonl"
_SAMPLE_KEYS = ("query", "positives", "documents", "answer", "quotation", "hops", "teacher", "source")
_EXAMPLE = '{"query": "...", "documents": [{"text": "..."}], "positives": [0]}'


def read_training_set(
    paths: Iterable[str | Path],
    *,
    corpus: Iterable[str | Path] = (),
    format: str = "auto",
    split: str = "train",
    max_document_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    skip_bad: bool = False,
) -> TrainingSet:
    """Read files and folders into one training set, in the order given.

    * ``msa``: JSON lines of ``query``, ``positives`` (ids, or numbers that count ``documents`` from 0; an empty list is
      a question the corpus cannot answer) and, if wanted, ``documents`` (ids, or ``{"text", "id"}``), ``answer``,
      ``quotation``, ``hops``, ``teacher`` (id → a stronger retriever's score), ``source``; or a folder that
      :func:`write_training_set` wrote. A document without an id gets ``<file name>:<line>#<index>``.
    * ``sentence-transformers``: pairs or triplets as JSON lines, JSON, CSV or TSV. Equal texts are one document.
    * ``beir``: a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``. Ids become
      ``<folder name>/<id>``; documents judged 0 become the sample's further documents.
    * ``hipporag``: a folder with ``<name>_corpus.json`` and ``<name>.json``, questions as in MuSiQue or HotpotQA.

    A title stands on a line of its own before the text. Blank lines are passed over.

    Args:
        paths: the files and folders.
        corpus: further JSON lines of ``{"id", "text"}`` or ``{"_id", "title", "text"}`` that samples may name.
        format: one of :data:`FORMATS` for all of ``paths``; ``auto`` looks at each folder's files or first record.
        split: which judgements of a BEIR folder to read.
        max_document_tokens: longer documents are problems; in tokens as ``count_tokens`` counts them.
        count_tokens: text → number of tokens.
        skip_bad: leave out what is wrong, log it once and list it in ``TrainingSet.problems``. A sample that names a
            document left out is left out too.

    Raises:
        TrainingDataError: a path that does not exist or cannot be read; anything wrong in the files, all of it counted
            by kind and the first ten with file and line; and, even with ``skip_bad``, nothing left to learn from.
        TypeError: ``paths`` or ``corpus`` is a single path.
        ValueError: an unknown format, or ``max_document_tokens`` without ``count_tokens``.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if max_document_tokens is not None and count_tokens is None:
        raise ValueError("max_document_tokens needs count_tokens, a function that counts the tokens of a text")
    files, corpus_files = _existing(paths), _existing(corpus)
    collector = Collector(
        max_document_tokens=max_document_tokens, count_tokens=count_tokens, has_corpus=bool(corpus_files)
    )
    names = Counter(path.name for path in files)
    try:
        for path in corpus_files:
            read_corpus(path, collector)
        for path in files:
            prefix = path.name if names[path.name] == 1 else path.as_posix()
            _read_path(path, _detect(path) if format == "auto" else format, split, prefix, collector)
    except OSError as error:
        raise TrainingDataError(
            f"{error.filename or 'a training file'} cannot be read ({error.strerror or error}). Check what it is and "
            "its permissions"
        ) from error
    return collector.finish(skip_bad=skip_bad)


def _existing(paths: Iterable[str | Path]) -> list[Path]:
    if isinstance(paths, str | PurePath):
        raise TypeError(f"expected a list of paths, found the single path {str(paths)!r}; put it into a list")
    found = [Path(path) for path in paths]
    lost = [path.as_posix() for path in found if not path.exists()]
    if lost:
        verb = "does" if len(lost) == 1 else "do"
        raise TrainingDataError(f"{', '.join(lost)} {verb} not exist. The search began in {os.getcwd()}")
    return found


def _detect(path: Path) -> str:
    """The format of a file or folder; an empty string for a folder that holds none."""
    if path.is_dir():
        if (path / SAMPLES_NAME).is_file():
            return "msa"
        if (path / "queries.jsonl").is_file():
            return "beir"
        return "hipporag" if any(path.glob("*_corpus.json")) else ""
    if path.suffix.lower() in TABLE_SUFFIXES:
        return "sentence-transformers"
    # what is broken before the first record is reported when the file is read
    _, record = next(read_records(path, Collector()), (None, None))
    if isinstance(record, dict) and "positives" not in record and not record.keys().isdisjoint(_pair_keys()):
        return "sentence-transformers"
    return "sentence-transformers" if isinstance(record, list) else "msa"


def _pair_keys() -> set[str]:
    return {*POSITIVES, *ANCHORS} - {"query", "question"}


def _read_path(path: Path, format: str, split: str, prefix: str, collector: Collector) -> None:
    place = Place(path.as_posix())
    if not format:
        what = (
            f"holds neither {SAMPLES_NAME} nor queries.jsonl (BEIR) nor *_corpus.json (HippoRAG). Name the files in it"
        )
        collector.add_problem(place, "unknown format", what)
    elif format in ("beir", "hipporag") and not path.is_dir():
        collector.add_problem(place, "unknown format", f"is a file; {format} is read from a folder")
    elif format == "sentence-transformers" and path.is_dir():
        collector.add_problem(place, "unknown format", "is a folder. Name the files in it")
    elif format == "beir":
        read_beir(path, split, collector)
    elif format == "hipporag":
        read_hipporag(path, collector)
    elif format == "sentence-transformers":
        read_pairs(path, collector)
    elif not path.is_dir():
        _read_samples(path, prefix, collector)
    elif not (path / SAMPLES_NAME).is_file():
        collector.add_problem(place, "missing file", f"holds no {SAMPLES_NAME}")
    else:
        if (path / CORPUS_NAME).is_file():
            read_corpus(path / CORPUS_NAME, collector)
        _read_samples(path / SAMPLES_NAME, f"{prefix}/{SAMPLES_NAME}", collector)


def _read_samples(path: Path, prefix: str, collector: Collector) -> None:
    found = False
    for place, record in read_records(path, collector):
        found = True
        with collector.faults(place):
            _add_sample(as_object(record, _EXAMPLE), place, prefix, collector)
    if not found:
        collector.add_problem(Place(path.as_posix()), "no samples", "holds no samples that can be read")


def _add_sample(record: dict[str, Any], place: Place, prefix: str, collector: Collector) -> None:
    if "query" not in record and "text" in record:
        raise Fault("missing key", 'has a "text" but no "query". If this is a corpus file, give it as corpus')
    query = string(record, "query")
    if "positives" not in record:
        what = 'Write "positives": [] if no document answers the question'
        raise Fault("missing key", f"{missing(record, 'positives')}. {what}")
    line = f"{place.line}.{place.item}" if place.item else str(place.line)
    listed: list[str] = []
    texts: list[tuple[str, str]] = []
    for index, item in enumerate(optional_list(record, "documents")):
        if isinstance(item, str):
            listed.append(item)
        elif isinstance(item, dict):
            name = f"{prefix}:{line}#{index}" if item.get("id") is None else identifier(item, "id")
            listed.append(name)
            texts.append((name, document_text(item)))
            collector.note_unused(item, ("id", "text", "title"))
        else:
            what = f'"documents" holds {kind_of(item)}. Give ids, or objects such as {{"text": "..."}}'
            raise Fault("wrong type", what)
    hops = [_names(hop, listed, "hops") for hop in optional_list(record, "hops")]
    collector.add_sample(
        place,
        texts,
        query=query,
        positives=_names(record["positives"], listed, "positives"),
        documents=listed,
        answer=optional_string(record, "answer"),
        quotation=optional_string(record, "quotation") or "",
        hops=tuple(map(tuple, hops)),
        teacher=_teacher(record),
        source=optional_string(record, "source") or "",
    )
    collector.note_unused(record, _SAMPLE_KEYS)


def _teacher(record: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Scores of documents by id."""
    scores = record.get("teacher")
    if scores is None:
        return ()
    if not isinstance(scores, dict):
        raise Fault("wrong type", f'"teacher" is {kind_of(scores)}. Give an object of ids and scores')
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            what = f'"teacher" scores {name!r} with {kind_of(score)}. Give a finite number'
            raise Fault("wrong type", what)
    return tuple((name, float(score)) for name, score in scores.items())


def _names(items: Any, listed: Sequence[str], key: str) -> list[str]:
    """Ids, from ids and from numbers that count the sample's documents."""
    names = []
    for item in as_list(items, key):
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, bool) or not isinstance(item, int):
            what = f'"{key}" holds {kind_of(item)}. Give ids, or numbers that count "documents" from 0'
            raise Fault("wrong type", what)
        elif 0 <= item < len(listed):
            names.append(listed[item])
        else:
            what = f'"{key}" names document number {item}, but "documents" has {len(listed)}, counted from 0'
            raise Fault("unknown id", what)
    return names


def write_training_set(training_set: TrainingSet, folder: str | Path) -> None:
    """Write ``corpus.jsonl`` and ``samples.jsonl``, which :func:`read_training_set` reads back as the same set.

    Each file is written beside its place, flushed to disk and renamed, so that it is there whole or not at all; files
    of these names are replaced. ``problems`` are not written. Lone surrogates become U+FFFD, and a document that is
    both a positive and a further document of a sample is read back as a positive only.

    Args:
        training_set: what to write.
        folder: where; it is made if it does not exist.

    Raises:
        TrainingDataError: the set could not be read back: it is empty, or has unknown ids, empty documents or a
            positive named twice.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    checked = Collector(has_corpus=True)
    for number, (name, text) in enumerate(training_set.corpus.items(), start=1):
        checked.add_document(name, text, Place("corpus", number))
    for number, sample in enumerate(training_set.samples, start=1):
        with checked.faults(Place("samples", number)):
            checked.add_sample(Place("samples", number), **vars(sample))
    checked.finish(skip_bad=False)
    folder.mkdir(parents=True, exist_ok=True)
    records = {
        CORPUS_NAME: [{"id": name, "text": text} for name, text in training_set.corpus.items()],
        SAMPLES_NAME: [sample.to_json() for sample in training_set.samples],
    }
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in records}
    try:
        for name, file in temporary.items():
            _write_lines(file, records[name])
        for name, file in temporary.items():
            os.replace(file, folder / name)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8", newline="\n") as out:
        for record in records:
            out.write(clean_surrogates(json.dumps(record, ensure_ascii=False)) + "\n")
        out.flush()
        os.fsync(out.fileno())
