"""Training data as others publish it: sentence-transformers pairs and triplets, BEIR folders, HippoRAG folders."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msa.documents.records import text_id
from msa.training.data.collector import Collector, Fault, Place, read_lines, read_records, shorten
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

ANCHORS = ("anchor", "query", "question", "sentence1")
POSITIVES = ("positive", "sentence2")
TABLE_SUFFIXES: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
_NEGATIVE = re.compile(r"negatives?|negative_\d+")
# a pair with one of these may be a pair of texts that do not belong together
_JUDGED = ("label", "score", "similarity")
_PAIR = '{"anchor": "...", "positive": "..."}'


# sentence-transformers


def read_pairs(path: Path, collector: Collector) -> None:
    """Read pairs and triplets from JSON, CSV or TSV; the id of a text is made from its SHA-256."""
    table = path.suffix.lower() in TABLE_SUFFIXES
    found = False
    for place, record in _read_table(path, collector) if table else read_records(path, collector):
        found = True
        with collector.faults(place):
            _add_pair(record, place, path.stem, collector)
    if not found:
        collector.add_problem(Place(path.as_posix()), "no samples", "holds no pairs that can be read")


def _add_pair(record: Any, place: Place, source: str, collector: Collector) -> None:
    if isinstance(record, list):
        if len(record) < 2:
            raise Fault("wrong type", f'expected ["anchor", "positive"], found a list of {len(record)}')
        record = {"anchor": record[0], "positive": record[1], "negatives": record[2:]}
    record = as_object(record, _PAIR)
    judged = [key for key in _JUDGED if key in record]
    if judged:
        what = f'has a "{judged[0]}", so the two texts may not belong together. Keep the pairs that do, without it'
        raise Fault("unknown format", what)
    query, positive = string(record, *ANCHORS), string(record, *POSITIVES)
    negatives = list(_negatives(record))
    if positive in negatives:
        raise Fault("invalid sample", "the positive is also a negative")
    texts = [(text_id(text), text) for text in (positive, *negatives)]
    names = [name for name, _ in texts]
    collector.add_sample(place, texts, query=query, positives=names[:1], documents=names[1:], source=source)
    used = [next(key for key in keys if key in record) for keys in (ANCHORS, POSITIVES)]
    collector.note_unused(record, [*used, *filter(_NEGATIVE.fullmatch, record)])


def _negatives(record: dict[str, Any]) -> Iterator[str]:
    for key, value in record.items():
        if _NEGATIVE.fullmatch(key):
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str):
                    raise Fault("wrong type", f'"{key}" holds {kind_of(text)}. Give texts')
                yield text


def _read_table(path: Path, collector: Collector) -> Iterator[tuple[Place, dict[str, str]]]:
    """Rows of a CSV or TSV file with a header, as objects."""
    rows = _read_csv(path, collector) if TABLE_SUFFIXES[path.suffix.lower()] == "," else _read_tsv(path, collector)
    place, header = next(rows, (Place(path.as_posix()), []))
    if not header:
        return
    unknown = [name for name in header if name not in (*ANCHORS, *POSITIVES) and not _NEGATIVE.fullmatch(name)]
    if unknown or not set(header) & set(ANCHORS) or not set(header) & set(POSITIVES) or len(set(header)) < len(header):
        what = f"the header is {', '.join(map(shorten, header))}. Begin with a line of the names anchor, positive and, "
        collector.add_problem(place, "unknown format", f"{what}if there are any, negative; the file is not read")
        return
    for place, row in rows:
        if len(row) == len(header):
            yield place, dict(zip(header, row, strict=True))
        else:
            collector.add_problem(place, "wrong type", f"has {len(row)} cells, the header has {len(header)}")


def _read_tsv(path: Path, collector: Collector) -> Iterator[tuple[Place, list[str]]]:
    # not by the csv module: most TSV files are not quoted, and there one stray quote would swallow the lines after it
    for place, text in read_lines(path, collector):
        cells = text.rstrip("\r\n").split("\t")
        yield place, [cell[1:-1].replace('""', '"') if _is_quoted(cell) else cell for cell in cells]


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _read_csv(path: Path, collector: Collector) -> Iterator[tuple[Place, list[str]]]:
    # invalid bytes become surrogates, so that the row they stand in can be named
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        while True:
            place = Place(path.as_posix(), reader.line_num + 1)
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                collector.add_problem(place, "broken CSV", f"not CSV ({error})")
                continue
            if re.search("[\udc80-\udcff]", "".join(row)):
                collector.add_problem(place, "not UTF-8", "the row is not UTF-8")
            elif row:
                yield place, row


# BEIR


def read_beir(folder: Path, split: str, collector: Collector) -> None:
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``; ids become ``<folder name>/<id>``."""
    qrels = folder / "qrels" / f"{split}.tsv"
    lacking = [path for path in (folder / "corpus.jsonl", folder / "queries.jsonl", qrels) if not path.is_file()]
    for path in lacking:
        splits = ", ".join(sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))) or "none"
        hint = f"; the splits are: {splits}" if path == qrels else ""
        collector.add_problem(Place(path.as_posix()), "missing file", f"does not exist{hint}")
    if lacking:
        return
    name = folder.resolve().name
    read_corpus(folder / "corpus.jsonl", collector, f"{name}/")
    queries: dict[str, str] = {}
    for place, record in read_records(folder / "queries.jsonl", collector):
        with collector.faults(place):
            record = as_object(record, '{"_id": "1", "text": "..."}')
            query, text = identifier(record, "_id", "id"), string(record, "text")
            if queries.setdefault(query, text) != text:
                raise Fault("one id, two texts", f"the query {shorten(query)} has another text above")
    judged = _read_qrels(qrels, queries, collector)
    for query, judgements in judged.items():
        _add_judged(queries[query], judgements, name, collector)
    if not judged:
        collector.add_problem(Place(qrels.as_posix()), "no samples", "holds no judgements that can be used")


