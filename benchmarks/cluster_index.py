"""Routing over lists of like keys: recall against the share of keys looked at, and time beside exact scoring.

    python benchmarks/cluster_index.py [--tokens 1000000] [--chunks 5000 16000] [--out benchmarks/results/FILE.json]
    python benchmarks/cluster_index.py --memory FOLDER --questions FILE.jsonl     (a memory there is)
    python benchmarks/cluster_index.py --model smollm2-135m --states CACHE        (--cache of recipes/router_warmup.py)

Keys and questions are those of trained routers: random ones would prove nothing. Without ``--memory`` and ``--states``
needles (msa.training.data.needles) of ``--tokens`` tokens are encoded by msa-tiny first. Cached states hold the
questions that the routers were trained on as well. Smaller sizes are the first documents of the largest.

Per layer, and per share of the keys: ``recall`` is the mean share of the 16 documents of exact routing that were
selected, ``touched`` the mean share of keys that were read, centroids included, ``ms`` the median time of a question;
``exact_ms`` that of exact routing in the same loop. ``mean_of_layers`` is the recall of the 16 best documents by the
mean of all layers' scores, as ``retrieval="routed"`` ranks them, with centroids' scores for what was not looked at.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from storing import made_by
from torch import Tensor

import msa
from msa.ops import RoutingSpec, route
from msa.ops.route import KeyBlock, measure_keys, quantize_keys
from msa.routing import BankView, Tiers
from msa.routing.cluster_index import ClusterIndex, lists_of
from msa.training.data.needles import NeedleConfig, NeedleWorlds, keys_of
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.router_scores import router_maps
from msa.training.router_states import MANIFEST, RouterStates

TOP_K = 16
SEED = "held out"


@dataclass
class Layer:
    """Of one router layer: keys ``[C, Hkv, D]``, a routing query ``[1, T, Hq, D]`` per question, and how to compare."""

    keys: Tensor
    queries: list[Tensor]
    spec: RoutingSpec


@dataclass
class Source:
    """Where keys and questions are from; layers are made one at a time."""

    what: str
    layers: list[int]
    chunk_offsets: Tensor
    make: Any

    def each(self) -> Iterator[tuple[int, Layer]]:
        """Layer by layer."""
        for layer in self.layers:
            yield layer, self.make(layer)


def of_states(model: msa.MSAModel, folder: Path, num_questions: int, layers: list[int] | None) -> Source:
    """Cached router states through the model's routers."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    known = json.loads((folder / MANIFEST).read_text())["layers"]
    documents = tuple(name for name in names if name.startswith("documents"))
    questions = tuple(name for name in names if name.startswith("questions"))
    states = RouterStates(folder, tuple(known), documents, questions)
    chosen = layers or known
    first = states.layer(chosen[0])
    asked = random.Random(0).sample(range(len(first.token_offsets) - 1), num_questions)

    def make(layer: int) -> Layer:
        found, maps = states.layer(layer), router_maps(model.lm, layer)
        keys = (found.chunks.float() @ maps.key.T).bfloat16().unflatten(1, (-1, maps.head_dim))
        bounds = [(int(found.token_offsets[i]), int(found.token_offsets[i + 1])) for i in asked]
        queries = [found.tokens[a:b].float() @ maps.query.T for a, b in bounds]
        spec = model.lm.config.routing_spec(training=False)
        return Layer(keys, [query.unflatten(1, (-1, maps.head_dim))[None] for query in queries], spec)

    return Source(f"cached states, {len(first.chunk_offsets) - 1} documents", chosen, first.chunk_offsets, make)


class Recorder:
    """A memory that keeps the routing queries it is asked with."""

    def __init__(self, view: BankView) -> None:
        self.view, self.queries = view, {layer: [] for layer in view.spec.layers}
        self.spec = RoutingSpec()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)

    def route(self, layer: int, query: Tensor, query_mask: Tensor, spec: RoutingSpec, *rest: Any) -> Any:
        """See :class:`msa.MemoryView`."""
        self.queries[layer].append(query[query_mask][None].clone())
        self.spec = spec
        return self.view.route(layer, query, query_mask, spec, *rest)


def of_memory(memory: msa.Memory, questions: list[str], layers: list[int] | None) -> Source:
    """A memory's own keys, and queries by its model."""
    model, view = memory.model, BankView(memory.bank, tiers=Tiers(routing_keys="mapped"))
    recorder = Recorder(view)
    for question in questions:
        turn = model.protocol.question_turn(question)
        ids, marked = torch.tensor([turn.ids]), torch.tensor([turn.marked])
        model.lm.route(ids, recorder, routing_mask=marked, prefix=model.prefix)

    def make(layer: int) -> Layer:
        keys = torch.cat([block.rows(0, len(block.keys), "dot").bfloat16() for block in view.key_blocks[layer]])
        return Layer(keys, recorder.queries[layer], recorder.spec)

    stats = memory.stats()
    what = f"{stats['model_name']}, {stats['documents']} documents, {stats['tokens']} tokens, {stats['chunks']} chunks"
    return Source(what, layers or list(view.spec.layers), view.chunk_offsets, make)


