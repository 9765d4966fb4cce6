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
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from encode_decode import transformers_twin
from torch import Tensor

import msa
from msa.documents.batching import pad_right
from msa.encoding.encoder import BATCH_TOKENS, batches_of, encode_in_batches
from msa.model.attention import MemorySparseAttention
from msa.ops.attend_memory import attend_causal
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class BareReader:
    """Causal attention of each document over itself; keeps nothing."""

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`."""
        return attend_causal(q, k, v)


def made_up_documents(count: int, seed: str) -> list[dict[str, str]]:
    """Held-out sentences around needles, as ``Memory.add`` takes them."""
    worlds = NeedleWorlds(*needle_words(held_out=True), haystack_sentences(held_out=True))
    world = worlds.world(NeedleConfig(documents=count, questions=0, max_filler=80), seed, set())
    return [{"id": name, "text": text} for name, text in world.corpus.items()]


def batches_in_order(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Neighbours grouped in document order, each group at most ``batch_tokens`` tokens once padded."""
    groups: list[list[int]] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def padding(groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Tokens once padded over real tokens."""
    return sum(len(group) * max(lengths[i] for i in group) for group in groups) / sum(lengths)


class Works:
    """What is measured, each over the same documents."""

    def __init__(self, model: msa.MSAModel, documents: Sequence[dict[str, str]], batch_tokens: int) -> None:
        self.model, self.documents, self.batch_tokens = model, documents, batch_tokens
        numbered = enumerate(documents, start=1)
        self.sequences = [model.protocol.document_ids(number, document["text"]) for number, document in numbered]
        self.lengths = [len(ids) for ids in self.sequences]
        self.bucketed = batches_of(self.lengths, batch_tokens, model.device)
        self.in_order = batches_in_order(self.lengths, batch_tokens)
        self._batches = [pad_right([self.sequences[i] for i in group], model.device) for group in self.bucketed]
        self._naive = [pad_right([self.sequences[i] for i in group], model.device) for group in self.in_order]
        config = model.lm.config
        self._twin = None
        if config.backbone == "llama" and not config.attention_bias and not config.mlp_bias:
            self._twin = transformers_twin(model)

    def by_name(self) -> dict[str, Callable[[], Any]]:
        """Name → what to time."""
        works: dict[str, Callable[[], Any]] = {"bare_forward": self.bare_forward}
        if self._twin is not None:
            works["transformers_forward"] = self.transformers_forward
        return {**works, "encoder": self.encoder, "add": self.add, "naive": self.naive}

    def bare_forward(self) -> None:
        """(a) Every layer of the backbone."""
        for ids, _ in self._batches:
            self.model.lm.model(ids, torch.arange(ids.shape[1], device=ids.device)[None], BareReader())

    def transformers_forward(self) -> None:
        """(a) Every layer of transformers' model with these weights."""
        assert self._twin is not None
        for ids, _ in self._batches:
            self._twin.model(ids, use_cache=False)

    def encoder(self) -> None:
        """(b) Token ids to latents."""
        encode_in_batches(self.model.lm, self.sequences, batch_tokens=self.batch_tokens)

    def add(self) -> None:
        """(c) Texts to a committed memory."""
        with (
            tempfile.TemporaryDirectory() as folder,
            msa.Memory.open(Path(folder) / "memory", model=self.model) as memory,
        ):
            memory.add(self.documents)
            if len(memory) != len(self.documents):
                raise RuntimeError(f"{len(memory)} of {len(self.documents)} documents were stored")

    def naive(self) -> None:
        """(d) Batches in document order."""
        for ids, lengths in self._naive:
            self.model.lm.encode_documents(ids, lengths)


@torch.inference_mode()
def measure(works: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each work in each round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(clock() - started)
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Speed of one work over that of another, medians over the rounds."""

    def faster(name: str, reference: str) -> float:
        pairs = zip(times[reference], times[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    references = [name for name in ("bare_forward", "transformers_forward") if name in times]
    pairs = [(name, reference) for name in ("encoder", "add") for reference in references]
    found = {f"{name} / {reference}": faster(name, reference) for name, reference in pairs}
    return {**found, "encoder / naive": faster("encoder", "naive"), "add / naive": faster("add", "naive")}


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
    documents = made_up_documents(args.documents, args.seed)
    works = Works(model, documents, args.batch_tokens)
    warm = Works(model, documents[:40], args.batch_tokens)
    measure(warm.by_name(), 1, CLOCKS[args.clock])
    times = measure(works.by_name(), args.repeats, CLOCKS[args.clock])
    tokens = sum(works.lengths)
    result = {
        "what": f"tokens/s from text to committed segment, medians of {args.repeats} rounds, by {args.clock} clock",
        "command": " ".join(["python", *sys.argv]),
        "model": repr(model),
        "machine": (
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{torch.cuda.get_device_name() if model.device.type == 'cuda' else 'no GPU'}, torch {torch.__version__}"
        ),
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "date": date.today().isoformat(),
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
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
