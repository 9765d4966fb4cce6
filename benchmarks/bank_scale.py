"""A memory of up to 100M tokens in the default model's shape: opening, resident memory, routing and fetching per tier.

    python benchmarks/bank_scale.py --folder /tmp/scale --tokens 1000000 10000000 100000000 [--out results.json]
    python benchmarks/bank_scale.py --folder /tmp/scale --real-seconds 3600 [--texts FILE…] ...

The latents are SYNTHETIC (Gaussian, in the shape of SmolLM2-135M's upper 15 layers): the numbers say how fast and how
large a memory of that size is, and nothing of what it finds. With ``--real-seconds`` the memory begins with REAL ones,
of as many of the texts as the model encodes in that time; the results say how many tokens are of which kind. Each size
is grown from the one before, by commits. Every measurement runs in a process of its own, so that its resident memory is
its own. 100M tokens take 32 GB of disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from storing import made_by

import msa
from msa import zoo
from msa.bank import BankSpec, Latents, MemoryBank, Part, StoredDocument
from msa.documents import Document
from msa.documents.readers import read_documents
from msa.ops import RoutingSpec
from msa.ops.route import quantize_keys
from msa.routing import BankView
from msa.routing.segment_latents import similarity_of
from msa.routing.tiers import ROUTING_KEYS, Tiers

SPEC = BankSpec(
    layers=tuple(range(15, 30)),
    num_key_value_heads=3,
    head_dim=64,
    chunk_size=64,
    dtype="bfloat16",
    model_name="synthetic",
    int8=True,
)
QUERY_HEADS_PER_KEY, QUESTION_TOKENS, TOP_K = 3, 12, 16
CHUNKS_PER_DOCUMENT = 8
COMMIT_CHUNKS = 80_000
REAL = {"latents": "real"}  # metadata of the documents that a model encoded
REAL_DOCUMENTS = 16  # added between two looks at the clock
TEXTS = Path(__file__).parent.parent / "examples" / "packages.jsonl"
WORDS = [f"word{i}" for i in range(20_000)]


def encode_real(folder: Path, model: msa.MSAModel, texts: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Add texts until the time is up or all are in; what that took. Texts that are in already cost none of it."""
    started = time.perf_counter()
    with msa.Memory.open(folder, model) as memory:
        before = memory.stats()["tokens"]
        documents = labelled(texts)
        while time.perf_counter() - started < seconds and (few := [*itertools.islice(documents, REAL_DOCUMENTS)]):
            memory.add(few)
        return {
            "model": model.name,
            "texts": [file.name for file in texts],
            "limit_seconds": seconds,
            "seconds": time.perf_counter() - started,
            "encoded_tokens": memory.stats()["tokens"] - before,
        }


def labelled(texts: Sequence[Path]) -> Iterator[Document]:
    """The documents of some files, marked as real."""
    for document in read_documents([str(file) for file in texts]):
        yield Document(id=f"real {document.id}", text=document.text, metadata=document.metadata | REAL)


def kinds(bank: MemoryBank) -> dict[str, int]:
    """How many tokens of a memory are of which kind."""
    state = bank.state()
    real = np.isin(state.numbers, state.matching_numbers(REAL))
    tokens = state.part_tokens
    return {"real_tokens": int(tokens[real].sum()), "synthetic_tokens": int(tokens[~real].sum())}


