"""Encoding and decoding speed of the default model beside transformers' own model with the same weights, in one run.

    python benchmarks/encode_decode.py [--model NAME] [--dtype auto] [--repeats 5] [--out benchmarks/results/FILE.json]

Encoding: length-bucketed batches of real documents, tokens/s of stage 1 (text latents kept) against the bare forward of
transformers, without and with its logits. Decoding: one row, greedy, tokens/s after the prefill, against ``generate``.
Rounds alternate between the two, so that a noisy machine disturbs both; medians are reported.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from storing import made_by, show_and_store

import msa
from msa.bench.answering import decoding_rounds
from msa.bench.timing import alternated
from msa.bench.twin import transformers_twin
from msa.documents.batching import length_buckets, pad_right
from msa.documents.readers import read_documents
from msa.encoding.encoder import BATCH_TOKENS, encode_in_batches

CORPUS = Path(__file__).parent.parent / "examples" / "packages.jsonl"


@torch.inference_mode()
def encoding(model: msa.MSAModel, twin: Any, repeats: int, num_documents: int) -> dict[str, float]:
    """Median tokens/s over the same batches."""
    texts = [document.text for document in read_documents([CORPUS])][:num_documents]
    documents = [model.protocol.document_ids(number, text) for number, text in enumerate(texts, start=1)]
    total = sum(len(ids) for ids in documents)
    buckets = length_buckets([len(ids) for ids in documents], BATCH_TOKENS)
    batches = [pad_right([documents[i] for i in bucket], model.device)[0] for bucket in buckets]
    works: dict[str, Callable[[], Any]] = {
        "msa_encode": lambda: encode_in_batches(model.lm, documents),
        "transformers_forward_without_logits": lambda: [twin.model(ids, use_cache=False) for ids in batches],
        "transformers_forward": lambda: [twin(ids, use_cache=False) for ids in batches],
    }
    times = alternated(works, repeats)
    return {name: total / statistics.median(values) for name, values in times.items()}


def decoding(model: msa.MSAModel, twin: Any, repeats: int) -> dict[str, float]:
    """Median tokens/s of greedy decoding after a prompt of 128 tokens."""
    rounds = decoding_rounds(model, twin, repeats)
    names = {"msa_decode": "decode", "transformers_generate": "transformers decode"}
    return {shown: 1 / statistics.median(rounds[name]) for shown, name in names.items()}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, default=120)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = msa.load(args.model, dtype=args.dtype)
    twin = transformers_twin(model)
    if twin is None:
        parser.error(f"transformers has no model with the weights of {model.name} to compare with")
    result: dict[str, Any] = {
        "what": "tokens/s, medians",
        "model": repr(model),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **made_by(),
        "encoding": encoding(model, twin, args.repeats, args.documents),
        "decoding": decoding(model, twin, args.repeats),
    }
    enc, dec = result["encoding"], result["decoding"]
    result["ratios"] = {
        "encode / forward": enc["msa_encode"] / enc["transformers_forward"],
        "encode / forward without logits": enc["msa_encode"] / enc["transformers_forward_without_logits"],
        "decode / generate": dec["msa_decode"] / dec["transformers_generate"],
    }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
