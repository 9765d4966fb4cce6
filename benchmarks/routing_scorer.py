"""The routing scorer beside the plain ones and beside what memory and processor allow at most.

    python benchmarks/routing_scorer.py [--shapes default published] [--tokens 1000000 10000000 100000000]
        [--question-tokens 8 32 64] [--forms int8 half exact] [--out benchmarks/results/FILE.json]
    python benchmarks/routing_scorer.py --device cuda --shapes published --tokens 100000000

Keys are SYNTHETIC (random: the best lie close together, the hardest case). One router layer is scored. Beside
``msa.ops.route``, up to ``--plain-chunks``:

* ``as written``: head by head with one broadcast product over slices of 16,384 chunks, as the authors' code does it;
* ``folded``: the query heads of a group folded into rows of one product, over the same slices.

Floors, from the same process: ``stream`` reads the keys once; ``product`` multiplies the question with as many keys of
the form's dtype, all in cache, and reduces nothing; ``peak`` is the time that many operations take at the speed of a
large square product. Ratios are best times: ``/ floor`` to the larger of stream and product, ``/ peak floor`` to the
larger of stream and peak. Every form, and every plain scorer, runs in a process of its own; peak memory is what scoring
adds to it.

On a GPU (``--device cuda``) the scorer is the Triton kernel: ``select`` is a call that selects documents, ``replayed``
its work on the GPU alone (a CUDA graph of it), ``route`` a call for all documents' scores, ``plain`` the same by torch.
``naive`` is Eq. 2 as it reads, on the first ``--plain-chunks``, beside ``select`` there. The floor reads the keys once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa.ops import ExactKeys, KeyBlock, RoutingSpec, halve_keys, quantize_keys, route
from msa.ops.route import measure_keys, on_threads, route_naive, select
from msa.ops.route.products import RESULT_DTYPES, fast_product
from msa.ops.route.scoring import prepare_query
from msa.ops.route.triton_dispatch import triton_scorer

CHUNK_TOKENS, CHUNKS_PER_DOCUMENT, TOP_K, PIECE, SLICE = 64, 8, 16, 65536, 16384
CACHED_BYTES, SQUARE = 1024 * 1024, 2048
FORMS = ("int8", "half", "exact")
GPU_FORMS = (*FORMS, "float8")
PLAIN = ("as written", "folded")


@dataclass(frozen=True)
class Shape:
    """Heads of a model, and how its published settings compare."""

    kv_heads: int
    group: int
    head_dim: int
    similarity: str


SHAPES = {"default": Shape(3, 3, 64, "cosine"), "published": Shape(8, 4, 128, "dot")}


def draw_keys(num_chunks: int, shape: Shape, device: str = "cpu") -> Tensor:
    """``[C, Hkv, D]`` bfloat16, a piece at a time."""
    generator = torch.Generator(device).manual_seed(0)
    keys = torch.empty(num_chunks, shape.kv_heads, shape.head_dim, dtype=torch.bfloat16, device=device)
    for start in range(0, num_chunks, PIECE):
        piece = keys[start : start + PIECE]
        piece.copy_(torch.randn(piece.shape, generator=generator, device=device))
    return keys


def draw_query(tokens: int, shape: Shape) -> Tensor:
    """``[1, T, Hq, D]``."""
    size = (1, tokens, shape.kv_heads * shape.group, shape.head_dim)
    return torch.randn(size, generator=torch.Generator().manual_seed(tokens))


def offsets_of(num_chunks: int) -> Tensor:
    """``[N + 1]`` for documents of equal length, the last one perhaps shorter."""
    return torch.cat([torch.arange(0, num_chunks, CHUNKS_PER_DOCUMENT), torch.tensor([num_chunks])])


def prepare(form: str, keys: Tensor, similarity: str) -> KeyBlock:
    """The keys in one form, as a memory holds them."""
    if form == "int8":
        return replace(quantize_keys(keys, similarity), stored=keys)
    return halve_keys(keys, similarity, out=keys) if form == "half" else measure_keys(keys, similarity)


def plain_scorer(method: str, query: Tensor, keys: Tensor, shape: Shape) -> Callable[[], Tensor]:
    """A call that gives the score of every chunk ``[C]``, in bfloat16; ``keys`` ``[Hkv, C, D]``, ready for products."""
    q = query[0].unflatten(1, (shape.kv_heads, shape.group)).permute(1, 2, 0, 3).to(keys.dtype)  # [Hkv, g, T, D]
    if shape.similarity == "cosine":
        q = torch.nn.functional.normalize(q, dim=-1)

    def score(part: Tensor) -> Tensor:
        if method == "as written":
            return (q @ part[:, None].transpose(2, 3)).mean((0, 1)).amax(0)  # of [Hkv, g, T, c]
        scores = (q.flatten(1, 2) @ part.transpose(1, 2)).unflatten(1, q.shape[1:3])
        return (scores.flatten(0, 1).sum(0) / (shape.kv_heads * shape.group)).amax(0)  # faster here than a mean

    return lambda: torch.cat([score(part) for part in keys.split(SLICE, dim=1)])


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Best and median seconds of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return {"best": min(times), "median": statistics.median(times)}


def reset_peak() -> float:
    """Let the peak begin again at what is resident now; that in MiB."""
    with contextlib.suppress(OSError):  # the peak so far is then the start, which hides what is smaller than it
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """Greatest resident size of this process since the last reset, MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_cache(dtype: torch.dtype, rows: int, length: int, num_chunks: int) -> Callable[[], Any]:
    """A call that multiplies ``rows`` rows with ``num_chunks`` keys, the same few over and over, on all threads."""
    size = min(CACHED_BYTES // (length * dtype.itemsize), num_chunks)
    product = fast_product(dtype)
    dtype = dtype if product else torch.float32
    left, keys = torch.ones(rows, length, dtype=dtype), torch.ones(size, length, dtype=dtype)

    def work(turns: Sequence[int]) -> list[int]:
        out = torch.empty(rows, size, dtype=RESULT_DTYPES.get(dtype, dtype))
        for _ in turns:
            product(left, keys, out) if product else torch.mm(left, keys.T, out=out)
        return []

    turns = range(-(-num_chunks // size))
    return lambda: on_threads(work, turns, torch.get_num_threads())


def operations_per_second(dtype: torch.dtype) -> float:
    """Of a large square product."""
    product = fast_product(dtype)
    dtype = dtype if product else torch.float32
    square = torch.ones(SQUARE, SQUARE, dtype=dtype)
    out = torch.empty(SQUARE, SQUARE, dtype=RESULT_DTYPES.get(dtype, dtype))
    multiply = (lambda: product(square, square, out)) if product else (lambda: torch.mm(square, square, out=out))
    return 2 * SQUARE**3 / timed(multiply, 5)["best"]


def measure_ours(form: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int) -> dict[str, Any]:
    """The scorer over one form of keys, with its floors, for questions of several lengths."""
    block = prepare(form, draw_keys(num_chunks, shape), shape.similarity)
    offsets, spec = offsets_of(num_chunks), RoutingSpec(similarity=shape.similarity)
    length, dtype = shape.kv_heads * shape.head_dim, block.keys.dtype
    words = block.keys.view(-1).view(torch.int64)
    stream, peak = timed(words.sum, repeats)["best"], operations_per_second(dtype)
    result: dict[str, Any] = {"key_mib": block.keys.nbytes / 2**20, "stream": stream, "peak_operations/s": peak}
    for tokens in question_tokens:
        query, mask = draw_query(tokens, shape), torch.ones(1, tokens, dtype=torch.bool)
        start = reset_peak()
        found = route(query, mask, [block], offsets, spec, TOP_K)
        added = peak_mib() - start
        times = timed(lambda: route(query, mask, [block], offsets, spec, TOP_K), repeats)  # noqa: B023
        product = timed(in_cache(dtype, tokens, length, num_chunks), repeats)["best"]
        result[f"{tokens} tokens"] = {
            **times,
            "peak_added_mib": added,
            "product": product,
            "peak": 2 * tokens * length * num_chunks / peak,
            "/ floor": times["best"] / max(stream, product),
            "/ peak floor": times["best"] / max(stream, 2 * tokens * length * num_chunks / peak),
            "selected": found.doc_indices[0].tolist(),
        }
    return result


def timed_on_gpu(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """As :func:`timed`, by the GPU's clock; after three calls that do not count, since kernels are compiled first."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return {"best": min(times), "median": statistics.median(times)}


def replayed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """What a call has the GPU do, without the time it takes to ask for it."""
    timed_on_gpu(work, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return timed_on_gpu(graph.replay, repeats)


def prepare_on_gpu(form: str, keys: Tensor, similarity: str) -> KeyBlock:
    """The keys in one form, without a second look at stored ones."""
    if form == "float8":
        return ExactKeys(keys.to(torch.float8_e4m3fn))
    return quantize_keys(keys, similarity) if form == "int8" else prepare(form, keys, similarity)


def measure_gpu(
    form: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int, plain_chunks: int
) -> dict[str, Any]:
    """The kernel over one form of keys, the plain scorers and the floor, for questions of several lengths."""
    block = prepare_on_gpu(form, draw_keys(num_chunks, shape, "cuda"), shape.similarity)
    offsets, spec = offsets_of(num_chunks).cuda(), RoutingSpec(similarity=shape.similarity)
    few = min(plain_chunks, num_chunks)
    part, part_offsets = block.take(torch.arange(few, device="cuda")), offsets_of(few).cuda()
    words = block.keys.view(-1).view(torch.int32)
    stream = timed_on_gpu(words.amax, repeats)["best"]
    result: dict[str, Any] = {"key_mib": block.keys.nbytes / 2**20, "stream": stream}
    for tokens in question_tokens:
        query, mask = draw_query(tokens, shape).cuda(), torch.ones(1, tokens, dtype=torch.bool, device="cuda")
        scorer = triton_scorer(query, [block])
        if scorer is None:
            raise RuntimeError("the Triton kernel does not run here: it needs triton and a Hopper GPU (H100, H200)")
        ask = (query, mask, [block], offsets, spec, TOP_K)
        ask_few = (query, mask, [part], part_offsets, spec, TOP_K)
        q, routing = prepare_query(query, mask, shape.kv_heads, spec)
        work = replayed(lambda: scorer.select(q, routing, *ask[2:]), repeats)  # noqa: B023
        result[f"{tokens} tokens"] = {
            "replayed": work,
            "select": timed_on_gpu(lambda: select(*ask), repeats),  # noqa: B023
            "route": timed_on_gpu(lambda: route(*ask), repeats),  # noqa: B023
            "plain": timed_on_gpu(lambda: route(*ask, tile_chunks=PIECE), repeats),  # noqa: B023
            f"select, {few} chunks": timed_on_gpu(lambda: select(*ask_few), repeats),  # noqa: B023
            f"naive, {few} chunks": timed_on_gpu(lambda: route_naive(*ask_few), repeats),  # noqa: B023
            "replayed / floor": work["best"] / stream,
            "same as naive": select(*ask_few).doc_indices.tolist() == route_naive(*ask_few).doc_indices.tolist(),
            "selected": select(*ask).doc_indices[0].tolist(),
        }
    return result


def measure_plain(
    method: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int
) -> dict[str, Any]:
    """One of the plain scorers, for questions of several lengths."""
    keys = draw_keys(num_chunks, shape)
    if shape.similarity == "cosine":
        keys = halve_keys(keys, "cosine", out=keys).keys
    keys, offsets = keys.transpose(0, 1).contiguous(), offsets_of(num_chunks)
    torch.ones(512, 512) @ torch.ones(512, 512)  # the library's own buffers
    result: dict[str, Any] = {}
    for tokens in question_tokens:
        scorer = plain_scorer(method, draw_query(tokens, shape), keys, shape)

        def select(scorer: Callable[[], Tensor] = scorer) -> list[int]:
            documents = torch.segment_reduce(scorer().float(), "max", offsets=offsets)
            return documents.topk(TOP_K).indices.tolist()

        start = reset_peak()
        found = select()
        added = peak_mib() - start
        result[f"{tokens} tokens"] = {**timed(select, repeats), "peak_added_mib": added, "selected": found}
    return result


def in_own_process(args: argparse.Namespace, shape: str, chunks: int, what: str) -> dict[str, Any]:
    """One measurement of this file."""
    tokens = [str(tokens) for tokens in sorted(args.question_tokens)]
    command = [sys.executable, __file__, "--shapes", shape, "--question-tokens", *tokens]
    command += ["--repeats", str(args.repeats), "--measure", what, "--chunks", str(chunks)]
    command += ["--device", args.device, "--plain-chunks", str(args.plain_chunks)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{run.stderr}")
    return dict(json.loads(run.stdout))


def measure_size(args: argparse.Namespace, shape: str, chunks: int) -> dict[str, Any]:
    """All forms and, where that is not too much, the plain scorers; and how they compare."""
    forms = {form: in_own_process(args, shape, chunks, form) for form in args.forms}
    methods = PLAIN if chunks <= args.plain_chunks and args.device == "cpu" else ()
    plain = {method: in_own_process(args, shape, chunks, method) for method in methods}
    for tokens in args.question_tokens:
        key = f"{tokens} tokens"
        exact = set(forms["exact"][key]["selected"]) if "exact" in forms else None
        for form in forms.values():
            ours = form[key]
            for method, theirs in plain.items():
                ours[f"{method}: times as long"] = theirs[key]["best"] / ours["best"]
                ours[f"{method}: times the memory"] = theirs[key]["peak_added_mib"] / max(ours["peak_added_mib"], 0.1)
        for each in (*forms.values(), *plain.values()):
            selected = set(each[key].pop("selected"))
            if exact is not None:
                each[key][f"of the best {TOP_K}"] = len(selected & exact)
    return {"chunks": chunks, **forms, **plain}


def main() -> None:
    """Measure every shape and size, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 4_194_304, 10_000_000, 100_000_000])
    parser.add_argument("--question-tokens", type=int, nargs="+", default=[8, 12, 32, 64])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--forms", nargs="+", choices=GPU_FORMS, help="float8: on a GPU; all of a device's by default")
    parser.add_argument("--plain-chunks", type=int, default=65536, help="the plain scorers run on up to so many chunks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=(*GPU_FORMS, *PLAIN), help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    args.forms = args.forms or [*(FORMS if args.device == "cpu" else GPU_FORMS)]
    if args.device == "cpu" and "float8" in args.forms:
        parser.error("--forms float8 is measured on a GPU: add --device cuda")
    if args.measure:
        ask = (args.measure, SHAPES[args.shapes[0]], args.chunks, args.question_tokens, args.repeats)
        if args.device == "cuda":
            print(json.dumps(measure_gpu(*ask, args.plain_chunks)))
        else:
            print(json.dumps((measure_ours if args.measure in FORMS else measure_plain)(*ask)))
        return
    result: dict[str, Any] = {
        "what": "one router layer, SYNTHETIC keys; seconds, unless it says otherwise",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        + (torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability()),
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for name in args.shapes:
        shape = SHAPES[name]
        result[name] = {"heads": f"{shape.kv_heads} kv heads x {shape.group} x {shape.head_dim}, {shape.similarity}"}
        for tokens in sorted(args.tokens):
            result[name][f"{tokens} tokens"] = measure_size(args, name, tokens // CHUNK_TOKENS)
            print(json.dumps({f"{name}, {tokens} tokens": result[name][f"{tokens} tokens"]}, indent=1), flush=True)
            if args.out:
                args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
