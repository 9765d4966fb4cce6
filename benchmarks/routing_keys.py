"""Size, time and recall of routing over each form of key: as stored, halved, int8.

    python benchmarks/routing_keys.py [--tokens 1000000 10000000 100000000] [--layers 15] [--keys random topics]
        [--question-tokens 12] [--out benchmarks/results/FILE.json]

Keys are SYNTHETIC. ``random`` draws every value by itself: the best of a million unrelated chunks lie close together,
which is hard for recall; for the time of the exact form keys that share a direction are harder (routing_scorer.py
--cosine). ``topics`` draws chunks around documents around topics, in dimensions of falling variance, and
questions near one chunk, as trained keys are. Layers hold copies of the same values in memory of their own, so that a
question reads as much as with real ones. Recall is the mean share of the sixteen documents that exact routing over the
stored keys selects in the same run; with a second look compact forms score the best documents again from those.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from storing import made_by, show_and_store
from torch import Tensor

from msa.ops import ExactKeys, KeyBlock, RoutingSpec, halve_keys, quantize_keys, route
from msa.ops.route import measure_keys

CHUNK_TOKENS, TOP_K, PIECE, TOPICS, SPEC = 64, 16, 65536, 4096, RoutingSpec()
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "exact": lambda keys: measure_keys(keys, SPEC.similarity),
    "bfloat16": lambda keys: halve_keys(keys, SPEC.similarity),
    "float16": lambda keys: halve_keys(keys, SPEC.similarity, torch.float16),
    "int8": lambda keys: quantize_keys(keys, SPEC.similarity),
}


def offsets_of(num_chunks: int, chunks_per_document: int) -> Tensor:
    """``[N + 1]`` for documents of equal length, the last one perhaps shorter."""
    return torch.cat([torch.arange(0, num_chunks, chunks_per_document), torch.tensor([num_chunks])])


def draw_keys(num_chunks: int, kind: str, args: argparse.Namespace) -> Tensor:
    """Synthetic keys ``[C, Hkv, D]`` bfloat16, a piece at a time."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.kv_heads, args.head_dim)
    keys = torch.empty(num_chunks, *shape, dtype=torch.bfloat16)
    spread = torch.arange(1, args.head_dim + 1) ** -0.5
    topics = torch.randn(TOPICS, *shape, generator=generator)
    common = torch.randn(shape, generator=generator)  # what all keys share
    for start in range(0, num_chunks, PIECE):
        size = min(PIECE, num_chunks - start)
        piece = torch.randn(size, *shape, generator=generator)
        if kind == "topics":
            per_document = args.chunks_per_document
            documents = torch.randn(size // per_document + 1, *shape, generator=generator)
            topic = topics[torch.randint(TOPICS, (documents.shape[0],), generator=generator)]
            around = (topic + documents).repeat_interleave(per_document, dim=0)[:size]
            piece = (common + around + piece) * spread
        keys[start : start + size] = piece
    return keys


def draw_questions(keys: Tensor, kind: str, args: argparse.Namespace) -> list[Tensor]:
    """Queries ``[1, T, Hq, D]``: random, or each token some way from one chunk's keys."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, args.question_tokens, args.kv_heads, args.group, args.head_dim)
    questions = []
    for _ in range(args.questions):
        query = torch.randn(shape, generator=generator)
        if kind == "topics":
            chunk = keys[int(torch.randint(len(keys), (), generator=generator))].float()
            query = chunk[None, None, :, None] + query * chunk.std() * 2
        questions.append(query.flatten(2, 3))
    return questions


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of a call after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 4)


def recall_of(found: list[list[int]], wanted: list[set[int]]) -> float:
    """Mean share of the wanted documents that were found."""
    return round(statistics.mean(len(w.intersection(f)) / len(w) for f, w in zip(found, wanted, strict=True)), 4)


def copy_of(block: Any) -> KeyBlock:
    """The same block in memory of its own."""
    changes = {name: value.clone() for name, value in vars(block).items() if isinstance(value, Tensor)}
    return replace(block, **changes)


def measure(num_tokens: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """All forms over one memory."""
    num_chunks = num_tokens // CHUNK_TOKENS
    keys = draw_keys(num_chunks, kind, args)
    questions = draw_questions(keys, kind, args)
    offsets = offsets_of(num_chunks, args.chunks_per_document)
    mask = torch.ones(1, args.question_tokens, dtype=torch.bool)

    def ask(question: Tensor, block: KeyBlock) -> list[int]:
        return route(question, mask, [block], offsets, SPEC, TOP_K).doc_indices[0].tolist()

    def ask_all(question: Tensor, layers: list[KeyBlock]) -> list[list[int]]:
        return [ask(question, layer) for layer in layers]

    wanted = [set(ask(question, ExactKeys(keys))) for question in questions]
    result: dict[str, Any] = {"chunks": num_chunks, "documents": len(offsets) - 1}
    for name, prepare in FORMS.items():
        started = time.perf_counter()
        layer = prepare(keys)
        preparation = time.perf_counter() - started
        found = [ask(question, layer) for question in questions]
        looked_again = layer if name == "exact" else replace(layer, stored=keys)
        refined = [ask(question, looked_again) for question in questions]
        size = sum(value.numel() * value.element_size() for value in vars(layer).values() if isinstance(value, Tensor))
        one, again = (seconds(partial(ask, questions[0], b), args.repeats) for b in (layer, looked_again))
        layers = [layer, *(copy_of(layer) for _ in range(args.layers - 1))]
        every = seconds(partial(ask_all, questions[0], layers), args.repeats)
        result[name] = {
            "bytes a layer": size,
            "bytes all layers": size * args.layers,
            "preparation a layer, s": round(preparation, 3),
            "question one layer, s": one,
            "question all layers, s": every,
            f"recall@{TOP_K}": recall_of(found, wanted),
            "question one layer, second look, s": again,
            f"recall@{TOP_K}, second look": recall_of(refined, wanted),
        }
        del layer, layers
    return result


def main() -> None:
    """Measure every memory size and kind of keys and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--keys", nargs="+", default=["random", "topics"], choices=("random", "topics"))
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--question-tokens", type=int, default=12)
    parser.add_argument("--questions", type=int, default=16, help="questions for recall")
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--group", type=int, default=3, help="query heads per key/value head")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--chunks-per-document", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "keys": "synthetic",
        "shapes": f"{args.layers} layers, {args.kv_heads} kv heads x {args.group} x {args.head_dim}, stored bfloat16, "
        f"{args.question_tokens} question tokens",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **made_by(),
    }
    for num_tokens in args.tokens:
        for kind in args.keys:
            result[f"{num_tokens} tokens, {kind} keys"] = measure(num_tokens, kind, args)
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