def add_needles(memory: msa.Memory, tokens: int, num_questions: int) -> list[str]:
    """Fill a memory with needles; the questions about some of them."""
    worlds = NeedleWorlds(*needle_words(held_out=True), haystack_sentences(held_out=True))
    asked = worlds.world(NeedleConfig(documents=2 * num_questions, questions=num_questions, max_filler=80), SEED, set())
    memory.add([{"id": name, "text": text} for name, text in asked.corpus.items()])
    round_ = 0
    while (missing := tokens - memory.stats()["tokens"]) > 0:
        per_document = memory.stats()["tokens"] / len(memory)
        config = NeedleConfig(documents=min(2000, int(missing / per_document) + 1), questions=0, max_filler=80)
        filled = worlds.world(config, f"{SEED} {round_}", keys_of(asked))
        memory.add([{"id": f"{round_}-{n}", "text": text} for n, text in enumerate(filled.corpus.values())])
        round_ += 1
    return [sample.query for sample in asked.samples]


def best(scores: Tensor) -> set[int]:
    """The best documents of ``[N]``."""
    return set(scores.topk(min(TOP_K, len(scores))).indices.tolist())


def shared(found: set[int], wanted: set[int]) -> float:
    """Share of the wanted documents that were found."""
    return len(found & wanted) / len(wanted)


def measure(source: Source, num_chunks: int, shares: list[float], form: str) -> dict[str, Any]:
    """All layers over the first documents that hold ``num_chunks`` chunks."""
    num_documents = int((source.chunk_offsets <= num_chunks).sum()) - 1
    offsets = source.chunk_offsets[: num_documents + 1]
    size = int(offsets[-1])
    result: dict[str, Any] = {"chunks": size, "documents": num_documents, "layers": {}}
    sums: dict[float, Tensor] = {}
    for number, layer in source.each():
        similarity = layer.spec.similarity
        keys = layer.keys[:size]
        block: KeyBlock = measure_keys(keys, similarity) if form == "exact" else quantize_keys(keys, similarity)
        started = time.perf_counter()
        index = ClusterIndex([block], [lists_of(block, similarity)], offsets)
        result["layers"][number] = {"lists": index.num_lists, "build_s": round(time.perf_counter() - started, 2)}
        found: dict[float, list[tuple[float, float, float]]] = {share: [] for share in shares}
        exact_ms = []
        for i, query in enumerate(layer.queries):
            mask = torch.ones(query.shape[:2], dtype=torch.bool)
            started = time.perf_counter()
            exact = route(query, mask, [block], offsets, layer.spec, TOP_K)
            exact_ms.append(1000 * (time.perf_counter() - started))
            for share in (0.0, *shares):
                started = time.perf_counter()
                some = index.route(query, mask, layer.spec, TOP_K, share=share) if share else exact
                ms = 1000 * (time.perf_counter() - started)
                total = sums.setdefault(share, torch.zeros(len(layer.queries), num_documents))
                total[i] += some.doc_scores[0]
                if share:
                    recall = shared(set(some.doc_indices[0].tolist()), set(exact.doc_indices[0].tolist()))
                    found[share].append((recall, int(some.touched) / some.num_keys, ms))
        result["layers"][number]["exact_ms"] = round(statistics.median(exact_ms), 2)
        result["layers"][number]["shares"] = {share: row(values) for share, values in found.items()}
        print(num_chunks, number, json.dumps(result["layers"][number]), flush=True)
    layers = [layer["shares"] for layer in result["layers"].values()]
    result["shares"] = {
        share: {
            **{name: round(statistics.mean(layer[share][name] for layer in layers), 4) for name in layers[0][share]},
            "mean_of_layers": round(
                statistics.mean(shared(best(a), best(b)) for a, b in zip(sums[share], sums[0.0], strict=True)), 4
            ),
        }
        for share in shares
    }
    result["exact_ms"] = round(statistics.mean(layer["exact_ms"] for layer in result["layers"].values()), 2)
    return result


def row(values: list[tuple[float, float, float]]) -> dict[str, float]:
    """Means of recall and share touched, median of the time."""
    recalls, touched, times = zip(*values, strict=True)
    return {
        "recall": round(statistics.mean(recalls), 4),
        "touched": round(statistics.mean(touched), 4),
        "ms": round(statistics.median(times), 2),
    }


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="msa-tiny")
    parser.add_argument("--memory", type=Path, help="a memory that is there")
    parser.add_argument("--questions", type=Path, help='lines with a "question"; needed with --memory')
    parser.add_argument("--states", type=Path, help="cached router states instead of a memory")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of needles, without --memory and --states")
    parser.add_argument("--chunks", type=int, nargs="+", help="sizes to measure (default: all there are)")
    parser.add_argument("--layers", type=int, nargs="+", help="router layers (default: all)")
    parser.add_argument("--num-questions", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
    parser.add_argument("--keys", choices=("exact", "int8"), default="exact", help="form of the keys")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.memory and not args.questions:
        parser.error("--memory needs --questions")
    return args


@torch.inference_mode()
def main() -> None:
    """Measure every size and report."""
    args = arguments()
    model = msa.load(args.model)
    with tempfile.TemporaryDirectory() as scratch:
        if args.states:
            source = of_states(model, args.states, args.num_questions, args.layers)
        else:
            folder = args.memory or Path(scratch)
            with msa.Memory.open(folder, model, read_only=args.memory is not None) as memory:
                if args.memory:
                    lines = [json.loads(line) for line in args.questions.read_text().splitlines()]
                    asked = [*dict.fromkeys(line["question"] for line in lines if "question" in line)]
                else:
                    asked = add_needles(memory, args.tokens, args.num_questions)
                source = of_memory(memory, asked[: args.num_questions], args.layers)
        result = {
            "what": "routing over lists of like keys beside exact routing; per question, mean over router layers",
            "model": repr(model),
            "source": source.what,
            "keys": args.keys,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            **made_by(),
            "sizes": [
                measure(source, size, args.shares, args.keys) for size in args.chunks or [int(source.chunk_offsets[-1])]
            ],
        }
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
