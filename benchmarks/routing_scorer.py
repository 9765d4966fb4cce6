"""The routing scorer beside the plain ones and beside what memory and processor allow at most.

    python benchmarks/routing_scorer.py [--shapes default published] [--tokens 1000000 10000000 100000000]
        [--question-tokens 8 32 64] [--forms int8 half exact] [--cosine 0 0.9] [--memory]
        [--out benchmarks/results/FILE.json]
    python benchmarks/routing_scorer.py --device cuda --shapes published --tokens 100000000

Keys are SYNTHETIC: random, or with ``--cosine`` sharing a direction, with the question, which is harder for a CPU: more
of them are in reach of the best after the first look. One router layer is scored. Beside ``msa.ops.route``, up to
``--plain-chunks``:

* ``as written``: head by head with one broadcast product over slices of 16,384 chunks, as the authors' code does it;
* ``folded``: the query heads of a group folded into rows of one product, over the same slices;
* ``faiss flat``: faiss' exact search for each token; as many of its best chunks as make the selection exact;
* ``maxsim-cpu (another score)``: multiplies as many numbers but reduces them in another way, to MaxSim: the sum over
  tokens of the best chunk of a document, where routing takes the maximum over tokens. A peer in work, not in result.

The last two, in float32, where they are installed (``pip install 'memory-sparse-attention[bench]'``) and on CPUs only.

Floors, from the same process: ``stream`` reads the keys once; ``product`` multiplies the question with as many keys of
the form's dtype, all in cache, and reduces nothing; ``peak`` is the time that many operations take at the speed of a
large square product. Ratios are best times: ``/ floor`` to the larger of stream and product, ``/ peak floor`` to the
larger of stream and peak. Every form, and every other scorer, runs in a process of its own. Peak memory is what the
first question adds to a process, one for each length: later ones find buffers that are there already.

On a GPU (``--device cuda``) the scorer is the Triton kernel: ``select`` is a call that selects documents, ``replayed``
its work on the GPU alone (a CUDA graph of it), ``route`` a call for all documents' scores, ``plain`` the same by torch.
``naive`` is Eq. 2 as it reads, on the first ``--plain-chunks``, beside ``select`` there. The floor reads the keys once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from storing import made_by
from torch import Tensor

from msa.bench.floors import in_cache, reading, seconds_per_operation
from msa.bench.peers import MAXSIM, PEERS, peers_here
from msa.bench.routing import (
    CHUNK_TOKENS,
    FORMS,
    PIECE,
    PLAIN,
    PLAIN_CHUNKS,
    SHAPES,
    TOP_K,
    Shape,
    draw_keys,
    draw_query,
    offsets_of,
    peer_selectors,
    plain_scorer,
    plain_selector,
    prepare,
    ready_keys,
)
from msa.bench.timing import peak_mib, replayed, reset_peak, timed, timed_on_gpu
from msa.ops import ExactKeys, KeyBlock, RoutingSpec, route
from msa.ops.route import route_naive, select
from msa.ops.route.scoring import prepare_query
from msa.ops.route.triton_dispatch import triton_scorer

GPU_FORMS = (*FORMS, "float8")


def measure_ours(
    form: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int, cosine: float
) -> dict[str, Any]:
    """The scorer over one form of keys, with its floors, for questions of several lengths."""
    block = prepare(form, draw_keys(num_chunks, shape, cosine=cosine), shape.similarity, in_place=True)
    offsets, spec = offsets_of(num_chunks), RoutingSpec(similarity=shape.similarity)
    length, dtype = shape.kv_heads * shape.head_dim, block.keys.dtype
    stream, peak = timed(reading(block.keys), repeats)["best"], 1 / seconds_per_operation(dtype)["best"]
    result: dict[str, Any] = {"key_mib": block.keys.nbytes / 2**20, "stream": stream, "peak_operations/s": peak}
    for tokens in question_tokens:
        query, mask = draw_query(tokens, shape, cosine), torch.ones(1, tokens, dtype=torch.bool)
        found = route(query, mask, [block], offsets, spec, TOP_K)
        times = timed(lambda: route(query, mask, [block], offsets, spec, TOP_K), repeats)  # noqa: B023
        product = timed(in_cache(dtype, tokens, length, num_chunks), repeats)["best"]
        result[f"{tokens} tokens"] = {
            **times,
            "product": product,
            "peak": 2 * tokens * length * num_chunks / peak,
            "/ floor": times["best"] / max(stream, product),
            "/ peak floor": times["best"] / max(stream, 2 * tokens * length * num_chunks / peak),
            "selected": found.doc_indices[0].tolist(),
        }
    return result


def prepare_on_gpu(form: str, keys: Tensor, similarity: str) -> KeyBlock:
    """The keys in one form."""
    if form == "float8":
        return ExactKeys(keys.to(torch.float8_e4m3fn))
    return prepare(form, keys, similarity, in_place=True)


def measure_gpu(
    form: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int, plain_chunks: int
) -> dict[str, Any]:
    """The kernel over one form of keys, the plain scorers and the floor, for questions of several lengths."""
    block = prepare_on_gpu(form, draw_keys(num_chunks, shape, "cuda"), shape.similarity)
    offsets, spec = offsets_of(num_chunks).cuda(), RoutingSpec(similarity=shape.similarity)
    few = min(plain_chunks, num_chunks)
    part, part_offsets = block.take(torch.arange(few, device="cuda")), offsets_of(few).cuda()
    stream = timed_on_gpu(reading(block.keys), repeats)["best"]
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


def other_work(method: str, shape: Shape, keys: Tensor, tokens: int, cosine: float) -> Callable[[], Any]:
    """A call that selects the best documents by one of the plain scorers or other libraries."""
    query = draw_query(tokens, shape, cosine)
    if method in PEERS:
        return peer_selectors(query, keys, shape, [method])[method]
    return plain_selector(plain_scorer(method, query, keys, shape), offsets_of(keys.shape[1]))


def measure_other(
    method: str, shape: Shape, num_chunks: int, question_tokens: list[int], repeats: int, cosine: float
) -> dict[str, Any]:
    """One of the plain scorers or other libraries, for questions of several lengths."""
    keys = ready_keys(draw_keys(num_chunks, shape, cosine=cosine), shape.similarity)
    works = {tokens: other_work(method, shape, keys, tokens, cosine) for tokens in question_tokens}
    return {f"{tokens} tokens": {"selected": work(), **timed(work, repeats)} for tokens, work in works.items()}


def measure_memory(what: str, shape: Shape, num_chunks: int, tokens: int, cosine: float) -> float:
    """MiB that the first question adds at its peak to this process, which has asked none yet."""
    keys = draw_keys(num_chunks, shape, cosine=cosine)
    if what in FORMS:
        query, offsets = draw_query(tokens, shape, cosine), offsets_of(num_chunks)
        mask, spec = torch.ones(1, tokens, dtype=torch.bool), RoutingSpec(similarity=shape.similarity)
        block = prepare(what, keys, shape.similarity, in_place=True)

        def work() -> Any:
            return route(query, mask, [block], offsets, spec, TOP_K)
    else:
        work = other_work(what, shape, ready_keys(keys, shape.similarity), tokens, cosine)
    torch.ones(512, 512) @ torch.ones(512, 512)  # the library's own buffers
    before = reset_peak()
    work()
    return peak_mib() - before


def in_own_process(args: argparse.Namespace, shape: str, chunks: int, what: str, cosine: float) -> dict[str, Any]:
    """What this file measures of one scorer, and on a CPU its memory for each length, in processes of their own."""
    command = [sys.executable, __file__, "--shapes", shape, "--measure", what, "--chunks", str(chunks)]
    command += ["--repeats", str(args.repeats), "--device", args.device, "--plain-chunks", str(args.plain_chunks)]
    command += ["--cosine", str(cosine), "--question-tokens"]
    lengths = sorted(args.question_tokens)
    timed_too = {} if args.memory else printed_by([*command, *map(str, lengths)])
    result: dict[str, Any] = {**{f"{tokens} tokens": {} for tokens in lengths}, **timed_too}
    for tokens in lengths if args.device == "cpu" else ():
        result[f"{tokens} tokens"]["peak_added_mib"] = printed_by([*command, str(tokens), "--memory"])
    return result


def printed_by(command: list[str]) -> Any:
    """The JSON that a process prints."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{run.stderr}")
    return json.loads(run.stdout)