def _read_qrels(
    path: Path, queries: Mapping[str, str], collector: Collector
) -> dict[str, dict[str, tuple[float, Place]]]:
    """Query id → document id → (score, place), without the queries that have a broken line."""
    judged: dict[str, dict[str, tuple[float, Place]]] = {}
    broken: set[str] = set()
    for place, text in read_lines(path, collector):
        cells = text.rstrip("\r\n").split("\t")
        if place.line == 1 and cells[-1].strip().lower() == "score":
            continue
        with collector.faults(place):
            query, document, score = _judgement(cells, queries)
            first = judged.setdefault(query, {}).setdefault(document, (score, place))
            if first[0] != score:
                what = f"{shorten(document)} has another score for this query on line {first[1].line}"
                raise Fault("invalid sample", what)
            continue
        broken.add(cells[0])
    return {query: judgements for query, judgements in judged.items() if query not in broken}


def _judgement(cells: list[str], queries: Mapping[str, str]) -> tuple[str, str, float]:
    if len(cells) != 3:
        raise Fault("wrong type", f"has {len(cells)} cells; expected query-id, corpus-id and score between tabs")
    if cells[0] not in queries:
        raise Fault("unknown id", f"no query has the id {shorten(cells[0])}")
    try:
        return cells[0], cells[1], float(cells[2])
    except ValueError:
        raise Fault("wrong type", f"the score is {shorten(cells[2])}. Give a number") from None


def _add_judged(query: str, judgements: Mapping[str, tuple[float, Place]], name: str, collector: Collector) -> None:
    places = {f"{name}/{document}": place for document, (_, place) in judgements.items()}
    # the line that names an unknown document, if there is one, is the one to show
    place = next((place for document, place in places.items() if document not in collector.corpus), None)
    place = place or next(iter(places.values()))
    positives = [f"{name}/{document}" for document, (score, _) in judgements.items() if score > 0]
    with collector.faults(place):
        if not positives:
            raise Fault("invalid sample", f"no document of the query {shorten(query)} has a score above 0")
        collector.add_sample(place, query=query, positives=positives, documents=list(places), source=name)


# HippoRAG


def read_hipporag(folder: Path, collector: Collector) -> None:
    """Read each ``<name>_corpus.json`` with its ``<name>.json``; the id of a passage is made from its SHA-256."""
    corpora = sorted(folder.glob("*_corpus.json"))
    if not corpora:
        collector.add_problem(Place(folder.as_posix()), "missing file", "holds no file <name>_corpus.json")
    for path in corpora:
        name = path.name.removesuffix("_corpus.json")
        questions = folder / f"{name}.json"
        if not questions.is_file():
            what = "does not exist, but its corpus does"
            collector.add_problem(Place(questions.as_posix()), "missing file", what)
            continue
        passages: dict[str, str] = {}
        for place, record in read_records(path, collector):
            with collector.faults(place):
                text = document_text(as_object(record, '{"title": "...", "text": "..."}'))
                collector.add_document(text_id(text), text, place)
                passages[_squeezed(text)] = text_id(text)
        if not passages:
            collector.add_problem(Place(path.as_posix()), "empty corpus", "holds no documents")
        found = False
        for place, record in read_records(questions, collector):
            found = True
            with collector.faults(place):
                _add_question(as_object(record, '{"question": "..."}'), place, name, passages, collector)
        if not found:
            collector.add_problem(Place(questions.as_posix()), "no samples", "holds no questions")


