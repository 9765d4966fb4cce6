"""Encoding from text to committed segment, beside the backbone's bare forward over the same tokens, in one run.

    python benchmarks/encoding.py [--model msa-tiny] [--documents 2000] [--seed encoding] [--repeats 3] [--dtype auto]
        [--batch-tokens N] [--clock wall] [--out benchmarks/results/FILE.json]

Documents are made-up ones (msa.training.data.needles: 5 to about 350 tokens). In tokens/s, the same tokens each time:

* ``bare_forward``: all layers of our network over length-bucketed batches padded beforehand; no logits, nothing kept;
* ``transformers_forward``: the same with transformers' own model and these weights (Llama-family backbones only);
* ``encoder``: token ids → latents of all documents (``encode_in_batches``), in these batches;
* ``add``: ``Memory.add`` into a new folder: text in, committed segment out, tokenising, indexes and syncs included;
* ``naive``: the plain ``encode_documents`` over batches of the same token budget in document order, not by length.

Rounds alternate between them and every ratio is the median over the rounds, so that a noisy machine disturbs all alike.
``--clock cpu`` counts the process's CPU seconds instead, for a machine that others use (with OMP_NUM_THREADS=1): it
leaves out waiting for the disk. ``padding`` is padded over real tokens. The default model is slow on a CPU: give it
``--documents 120``.

glibc hands freed memory back to the system and faults it in again whenever the heap happens to shrink, which moves
single rounds; ``MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=67108864`` (both) makes them alike. The report
says what was set.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from storing import made_by, show_and_store

import msa
from msa.bench.encoding import Works, made_up_documents, padding, ratios
from msa.bench.timing import alternated
from msa.encoding.encoder import BATCH_TOKENS
from msa.training.data.words import needle_words

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="msa-tiny")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--seed", default="encoding")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="of all but add, which takes its own")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = msa.load(args.model, dtype=args.dtype)
    documents = made_up_documents(args.documents, args.seed, needle_words(held_out=True))
    works = Works(model, documents, args.batch_tokens)
    warm = Works(model, documents[:40], args.batch_tokens)
    with torch.inference_mode():
        alternated(warm.by_name(), 1, CLOCKS[args.clock])
        times = alternated(works.by_name(), args.repeats, CLOCKS[args.clock])
    tokens = sum(works.lengths)
    result = {
        "what": f"tokens/s from text to committed segment, medians of {args.repeats} rounds, by {args.clock} clock",
        "model": repr(model),
        "machine": (
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{torch.cuda.get_device_name() if model.device.type == 'cuda' else 'no GPU'}, torch {torch.__version__}"
        ),
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        **made_by(),
        "documents": len(documents),
        "tokens": tokens,
        "longest_tokens": max(works.lengths),
        "batch_tokens": args.batch_tokens,
        "padding": {
            "bucketed": padding(works.bucketed, works.lengths),
            "in_order": padding(works.in_order, works.lengths),
        },
        "tokens_per_s": {name: tokens / statistics.median(values) for name, values in times.items()},
        "ratios": ratios(times),
    }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