def measure_size(args: argparse.Namespace, shape: str, chunks: int, cosine: float) -> dict[str, Any]:
    """All forms and, where that is not too much, the other scorers; and how they compare."""
    forms = {form: in_own_process(args, shape, chunks, form, cosine) for form in args.forms}
    beside = chunks <= args.plain_chunks and args.device == "cpu"
    peers, missing = peers_here() if beside else ([], {})
    methods = (*PLAIN, *peers) if beside else ()
    others = {method: in_own_process(args, shape, chunks, method, cosine) for method in methods}
    for key in (f"{tokens} tokens" for tokens in args.question_tokens):
        for ours in (form[key] for form in forms.values()):
            for method, theirs in ((name, each[key]) for name, each in others.items()):
                if not args.memory:
                    ours[f"{method}: times as long"] = theirs["best"] / ours["best"]
                ours[f"{method}: times the memory"] = theirs["peak_added_mib"] / max(ours["peak_added_mib"], 1.0)
        if not args.memory:
            compare_selections({name: each[key] for name, each in {**forms, **others}.items()})
    return {"chunks": chunks, **forms, **others, **({"not measured": missing} if missing else {})}


def compare_selections(found: dict[str, dict[str, Any]]) -> None:
    """Of what each scorer selected, how much exact keys do, where they were asked; maxsim's best are others."""
    selected = {name: set(each.pop("selected")) for name, each in found.items()}
    for name in [name for name in selected if name != MAXSIM and "exact" in selected]:
        found[name][f"of the best {TOP_K}"] = len(selected[name] & selected["exact"])


