"""Question sets from BEIR and HippoRAG folders, by the readers that training has for them.

Those keep what training needs. What an evaluation needs besides (the questions' own ids, all reference answers, graded
judgements) is read here from the record each sample came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa.evaluation.sets.questions import ANSWERABLE, QuestionCollector, answer_texts, flag
from msa.evaluation.types import Question
from msa.training.data.collector import Collector, Place, read_lines, read_records
from msa.training.data.fields import missing
from msa.training.data.foreign import read_beir, read_hipporag


def read_beir_questions(folder: Path, split: str, collector: QuestionCollector) -> None:
    """Read the queries that ``qrels/<split>.tsv`` judges; there are no reference answers.

    A question's id is ``<folder name>/<query id>``; where a judgement is neither 0 nor 1, its metadata's ``relevance``
    has the scores by document id.
    """
    read_beir(folder, split, collector)
    name = folder.resolve().name
    query_of: dict[Place, str] = {}
    scores: dict[str, dict[str, float]] = {}
    if collector.samples:
        # read once, all lines in use are known to be right
        for place, line in read_lines(folder / "qrels" / f"{split}.tsv", Collector()):
            cells = line.rstrip("\r\n").split("\t")
            query_of[place] = cells[0]
            if len(cells) == 3 and cells[2].strip().lower() != "score":
                scores.setdefault(cells[0], {})[f"{name}/{cells[1]}"] = _number(cells[2])
    for place, sample in collector.samples:
        query = query_of[place]
        graded = any(score not in (0, 1) for score in scores[query].values())
        question = Question(
            id=f"{name}/{query}",
            question=sample.query,
            answers=(),
            positives=sample.positives,
            task=name,
            metadata={"relevance": scores[query]} if graded else {},
        )
        with collector.faults(place):
            collector.add_question(place, question)
    collector.notes.append(f"BEIR, split {split}: no reference answers, so only retrieval is scored")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a broken line, whose query is a problem already
        return 0.0


def read_hipporag_questions(path: Path, collector: QuestionCollector) -> None:
    """Read the folder's sets, or of the folder only the set whose file of questions is given.

    A question's id is ``<set>/<its own id>``; without one, the line's number.
    """
    folder = path if path.is_dir() else path.parent
    read_hipporag(folder, collector)
    records: dict[Place, Any] = {}
    for file in {place.file for place, _ in collector.samples}:
        records.update(read_records(Path(file), Collector()))
    for place, sample in collector.samples:
        record = records[place]
        with collector.faults(place):
            own = next((record[key] for key in ("id", "_id") if isinstance(record.get(key), str | int)), None)
            line = f"{place.line}.{place.item}" if place.item else str(place.line)
            answerable = flag(record, "answerable", True)
            question = Question(
                id=f"{sample.source}/{line if own is None else own}",
                question=sample.query,
                answers=_gold_answers(record),
                positives=sample.positives,
                hops=sample.hops,
                task=sample.source,
                metadata={} if answerable else {ANSWERABLE: False},
            )
            collector.add_question(place, question)


def _gold_answers(record: Mapping[str, Any]) -> tuple[str, ...]:
    """All answers that count as right, from the fields HippoRAG looks at."""
    if "answer" in record or "gold_ans" in record:
        key = "answer" if "answer" in record else "gold_ans"
        found = answer_texts(record[key], key)
    elif "reference" in record:
        found = answer_texts(record["reference"], "reference")
    elif "obj" in record:  # PopQA
        keys = ("obj", "possible_answers", "o_wiki_title", "o_aliases")
        found = tuple(text for key in keys if record.get(key) for text in answer_texts(_listed(record[key]), key))
    else:
        raise missing(dict(record), "answer", "gold_ans", "reference", "obj")
    aliases = answer_texts(record["answer_aliases"], "answer_aliases") if record.get("answer_aliases") else ()
    return tuple(text for text in dict.fromkeys((*found, *aliases)) if text.strip())


def _listed(value: Any) -> Any:
    """PopQA writes its lists of names as strings of JSON."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
