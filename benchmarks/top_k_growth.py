"""What more selected documents cost: prefill and decoding of one question, as the number selected per layer grows.

    python benchmarks/top_k_growth.py [--model NAME] [--top-k 1 2 4 8 16 32 64] [--out benchmarks/results/FILE.json]

Real documents (examples/packages.jsonl) in a memory on disk; one question, through all router layers, which each attend
to the documents they select. Rounds alternate between all numbers, so that a noisy machine disturbs all; medians.
Columns are what a router layer's tokens attend to before themselves: prefix and the chunks of selected documents.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from storing import show_and_store

import msa
from msa.bench.timing import alternated
from msa.documents.readers import read_documents
from msa.evaluation.environment import environment
from msa.routing import BankView

CORPUS = Path(__file__).parent.parent / "examples" / "packages.jsonl"
QUESTION = "Which package shows what changed between two versions of a file, line by line, in colour?"
TOKENS = 16


class Question:
    """A question over one memory.

    Attributes:
        columns: that each router layer attended to the last time, by the mean over layers.
    """

    def __init__(self, model: msa.MSAModel, view: BankView) -> None:
        turn = model.protocol.question_turn(QUESTION)
        self._model, self._view = model, view
        self._ids, self._routes = torch.tensor([turn.ids]), torch.tensor([turn.marked])
        self.columns = 0.0

    @torch.inference_mode()
    def prefill(self, top_k: int) -> Any:
        """Route, fetch, attend; returns the cache."""
        lm = self._model.lm
        out = lm(
            self._ids.to(lm.device),
            routing_mask=self._routes.to(lm.device),
            memory=self._view,
            prefix=self._model.prefix,
            top_k=top_k,
            use_cache=True,
            logits_to_keep=1,
        )
        self.columns = statistics.mean(out.cache.layers[layer].num_context for layer in lm.config.router_layers)
        return out.cache

    @torch.inference_mode()
    def decode(self, cache: Any) -> None:
        """A few tokens more."""
        lm = self._model.lm
        for _ in range(TOKENS):
            lm(torch.zeros(1, 1, dtype=torch.int64, device=lm.device), cache=cache, logits_to_keep=1)


def measure(memory: msa.Memory, view: BankView, numbers: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row for each number of selected documents."""
    question, read, columns, fetched = Question(memory.model, view), memory.bank.fetched, {}, {}
    for top_k in numbers:
        before = read.total
        question.prefill(top_k)
        columns[top_k], fetched[top_k] = question.columns, read.total - before
    prefills = alternated({str(k): lambda k=k: question.prefill(k) for k in numbers}, repeats)
    decodes: dict[str, list[float]] = {str(k): [] for k in numbers}
    for _ in range(repeats):
        for top_k in numbers:
            cache = question.prefill(top_k)
            decodes[str(top_k)] += alternated({"": lambda cache=cache: question.decode(cache)}, 1)[""]
    return [
        {
            "top_k": top_k,
            "columns": columns[top_k],
            "fetched_bytes": fetched[top_k],
            "prefill_seconds": statistics.median(prefills[str(top_k)]),
            "token_seconds": statistics.median(decodes[str(top_k)]) / TOKENS,
        }
        for top_k in numbers
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = msa.load(args.model)
    with tempfile.TemporaryDirectory() as folder, msa.Memory.open(Path(folder) / "memory", model) as memory:
        memory.add(read_documents([CORPUS]))
        view = BankView(memory.bank, model.device)
        rows = measure(memory, view, sorted(args.top_k), args.repeats)
        documents, chunks = view.num_documents, int(view.chunk_offsets[-1])
    result = {
        "what": "one question, seconds by documents selected per router layer; medians",
        "model": repr(model),
        "environment": environment(model.device.type),
        "documents": documents,
        "chunks": chunks,
        "rows": rows,
    }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