def measured(args: argparse.Namespace) -> Any:
    """What this process was started for."""
    shape, lengths, cosine = SHAPES[args.shapes[0]], args.question_tokens, args.cosine[0]
    if args.device == "cuda":
        return measure_gpu(args.measure, shape, args.chunks, lengths, args.repeats, args.plain_chunks)
    if args.memory:
        return measure_memory(args.measure, shape, args.chunks, lengths[0], cosine)
    measure = measure_ours if args.measure in FORMS else measure_other
    return measure(args.measure, shape, args.chunks, lengths, args.repeats, cosine)


def main() -> None:
    """Measure every shape and size, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 4_194_304, 10_000_000, 100_000_000])
    parser.add_argument("--question-tokens", type=int, nargs="+", default=[8, 12, 32, 64])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--forms", nargs="+", choices=GPU_FORMS, help="float8: on a GPU; all of a device's by default")
    parser.add_argument(
        "--plain-chunks", type=int, default=PLAIN_CHUNKS, help="the other scorers run on up to so many chunks"
    )
    parser.add_argument(
        "--cosine", type=float, nargs="+", default=[0.0], help="of two keys, in the mean; 0: random ones (CPU only)"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=(*GPU_FORMS, *PLAIN, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="peaks of memory alone, on a CPU")
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not all(0 <= each < 1 for each in args.cosine) or ((any(args.cosine) or args.memory) and args.device == "cuda"):
        parser.error("--cosine takes 0 to below 1; it and --memory are measured on a CPU")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    args.forms = args.forms or [*(FORMS if args.device == "cpu" else GPU_FORMS)]
    if args.device == "cpu" and "float8" in args.forms:
        parser.error("--forms float8 is measured on a GPU: add --device cuda")
    if args.measure:
        print(json.dumps(measured(args)))
        return
    result: dict[str, Any] = {
        "what": "one router layer, SYNTHETIC keys; "
        + ("peaks of memory" if args.memory else "seconds, unless it says otherwise"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        + (torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability()),
        **made_by(),
    }
    for name in args.shapes:
        shape = SHAPES[name]
        result[name] = {"heads": str(shape)}
        for tokens, cosine in itertools.product(sorted(args.tokens), args.cosine):
            size = f"{tokens} tokens" + (f", cosine {cosine:g}" if cosine else "")
            result[name][size] = measure_size(args, name, tokens // CHUNK_TOKENS, cosine)
            print(json.dumps({f"{name}, {size}": result[name][size]}, indent=1), flush=True)
            if args.out:
                args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