def grow(folder: Path, tokens: int) -> float:
    """Commit synthetic documents until the memory holds ``tokens``; seconds it took."""
    started = time.perf_counter()
    with MemoryBank.open(folder) as bank:
        while (present := bank.stats()["chunks"]) < tokens // bank.spec.chunk_size:
            missing = tokens // bank.spec.chunk_size - present
            documents = -(-min(missing, COMMIT_CHUNKS) // CHUNKS_PER_DOCUMENT)
            bank.commit(**synthetic(bank.spec, bank.next_number, documents))
    return time.perf_counter() - started


def synthetic(spec: BankSpec, first: int, documents: int) -> dict[str, Any]:
    """Arguments of a commit of so many documents."""
    rng = random.Random(first)
    generator = torch.Generator().manual_seed(first)
    chunks = documents * CHUNKS_PER_DOCUMENT
    shape = (chunks, spec.num_key_value_heads, spec.head_dim)
    # one Gaussian block for all layers, each shifted by a row more: drawing one for each would take hours
    block = torch.randn((chunks + len(spec.layers), *shape[1:]), generator=generator).to(spec.torch_dtype)
    keys = {layer: block[i : i + chunks] for i, layer in enumerate(spec.layers)}
    eight = {layer: quantize_keys(tensor, similarity_of(spec)) for layer, tensor in keys.items() if spec.int8}
    put = []
    for number in range(first, first + documents):
        text = " ".join(rng.choices(WORDS, k=CHUNKS_PER_DOCUMENT * spec.chunk_size // 2))
        part = Part(
            number=number,
            start=0,
            end=len(text),
            num_tokens=CHUNKS_PER_DOCUMENT * spec.chunk_size,
            num_chunks=CHUNKS_PER_DOCUMENT,
        )
        put.append(StoredDocument(id=f"d{number}", text=text, metadata={}, content_hash="", parts=(part,)))
    latents = Latents(
        routing_keys=keys,
        keys=keys,
        values=keys,
        numbers=torch.arange(first, first + documents),
        chunk_offsets=torch.arange(documents + 1) * CHUNKS_PER_DOCUMENT,
        int8_routing_keys={layer: block.keys for layer, block in eight.items()},
        int8_scales={layer: block.scale for layer, block in eight.items()},
    )
    return {"put": put, "latents": latents}


def measure(folder: Path, routing_keys: str) -> dict[str, Any]:
    """Open, route questions through all layers, fetch the winners; runs in its own process."""
    before = resident_bytes()
    started = time.perf_counter()
    bank = MemoryBank.open(folder, read_only=True)
    opened = time.perf_counter()
    spec = bank.spec
    heads = QUERY_HEADS_PER_KEY * spec.num_key_value_heads
    view = BankView(bank, tiers=Tiers(routing_keys=routing_keys))
    ready = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(1, QUESTION_TOKENS, dtype=torch.bool)
    seconds, fetched, fetch_seconds = [], 0, []
    for _ in range(4):
        query = torch.randn(1, QUESTION_TOKENS, heads, spec.head_dim, generator=generator)
        route_s = fetch_s = 0.0
        for layer in spec.layers:
            begin = time.perf_counter()
            found = view.route(layer, query, mask, RoutingSpec(), TOP_K)
            middle = time.perf_counter()
            winners = view.fetch(layer, found.doc_indices)
            fetch_s += time.perf_counter() - middle
            route_s += middle - begin
            fetched += winners.keys.nbytes + winners.values.nbytes
        seconds.append(route_s)
        fetch_seconds.append(fetch_s)
    return {
        "routing_keys": routing_keys,
        "routing_key_bytes": Tiers(routing_keys=routing_keys).needed_bytes(spec, len_chunks(view))[0],
        "bank_open_seconds": opened - started,
        "view_seconds": ready - opened,
        "resident_bytes": resident_bytes() - before,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_question_seconds": seconds[0],
        "question_seconds": min(seconds[1:]),
        "fetch_seconds": min(fetch_seconds[1:]),
        "fetched_bytes": fetched // 4,
    }


def len_chunks(view: BankView) -> int:
    """Chunks of a view."""
    return int(view.chunk_offsets[-1])


def resident_bytes() -> int:
    """Resident memory of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def add_seconds(folder: Path, documents: int = 1000) -> float:
    """Seconds to commit ``documents`` more."""
    with MemoryBank.open(folder) as bank:
        arguments = synthetic(bank.spec, bank.next_number, documents)
        started = time.perf_counter()
        bank.commit(**arguments)
        return time.perf_counter() - started


def main() -> None:
    """Encode, grow, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--tiers", nargs="+", choices=ROUTING_KEYS, default=["int8", "half", "mapped"])
    parser.add_argument("--real-seconds", type=float, default=0, help="encode texts first, so long; 0: synthetic only")
    parser.add_argument("--model", default=None, help="encodes the texts, gives the shape (default: the default model)")
    parser.add_argument("--texts", type=Path, nargs="+", default=[TEXTS], help="files or folders of texts")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=ROUTING_KEYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.measure)))
        return
    real = None
    if args.real_seconds > 0:
        model = msa.load(args.model or zoo.DEFAULT_MODEL, dtype=SPEC.dtype)
        real = encode_real(args.folder, model, args.texts, args.real_seconds)
    elif not MemoryBank.exists(args.folder):
        MemoryBank.create(args.folder, fingerprint="synthetic", spec=SPEC).close()
    empty = args.folder.with_name(args.folder.name + "-empty")
    if not MemoryBank.exists(empty):
        with MemoryBank.open(args.folder, read_only=True) as bank:
            MemoryBank.create(empty, fingerprint=bank.fingerprint, spec=bank.spec).close()
    result: dict[str, Any] = {
        "what": "speed and size only: of each size, so many tokens have REAL latents of a model, the rest SYNTHETIC "
        "ones (Gaussian) in its shape",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **made_by(),
        "question_tokens": QUESTION_TOKENS,
        "top_k": TOP_K,
        "real_part": real,
        "add_1000_documents_to_an_empty_memory_seconds": [add_seconds(empty) for _ in range(3)],
        "sizes": [],
    }
    for tokens in sorted(args.tokens):
        size: dict[str, Any] = {"tokens": tokens, "grow_seconds": grow(args.folder, tokens), "tiers": []}
        with MemoryBank.open(args.folder, read_only=True) as bank:
            size |= kinds(bank)
            size |= {key: bank.stats()[key] for key in ("documents", "chunks", "segments", "bytes_on_disk")}
        for tier in args.tiers:
            command = [sys.executable, __file__, "--folder", str(args.folder), "--measure", tier]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            size["tiers"].append(json.loads(run.stdout))
            print(json.dumps(size["tiers"][-1]), flush=True)
        size["add_1000_documents_seconds"] = [add_seconds(args.folder) for _ in range(3)]
        result["sizes"].append(size)
        if args.out:
            args.out.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps({key: value for key, value in size.items() if key != "tiers"}), flush=True)


if __name__ == "__main__":
    main()
