"""Encoding and decoding speed of the default model beside transformers' own model with the same weights, in one run.

    python benchmarks/encode_decode.py [--model NAME] [--dtype auto] [--repeats 5] [--out benchmarks/results/FILE.json]

Encoding: length-bucketed batches of real documents, tokens/s of stage 1 (text latents kept) against the bare forward of
transformers, without and with its logits. Decoding: one row, greedy, tokens/s after the prefill, against ``generate``.
Rounds alternate between the two, so that a noisy machine disturbs both; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import msa
from msa.documents.batching import length_buckets, pad_right
from msa.documents.readers import read_documents
from msa.encoding.encoder import BATCH_TOKENS, encode_in_batches
from msa.generation.decoding import Decoding, Prompt

CORPUS = Path(__file__).parent.parent / "examples" / "packages.jsonl"


def transformers_twin(model: msa.MSAModel) -> Any:
    """transformers' Llama with our backbone's weights."""
    config = model.lm.config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_parameters")
    settings = {name: getattr(config, name) for name in names}
    twin = AutoModelForCausalLM.from_config(
        LlamaConfig(**settings, tie_word_embeddings=config.tie_word_embeddings), dtype=model.lm.dtype
    )
    weights = {name: tensor for name, tensor in model.lm.state_dict().items() if "router" not in name}
    twin.load_state_dict({name: tensor for name, tensor in weights.items() if name != "temperature"}, strict=False)
    twin.tie_weights()
    return twin.to(model.device).eval()


def seconds(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


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
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: total / statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def decoding(model: msa.MSAModel, twin: Any, repeats: int, num_tokens: int = 64) -> dict[str, float]:
    """Median tokens/s of greedy decoding after a prompt of 128 tokens."""
    prompt = torch.randint(100, 40000, (1, 128), generator=torch.Generator().manual_seed(0)).to(model.device)

    def ours() -> float:
        rows = Decoding(model.lm, [Prompt(ids=prompt[0].tolist(), max_new_tokens=num_tokens)]).run()
        next(rows)
        return (num_tokens - 1) / seconds(lambda: list(rows))

    def theirs() -> float:
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        first = seconds(lambda: twin.generate(prompt, max_new_tokens=1, **options))
        return (num_tokens - 1) / (seconds(lambda: twin.generate(prompt, max_new_tokens=num_tokens, **options)) - first)

    rates: dict[str, list[float]] = {"msa_decode": [], "transformers_generate": []}
    ours()
    theirs()
    for _ in range(repeats):
        rates["msa_decode"].append(ours())
        rates["transformers_generate"].append(theirs())
    return {name: statistics.median(values) for name, values in rates.items()}


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
    result: dict[str, Any] = {
        "what": "tokens/s, medians",
        "model": repr(model),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "encoding": encoding(model, twin, args.repeats, args.documents),
        "decoding": decoding(model, twin, args.repeats),
    }
    enc, dec = result["encoding"], result["decoding"]
    result["ratios"] = {
        "encode / forward": enc["msa_encode"] / enc["transformers_forward"],
        "encode / forward without logits": enc["msa_encode"] / enc["transformers_forward_without_logits"],
        "decode / generate": dec["msa_decode"] / dec["transformers_generate"],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
