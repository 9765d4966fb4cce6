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
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from storing import made_by, show_and_store
from torch import Tensor

from msa.bench.routing import SHAPES, TOP_K, draw_keys, draw_query, offsets_of
from msa.bench.timing import peak_mib, reset_peak, timed
from msa.ops import RoutingSpec, route

SHAPE, TOKENS, CHUNKS_PER_DOC = SHAPES["published"], 32, 2
METHODS = ("msa", "folded", "head by head")


def scorer(method: str, query: Tensor, keys: Tensor, offsets: Tensor) -> Callable[[], Any]:
    """A call that selects the best documents."""
    if method == "msa":
        mask = torch.ones(1, TOKENS, dtype=torch.bool)
        return lambda: route(query, mask, keys, offsets, RoutingSpec(similarity=SHAPE.similarity), TOP_K).doc_indices

    def plain() -> Tensor:
        q = query[0].transpose(0, 1)  # [Hq, T, D]
        if method == "folded":
            rows = q.reshape(SHAPE.kv_heads, SHAPE.group * TOKENS, SHAPE.head_dim).to(keys.dtype)
            scores = (rows @ keys.permute(1, 2, 0)).view(SHAPE.kv_heads * SHAPE.group, TOKENS, -1)
        else:
            heads = [q[h].to(keys.dtype) @ keys[:, h // SHAPE.group].T for h in range(SHAPE.kv_heads * SHAPE.group)]
            scores = torch.stack(heads)
        chunk_scores = scores.mean(0).amax(0).float()
        return chunk_scores.view(-1, CHUNKS_PER_DOC).amax(1).topk(TOP_K).indices

    return plain


def measure(method: str, num_chunks: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One method in this process."""
    keys, query = draw_keys(num_chunks, SHAPE).to(dtype), draw_query(TOKENS, SHAPE).to(dtype)
    offsets = offsets_of(num_chunks, CHUNKS_PER_DOC)
    work = scorer(method, query, keys, offsets)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the library's own buffers
    before = reset_peak()
    selected = work()
    added = peak_mib() - before
    keys_mib = keys.numel() * keys.element_size() / 2**20
    return {
        "seconds": timed(work, repeats)["median"],
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
        "shapes": f"{SHAPE}, {TOKENS} tokens, {args.chunks} chunks, {args.dtype}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **made_by(),
    }
    for method in METHODS:
        command = [sys.executable, __file__, "--method", method, *options]
        result[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    exact = set(result["msa"]["selected"])
    for method in METHODS:
        result[method]["selected as msa"] = len(exact & set(result[method].pop("selected")))
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
