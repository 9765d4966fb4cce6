"""What recipes/gpu_run.py trained, measured in a minute on the same GPU.

    python recipes/gpu_evaluate.py --backbone FOLDER --data DIR --questions FILE --adapter untrained=A.safetensors \
        --adapter trained=B.safetensors --out results.json

FILE holds held-out questions with what other retrievers find: lines of ``{"query", "positives", "answer", "source",
"bm25": [ids], "minilm": [ids]}``, best first. Recall over the whole corpus for every adapter and retriever; of the last
adapter also ids and answers, beside the plain backbone that reads what the others retrieve. The JSON is written anew
after every part; parts that would begin after ``--seconds`` are left out and named.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import msa
from msa.evaluation.alternatives.prompts import reading_prompt, stop_ids
from msa.evaluation.metrics import contains_answer, exact_match, recall_at, token_f1
from msa.evaluation.statistics import mcnemar
from msa.evaluation.types import Question
from msa.generation.constraint import IdConstraint, IdTrie, id_pieces
from msa.generation.decoding import Decoding, Prompt
from msa.model import DocumentMemory
from msa.model.adapter import apply_adapter
from msa.model.bundle import MSAModel, model_fingerprint
from msa.training.metrics import RECALLS
from msa.training.snapshot import encode_corpus, mean_scores

RETRIEVERS = ("bm25", "minilm")
CONSTRAINTS = ("none", "existing", "selected")
log = logging.getLogger("gpu_evaluate")


@dataclass(frozen=True)
class Asked:
    """A held-out question, and what other retrievers find for it.

    Attributes:
        question: its ``task`` is the kind of question, for instance ``debian/name``.
        found: retriever → ids, best first.
    """

    question: Question
    found: dict[str, list[str]]


@dataclass(frozen=True)
class Trained:
    """An adapter's model, the corpus as it encodes it, and each question's best documents by their indices."""

    model: MSAModel
    memory: DocumentMemory
    best: list[list[int]]


def read_questions(path: Path) -> list[Asked]:
    """The questions of a file of lines.

    Raises:
        ValueError: a line that lacks a field.
    """
    asked = []
    for number, row in enumerate(map(json.loads, path.read_text(encoding="utf-8").splitlines()), start=1):
        missing = [name for name in ("query", "positives", "source", *RETRIEVERS) if not row.get(name)]
        if missing:
            raise ValueError(f"{path}:{number}: expected {', '.join(missing)}, found {', '.join(row)}")
        answers = (row["answer"],) if row.get("answer") else ()
        positives, kind = tuple(row["positives"]), row["source"]
        question = Question(id=str(number), question=row["query"], answers=answers, positives=positives, task=kind)
        asked.append(Asked(question, {name: row[name] for name in RETRIEVERS}))
    return asked


def load(backbone: Path, adapter: Path | None) -> MSAModel:
    """The backbone with an adapter over it."""
    model = msa.load(str(backbone), dtype="bfloat16")
    if adapter is not None:
        apply_adapter(model.lm, adapter, backbone=model_fingerprint(model.lm, routers=False))
    return model


@torch.inference_mode()
def trained(backbone: Path, adapter: Path, texts: Sequence[str], asked: Sequence[Asked], bucket_tokens: int) -> Trained:
    """Encode the corpus, document i under the number i + 1, and route all questions."""
    model = load(backbone, adapter)
    memory = encode_corpus(model.lm, model.protocol, texts, range(1, len(texts) + 1), bucket_tokens)
    best: list[list[int]] = [[] for _ in asked]
    queries = [each.question.question for each in asked]
    for group, scores in mean_scores(model.lm, model.protocol, memory, queries, bucket_tokens):
        indices = scores.topk(min(max(RECALLS), len(texts)), dim=1).indices.tolist()
        for i, row in zip(group, indices, strict=True):
            best[i] = row
    return Trained(model, memory, best)


def means(asked: Sequence[Asked], scores: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over all questions, over those of each source, and over each kind of them."""
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for each, of_question in zip(asked, scores, strict=True):
        kind = each.question.task
        for name in dict.fromkeys(("all", kind.partition("/")[0], kind)):
            groups[name].append(of_question)
    return {
        name: {"questions": float(len(rows))} | {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        for name, rows in sorted(groups.items())
    }


def recall_table(asked: Sequence[Asked], found: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """:func:`means` of the recalls of ids, best first."""
    positives = [each.question.positives for each in asked]
    return means(
        asked,
        [{f"recall@{k}": recall_at(ids, own, k) for k in RECALLS} for ids, own in zip(found, positives, strict=True)],
    )


def decoded(model: MSAModel, prompts: Sequence[Prompt], rows: int, **context: Any) -> list[list[int]]:
    """Greedy continuations, prompts of similar length together."""
    written: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        decoding = Decoding(model.lm, [prompts[i] for i in group], prefill_tokens=2**20, **context)
        for _ in decoding.run():
            pass
        for i, row in zip(group, decoding.rows, strict=True):
            written[i] = row.generated
    return written


def answers(
    model: MSAModel, asked: Sequence[Asked], texts: Sequence[Sequence[str]], rows: int, tokens: int, *, lead: bool
) -> dict[str, Any]:
    """Scores and examples of what the model answers after reading each question's texts; ``right``: which hold it.

    Args:
        model: whoever reads.
        asked: questions that have an answer.
        texts: per question, in the order they are read.
        rows: questions at a time.
        tokens: of an answer, at most.
        lead: open the answer with the transcript's ``reader_lead``, where it has one.
    """
    readings = [
        reading_prompt(model, list(enumerate(read, start=1)), each.question, read[0].partition(":")[0] if lead else "")
        for each, read in zip(asked, texts, strict=True)
    ]
    stops = stop_ids(model)
    prompts = [Prompt(ids=reading.ids, stop_ids=stops, max_new_tokens=tokens) for reading in readings]
    written = decoded(model, prompts, rows)
    given = [reading.opening + model.protocol.decode(ids) for reading, ids in zip(readings, written, strict=True)]
    scores, examples = [], []
    for each, text in zip(asked, given, strict=True):
        expected = each.question.answers
        scores.append(
            {
                "contains": contains_answer(text, expected),
                "token_f1": token_f1(text, expected),
                "exact": exact_match(text, expected),
            }
        )
        examples.append({"question": each.question.question, "expected": expected[0], "given": text})
    right = [int(score["contains"]) for score in scores]
    return means(asked, scores) | {"right": right, "examples": examples[:: max(1, len(examples) // 12)]}


def ids_written(of: Trained, asked: Sequence[Asked], places: Sequence[int], names: Sequence[str], rows: int) -> Any:
    """Ids as generative mode writes them in its first round, under each constraint; the first id counts.

    Args:
        of: the model, its memory and the best documents of all questions.
        asked: all questions.
        places: the questions to ask.
        names: the corpus's ids in order.
        rows: questions at a time.
    """
    index = {name: place for place, name in enumerate(names)}
    gold = [{index[name] for name in asked[i].question.positives} for i in places]
    best = [of.best[i] for i in places]
    out: dict[str, Any] = {}
    for constraint in CONSTRAINTS:
        prompts = id_prompts(of, [asked[i].question.question for i in places], best, constraint)
        written = decoded(of.model, prompts, rows, memory=of.memory, prefix=of.model.prefix)
        texts = [of.model.protocol.decode_all(ids) for ids in written]
        firsts = [text.partition("]")[0].lstrip("[ ") for text in texts]
        right = [first.isdecimal() and int(first) - 1 in own for first, own in zip(firsts, gold, strict=True)]
        for k in RECALLS:
            reached = [ok for ok, row, own in zip(right, best, gold, strict=True) if own & set(row[:k])]
            out[f"{constraint}, right document among the best {k}"] = {
                "questions": len(reached), "first id right": sum(reached) / max(len(reached), 1),
            }  # fmt: skip
        out[f"{constraint}, all"] = sum(right) / max(len(right), 1)
        out[f"{constraint}, examples"] = texts[:5]
    return out


def paired(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How often the first reader measured and each other contain the expected answer alone, and McNemar's p-value."""
    readers = {name: part["right"] for name, part in results.items() if name.startswith("answers/") and "right" in part}
    if not readers:
        return {}
    ours, first = next(iter(readers.items()))
    return {
        f"{ours} against {name}": {
            "first alone": sum(a > b for a, b in zip(first, other, strict=True)),
            "second alone": sum(b > a for a, b in zip(first, other, strict=True)),
            "p": mcnemar([*map(bool, first)], [*map(bool, other)]),
        }
        for name, other in readers.items()
        if name != ours
    }


def id_prompts(of: Trained, queries: Sequence[str], best: Sequence[Sequence[int]], constraint: str) -> list[Prompt]:
    """Questions to write ids after; ``selected`` ids are those of the ``best`` documents."""
    protocol = of.model.protocol
    closing = [[protocol.reference_end_id], protocol.template_ids(protocol.strings.end_of_retrieve)]
    pieces = id_pieces(of.model.tokenizer)
    every = IdTrie(range(1, of.memory.num_documents + 1))
    prompts = []
    for query, row in zip(queries, best, strict=True):
        turn = protocol.question_turn(query)
        trie = every if constraint == "existing" else IdTrie(i + 1 for i in row)
        prompts.append(
            Prompt(
                ids=list(turn.ids),
                routes=list(turn.marked),
                stop_ids=frozenset({protocol.reference_end_id, protocol.answer_end_id}),
                max_new_tokens=12,
                allowed=None if constraint == "none" else IdConstraint(trie, pieces, closing).allowed,
            )
        )
    return prompts


class Report:
    """Results, written after every part, and the clock."""

    def __init__(self, path: Path, seconds: float, parts: Sequence[str] = ()) -> None:
        self.path, self.seconds, self.parts, self.started = path, seconds, parts, time.monotonic()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.results: dict[str, Any] = {"device": device}

    def add(self, name: str, part: Callable[[], Any]) -> None:
        """Measure a part if it is wanted and there is time."""
        if self.parts and not any(word in name for word in self.parts):
            return
        begun = time.monotonic()
        if begun - self.started > self.seconds:
            self.results.setdefault("left out", []).append(name)
        else:
            try:
                self.results[name] = part()
            except (RuntimeError, ValueError, msa.MSAError) as error:
                # memory that runs out in one part must not cost what a GPU's minutes bring in the others
                log.exception("%s failed", name)
                self.results[name] = {"failed": repr(error)}
            log.info("%s: %.1f s", name, time.monotonic() - begun)
        self.path.write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def spread(asked: Sequence[Asked], count: int) -> list[int]:
    """Places of ``count`` questions that have an answer, of every source alike as far as they go."""
    of: dict[str, list[int]] = defaultdict(list)
    for place, each in enumerate(asked):
        if each.question.answers:
            of[each.question.task.partition("/")[0]].append(place)
    ranked = sorted((rank, place) for group in of.values() for rank, place in enumerate(group))
    return sorted(place for _, place in ranked[:count])


def named_file(text: str) -> tuple[str, Path]:
    """``NAME=FILE``."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, found {text!r}")
    return name, Path(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True, help="an MSA model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus.jsonl")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--adapter", type=named_file, action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--parts", nargs="+", default=(), metavar="WORD", help="only those that have a word in their name"
    )
    parser.add_argument("--answered", type=int, default=500, help="questions to answer")
    parser.add_argument("--rows", type=int, default=250, help="questions to answer at a time")
    parser.add_argument("--bucket-tokens", type=int, default=24576, help="tokens to encode or route at a time")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    return parser.parse_args(arguments)


def evaluate(args: argparse.Namespace) -> None:
    """Recall of all, then answers and ids of the last adapter."""
    report = Report(args.out, args.seconds, args.parts)
    lines = (args.data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    corpus = {row["id"]: row["text"] for row in map(json.loads, lines)}
    names, texts, asked = list(corpus), list(corpus.values()), read_questions(args.questions)
    for retriever in RETRIEVERS:
        report.add(f"recall/{retriever}", partial(recall_table, asked, [each.found[retriever] for each in asked]))
    last: list[Trained] = []  # one, if it could be measured

    def recall(adapter: Path) -> dict[str, dict[str, float]]:
        one = trained(args.backbone, adapter, texts, asked, args.bucket_tokens)
        if adapter == args.adapter[-1][1]:
            last.append(one)
        return recall_table(asked, [[names[i] for i in row] for row in one.best])

    for name, adapter in reversed(args.adapter):  # the last first: it matters most
        report.add(f"recall/{name}", partial(recall, adapter))
    places = spread(asked, args.answered)
    chosen, plain = [asked[i] for i in places], load(args.backbone, None)

    def read(name: str, reader: MSAModel, found: Sequence[Sequence[str]], count: int, lead: bool = False) -> None:
        given = [[corpus[document] for document in row[:count]] for row in found]
        report.add(f"answers/{name}", partial(answers, reader, chosen, given, args.rows, args.tokens, lead=lead))

    bm25, minilm = ([each.found[retriever] for each in chosen] for retriever in RETRIEVERS)
    mine = [[[names[i] for i in one.best[place]] for place in places] for one in last]
    for one, routed in zip(last, mine, strict=True):
        read("trained reads 3 routed", one.model, routed, 3)
    read("plain reads 1 of minilm", plain, minilm, 1, lead=True)
    read("plain reads 1 of bm25", plain, bm25, 1, lead=True)
    for one, routed in zip(last, mine, strict=True):
        report.add("ids", partial(ids_written, one, asked, places, names, args.rows))
        read("trained reads 1 routed", one.model, routed, 1)
    read("plain reads 1 of minilm in its own words", plain, minilm, 1)
    read("plain reads 1 of bm25 in its own words", plain, bm25, 1)
    read("plain reads 3 of bm25", plain, bm25, 3)
    for one in last:
        read("trained reads 3 of bm25", one.model, bm25, 3)
    report.add("paired", partial(paired, report.results))


def main() -> None:
    """Measure everything there is time for."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    evaluate(args)


if __name__ == "__main__":
    main()
