"""Time and peak memory of the routing scorer beside the plain ones, each in a process of its own.

    python benchmarks/routing_memory.py [--chunks 65536] [--dtype bfloat16] [--out benchmarks/results/FILE.json]

Shapes of the published 4B checkpoint: 8 key/value heads x 4 query heads each x 128, 32 tokens. ``head by head`` scores
every query head by itself; ``folded`` folds the heads of a group into rows of one product; ``msa`` is
``msa.ops.route``. Peak memory is what scoring adds to the resident keys.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa.ops import RoutingSpec, route

KV_HEADS, GROUP, HEAD_DIM, TOKENS, CHUNKS_PER_DOC, TOP_K = 8, 4, 128, 32, 2, 16
METHODS = ("msa", "folded", "head by head")


def peak_mib() -> float:
    """Greatest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scorer(method: str, query: Tensor, keys: Tensor, offsets: Tensor) -> Callable[[], Any]:
    """A call that selects the best documents."""
    if method == "msa":
        mask = torch.ones(1, TOKENS, dtype=torch.bool)
        return lambda: route(query, mask, keys, offsets, RoutingSpec(similarity="dot"), TOP_K).doc_indices

    def plain() -> Tensor:
        q = query[0].transpose(0, 1)  # [Hq, T, D]
        if method == "folded":
            rows = q.reshape(KV_HEADS, GROUP * TOKENS, HEAD_DIM).to(keys.dtype)
            scores = (rows @ keys.permute(1, 2, 0)).view(KV_HEADS * GROUP, TOKENS, -1)
        else:
            heads = [q[h].to(keys.dtype) @ keys[:, h // GROUP].T for h in range(KV_HEADS * GROUP)]
            scores = torch.stack(heads)
        chunk_scores = scores.mean(0).amax(0).float()
        return chunk_scores.view(-1, CHUNKS_PER_DOC).amax(1).topk(TOP_K).indices

    return plain


def measure(method: str, num_chunks: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One method in this process."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.empty(num_chunks, KV_HEADS, HEAD_DIM, dtype=dtype)
    for start in range(0, num_chunks, 4096):  # drawn in pieces, so that making them is not the peak
        keys[start : start + 4096] = torch.randn(keys[start : start + 4096].shape, generator=generator).to(dtype)
    query = torch.randn(1, TOKENS, KV_HEADS * GROUP, HEAD_DIM, generator=generator).to(dtype)
    offsets = torch.arange(0, num_chunks + 1, CHUNKS_PER_DOC)
    work = scorer(method, query, keys, offsets)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the library's own buffers
    before = peak_mib()
    selected = work()
    added = peak_mib() - before
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    keys_mib = keys.numel() * keys.element_size() / 2**20
    return {
        "seconds": statistics.median(times),
        "keys_mib": keys_mib,
        "peak_added_mib": added,
        "peak / keys": (keys_mib + added) / keys_mib,
        "selected": sorted(selected.flatten().tolist()),
    }


def main() -> None:
    """Measure each method in a fresh process and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=65536)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure(args.method, args.chunks, getattr(torch, args.dtype), args.repeats)))
        return
    options = ["--chunks", str(args.chunks), "--dtype", args.dtype, "--repeats", str(args.repeats)]
    result: dict[str, Any] = {
        "shapes": f"{KV_HEADS} kv heads x {GROUP} x {HEAD_DIM}, {TOKENS} tokens, {args.chunks} chunks, {args.dtype}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
    }
    for method in METHODS:
        command = [sys.executable, __file__, "--method", method, *options]
        result[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    exact = set(result["msa"]["selected"])
    for method in METHODS:
        result[method]["selected as msa"] = len(exact & set(result[method].pop("selected")))
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
