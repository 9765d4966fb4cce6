"""Tokens/s and questions/s of many questions answered side by side, against one after the other, in one run.

    python benchmarks/serving_throughput.py [--model msa-tiny] [--concurrent 1 4 16 64] [--questions 64]
        [--max-new-tokens 32] [--dtype auto] [--repeats 3] [--out benchmarks/results/FILE.json]

The questions ask for needles in a memory of needles. They go through the engine's batcher, as in ``msa serve``, without
HTTP: as many as are concurrent are there at once, the next begins when one ends. One at a time is the engine's own loop
without a batcher. Rounds alternate between all of them, so that a noisy machine disturbs all; medians are reported.

Beside that, what batching can gain at most: the time of one pass over so many rows, of a context as long as the
questions', without drawing, prefill and retrieval.

How many texts equal those alone is reported too: in bfloat16 a sum in another order may decide between two tokens that
are as good as equal. In float32 (``--dtype float32``) all should.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from storing import show_and_store

import msa
from msa.bench.answering import needle_documents, needle_questions, question_rounds
from msa.engine import Batcher, Engine
from msa.evaluation.environment import environment
from msa.generation.decoding import Decoding, Prompt
from msa.generation.options import AskOptions
from msa.routing import BankView

_PASSES = 16


def throughput(engine: Engine, asked: list[str], options: AskOptions, concurrent: list[int], repeats: int) -> Any:
    """Medians of questions/s and tokens/s, of how many questions a pass was, and how many texts equal those alone."""
    seconds, found = question_rounds(engine, asked, options, concurrent, repeats)
    rows = {}
    for name, (answers, served) in found.items():
        median = statistics.median(seconds[name])
        tokens = sum(answer.usage.completion_tokens for answer in answers)
        rows[name] = {
            "questions/s": len(asked) / median,
            "tokens/s": tokens / median,
            "questions a pass": statistics.fmean(served),
            "most a pass": max(served),
            "texts as alone": sum(a.text == b.text for a, b in zip(answers, found["one at a time"][0], strict=True)),
        }
    first = rows["one at a time"]
    for row in rows.values():
        row["times one at a time"] = row["questions/s"] / first["questions/s"]
    return rows


def passes(model: msa.MSAModel, context: int, concurrent: list[int], repeats: int) -> Any:
    """Median seconds of one pass over so many rows, and tokens/s."""
    result = {}
    for rows in concurrent:
        decodings = [
            Decoding(model.lm, [Prompt(ids=[5 + row] * (context - row), max_new_tokens=10**6)]) for row in range(rows)
        ]
        batcher, times = Batcher(model.lm, rows), []
        for decoding in decodings:
            decoding.tokens = [7]
        batcher.advance(decodings)  # they join
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(_PASSES):
                batcher.advance(decodings)
            times.append((time.perf_counter() - started) / _PASSES)
        median = statistics.median(times)
        result[f"{rows} rows"] = {"seconds": median, "tokens/s": rows / median}
    return result


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="msa-tiny")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=128, help="tokens before the passes that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.context <= max(args.concurrent):
        parser.error(f"--context must be above {max(args.concurrent)}, so that every row has another length")
    model = msa.load(args.model, device=args.device, dtype=args.dtype)
    asked = needle_questions(args.questions, args.documents)
    options = AskOptions(max_new_tokens=args.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder, msa.Memory.open(Path(folder) / "memory", model) as memory:
        memory.add(needle_documents(args.documents))
        engine = Engine(model, BankView(memory.bank, model.device))
        result = {
            "what": "questions answered side by side in one thread; medians",
            "model": repr(model),
            "environment": environment(model.device.type),
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "throughput": throughput(engine, asked, options, args.concurrent, args.repeats),
            "passes": passes(model, args.context, args.concurrent, args.repeats),
        }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