def _squeezed(text: str) -> str:
    # the corpora join sentences with a blank or with none, each data set in its own way
    return "".join(text.split())


def _add_question(
    record: dict[str, Any], place: Place, name: str, passages: Mapping[str, str], collector: Collector
) -> None:
    paragraphs = _marked(record) if "paragraphs" in record or "contexts" in record else _facts(record)
    names = []
    for text, _ in paragraphs:
        if _squeezed(text) not in passages:
            raise Fault("unknown id", f"the paragraph {shorten(text)} is not in {name}_corpus.json")
        names.append(passages[_squeezed(text)])
    pairs = zip(names, paragraphs, strict=True)
    positives = list(dict.fromkeys(passage for passage, (_, supporting) in pairs if supporting))
    answer = record.get("answer")
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    collector.add_sample(
        place,
        query=string(record, "question"),
        positives=positives,
        documents=names,
        answer=optional_string({"answer": answer}, "answer"),
        hops=_hops(record, names, positives) if "paragraphs" in record else (),
        source=name,
    )


def _marked(record: dict[str, Any]) -> list[tuple[str, bool]]:
    """(Passage, whether it supports the answer), as in MuSiQue."""
    key = "paragraphs" if "paragraphs" in record else "contexts"
    paragraphs = []
    for item in as_list(record[key], key):
        item = as_object(item, '{"title": "...", "text": "...", "is_supporting": true}')
        if "is_supporting" not in item:
            raise missing(item, "is_supporting")
        if not isinstance(item["is_supporting"], bool):
            raise Fault("wrong type", f'"is_supporting" is {kind_of(item["is_supporting"])}. Give true or false')
        paragraphs.append((document_text(item, "text", "paragraph_text"), item["is_supporting"]))
    return paragraphs


def _facts(record: dict[str, Any]) -> list[tuple[str, bool]]:
    """(Passage, whether it supports the answer), as in HotpotQA: ``[title, sentences]`` and ``[title, number]``."""
    if "supporting_facts" not in record:
        raise missing(record, "paragraphs", "supporting_facts")
    if "context" not in record:
        raise missing(record, "context")
    facts, context = as_list(record["supporting_facts"], "supporting_facts"), as_list(record["context"], "context")
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in (*facts, *context)):
        raise Fault("wrong type", '"supporting_facts" and "context" must be lists of [title, ...] pairs')
    supporting = {title for title, _ in facts}
    unknown = supporting - {title for title, _ in context}
    if unknown:
        raise Fault("unknown id", f'"supporting_facts" names {shorten(min(unknown))}, which is not in "context"')
    paragraphs = []
    for title, sentences in context:
        sentences = as_list(sentences, "context")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise Fault("wrong type", '"context" holds a sentence that is no string')
        paragraphs.append((document_text({"title": title, "text": "".join(sentences)}), title in supporting))
    return paragraphs


def _hops(record: dict[str, Any], names: list[str], positives: list[str]) -> tuple[tuple[str, ...], ...]:
    """The documents by the depth of the partial question they answer; empty unless these name just the positives.

    A partial question that mentions ``#1`` comes after the first one; those that mention none are one hop.
    """
    steps = optional_list(record, "question_decomposition")
    items = optional_list(record, "paragraphs")
    by_index: dict[Any, str] = {}
    for place, (item, name) in enumerate(zip(items, names, strict=True)):
        index = item.get("idx")
        by_index[index if isinstance(index, int) else place] = name
    depths: list[int] = []
    hop_of: dict[str, int] = {}
    for step in steps:
        step = as_object(step, '{"question": "...", "paragraph_support_idx": 0}')
        mentioned = [int(number) for number in re.findall(r"#(\d+)", string(step, "question"))]
        depths.append(1 + max((depths[n - 1] for n in mentioned if 0 < n <= len(depths)), default=-1))
        index = step.get("paragraph_support_idx")
        if not isinstance(index, int) or index not in by_index:
            return ()
        hop_of.setdefault(by_index[index], depths[-1])
    if sorted(hop_of) != sorted(positives):
        return ()
    depths = sorted(set(hop_of.values()))
    hops = tuple(tuple(name for name, hop in hop_of.items() if hop == depth) for depth in depths)
    return hops if len(hops) > 1 else ()
