"""A memory of real texts, grown to several sizes through ``Memory.add``, and questions over it at each size.

    python benchmarks/gpu_memory.py --folder F --texts DIR… --tokens 1000000 10000000 50000000 100000000
        [--seconds 200] [--corpus FILE.jsonl --questions FILE.jsonl] [--model smollm2-135m] [--document-tokens 512]
        [--suffixes .py .md …] [--tiers exact int8] [--out FILE.json]

Every readable text under the folders is cut into documents of about as many characters as the tokens asked for have,
three each (code has about that many); a text that is there twice counts once. Adding ends at the largest size, when the
texts are used up, or so many seconds after it began, what was measured meanwhile included; ``ended`` says which, and
what the memory holds by then is measured as the last size. At each size:

* ``adding``: seconds of ``Memory.add`` since the size before, and of its parts. On a GPU these run side by side, so
  they add up to more: ``plan`` (what is new, numbers), ``tokenise`` (ahead), ``encode``, ``commit`` (copies from the
  GPU included).
* ``tiers``: for each form of routing keys the seconds to open a view, ``Memory.search`` (median of the questions, after
  one that does not count), and as ``floor`` the time that reading the keys once takes at the measured bandwidth.
* ``ask``: routed answers to ten questions: time to the first text, and in total.
* ``questions``: of held-out ``--questions`` (:mod:`real_questions`), how many find their document. A third of the
  corpus is added first of all, a third after the last but one size (half of 100M tokens, say) and a third last, texts
  between them; questions of the last two thirds are asked at the last size alone.
* ``found``: of 20 questions, which are twelve words in a row from the middle of a document of the first size, how many
  find that document ``first`` and among 16, and how many find these words there (``words_first``, ``words_in_16``: the
  same words can stand in several documents). Exact words quoted, no more: it says that routing reaches every part of
  the memory. By the third of the memory that the document lies in; at the last size also 20 documents of each third
  of the whole.

``encoding`` says how fast the model reads the first documents: ``bare`` is its layers as far as documents need them,
over batches padded beforehand, nothing kept; ``encoder`` the same to latents. ``--out`` is written after each size.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reading_speeds import bandwidth, encoding_speeds
from real_questions import PLACES, PlacedQuestions, found_at, read_placed
from real_texts import SUFFIXES, by_thirds, read_texts
from storing import show_and_store

import msa
from msa import zoo
from msa.errors import MemoryBudgetError
from msa.evaluation.environment import version_stamp
from msa.routing.tiers import ROUTING_KEYS, Tiers

CHARACTERS_PER_TOKEN = 3
QUESTIONS, ASKED, TOP_K, NEW_TOKENS = 20, 10, 16, 48
PARTS = {"plan": "_plan", "tokenise": "_tokenise", "encode": "_encode", "commit": "_commit"}
MOST_CHARACTERS_PER_TOKEN = 6  # so many are read for each token of the largest size


@dataclass
class Growth:
    """A memory being filled with documents in their order.

    Attributes:
        memory: open for writing.
        documents: all there are.
        deadline: by ``time.perf_counter``; nothing is read after it.
        added: so many are in.
        seconds: of adding; parts: of what it consists of, by name.
    """

    memory: msa.Memory
    documents: list[dict[str, str]]
    deadline: float
    added: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        writer = self.memory._writer
        for name, method in PARTS.items():
            setattr(writer, method, self._watched(name, getattr(writer, method)))

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.parts[name] += time.perf_counter() - started

        return watched

    def put(self, documents: Sequence[dict[str, str]]) -> None:
        """Add these beside the texts."""
        started = time.perf_counter()
        self.memory.add(documents)
        self.seconds += time.perf_counter() - started

    def grow(self, tokens: int) -> str:
        """Add until the memory holds about so many; what ended it: ``size``, ``texts`` or ``time``."""
        protocol = self.memory.model.protocol
        few = [each["text"] for each in self.documents[self.added : self.added + 200]]
        characters = sum(map(len, few)) / max(1, sum(map(len, protocol.document_ids_many(range(len(few)), few))))
        have = self.memory.stats()["tokens"]
        while have < 0.99 * tokens:
            if self.added == len(self.documents):
                return "texts"
            if time.perf_counter() >= self.deadline:
                return "time"
            first = self.added
            started = time.perf_counter()
            self.memory.add(self._next((tokens - have) * characters))
            self.seconds += time.perf_counter() - started
            before, have = have, self.memory.stats()["tokens"]
            length = sum(len(each["text"]) for each in self.documents[first : self.added])
            characters = length / max(1, have - before)
        return "size"

    def _next(self, characters: float) -> Iterator[dict[str, str]]:
        while characters > 0 and self.added < len(self.documents) and time.perf_counter() < self.deadline:
            document = self.documents[self.added]
            self.added += 1
            characters -= len(document["text"])
            yield document


def found_of(memory: msa.Memory, questions: dict[str, list[dict[str, str]]]) -> tuple[dict[str, Any], list[float]]:
    """How many questions of each third are found, and the milliseconds of each search."""
    counts: dict[str, Any] = {}
    milliseconds = []
    for third, own in questions.items():
        counts[third] = {"questions": len(own), "first": 0, "in_16": 0, "words_first": 0, "words_in_16": 0}
        for question in own:
            started = time.perf_counter()
            hits = memory.search(question["words"], TOP_K)
            milliseconds.append(1000 * (time.perf_counter() - started))
            ids = [hit.id == question["id"] for hit in hits]
            words = [question["words"] in " ".join(hit.text.split()) for hit in hits]
            for name, those in (("first", ids[:1]), ("in_16", ids), ("words_first", words[:1]), ("words_in_16", words)):
                counts[third][name] += any(those)
    return counts, milliseconds


def ask(memory: msa.Memory, questions: Sequence[str]) -> dict[str, Any]:
    """Medians over routed answers, after one that does not count."""
    firsts, totals, tokens = [], [], []
    for question in (questions[0], *questions):
        started, first = time.perf_counter(), None
        for event in memory.stream(question, retrieval="routed", max_new_tokens=NEW_TOKENS):
            if first is None and isinstance(event, msa.TextPiece):
                first = time.perf_counter() - started
            if isinstance(event, msa.Done):
                tokens.append(event.answer.usage.completion_tokens)
        totals.append(time.perf_counter() - started)
        firsts.append(totals[-1] if first is None else first)
    return {
        "questions": len(questions),
        "first_text_seconds": statistics.median(firsts[1:]),
        "total_seconds": statistics.median(totals[1:]),
        "generated_tokens": statistics.median(tokens[1:]),
    }


@dataclass
class Asked:
    """What is asked at a size: quoted words by third, held-out questions by place, and so many of these answered."""

    quoted: dict[str, list[dict[str, str]]]
    held_out: dict[str, list[dict[str, Any]]]
    answered: int


def measure_tier(folder: Path, model: msa.MSAModel, tier: str, asked: Asked, speed: float) -> dict[str, Any]:
    """By name what is measured of a tier; its ``tiers`` figures alone where its keys do not fit."""
    tiers, questions = Tiers(routing_keys=tier), asked.quoted
    with msa.Memory.open(folder, model, read_only=True, tiers=tiers) as memory:
        started = time.perf_counter()
        try:
            memory._current_engine()
        except MemoryBudgetError as error:
            return {"tiers": {"refused": str(error)}}
        view = time.perf_counter() - started
        words = [each["words"] for own in questions.values() for each in own]
        memory.search(words[0], TOP_K)
        found, milliseconds = found_of(memory, questions)
        stats = memory.stats()
        key_bytes = tiers.needed_bytes(memory.bank.spec, stats["chunks"])[0]
        figures = {
            "view_seconds": view,
            "routing_key_bytes": key_bytes,
            "search_milliseconds": statistics.median(milliseconds),
            "slowest_milliseconds": max(milliseconds),
            "floor_milliseconds": 1000 * key_bytes / speed,
        }
        return {
            "tiers": figures,
            "found": found,
            "ask": ask(memory, words[:ASKED]),
            "questions": found_at(memory, asked.held_out, asked.answered),
        }


def free() -> None:
    """Let go of what a closed memory had on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gpu_peak() -> int | None:
    """Most bytes that tensors took on the GPU since the last call; None: there is none."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def command() -> str:
    """What was called, paths by their last name."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/gpu_memory.py", *words])


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
    }


def size_of(growth: Growth, before: dict[str, Any], ended: str) -> dict[str, Any]:
    """What the memory holds and what adding has taken since the size before."""
    stats = growth.memory.stats()
    seconds = growth.seconds - before.get("seconds", 0.0)
    tokens = stats["tokens"] - before.get("tokens", 0)
    parts = {name: growth.parts[name] - before.get("parts", {}).get(name, 0.0) for name in PARTS}
    return {
        "ended": ended,
        **{name: stats[name] for name in ("tokens", "documents", "chunks", "segments", "bytes_on_disk")},
        "adding": {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds if seconds else None,
            "part_seconds": parts,
            "gpu_peak_bytes": gpu_peak(),
        },
        "adding_in_all": {"seconds": growth.seconds, "tokens_per_s": stats["tokens"] / growth.seconds},
    }


def measure(size: dict[str, Any], args: argparse.Namespace, model: msa.MSAModel, asked: Asked, speed: float) -> None:
    """Add to a size what searching and asking take and find, by tier."""
    for tier in args.tiers:
        for name, part in measure_tier(args.folder, model, tier, asked, speed).items():
            size.setdefault(name, {})[tier] = part
        free()
    size["asking_gpu_peak_bytes"] = gpu_peak()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the memory; must not exist yet")
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--corpus", type=Path, help='of the questions: lines of {"id", "text"}')
    parser.add_argument("--questions", type=Path, help='lines of {"query", "positives", "answer", "source"}')
    parser.add_argument("--answered", type=int, default=100, help="questions of each place that are also answered")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--seconds", type=float, default=200, help="nothing more is added so long after the beginning")
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL)
    parser.add_argument("--document-tokens", type=int, default=512)
    parser.add_argument("--suffixes", nargs="+", default=[*SUFFIXES])
    parser.add_argument("--tiers", nargs="+", choices=ROUTING_KEYS, default=["exact", "int8"])
    parser.add_argument("--switch-interval", type=float, help="seconds a thread may keep others from Python (its own)")
    parser.add_argument("--keep", action="store_true", help="leave the memory's folder there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (args.corpus is None) != (args.questions is None):
        parser.error("--corpus and --questions belong together")
    return args


def main() -> None:
    """Read, grow, measure, report."""
    args = parsed()
    if args.folder.exists():
        raise SystemExit(f"{args.folder} is there already: name a folder that is not, so that all of it is added now")
    if args.switch_interval:
        sys.setswitchinterval(args.switch_interval)
    started = time.perf_counter()
    most = max(args.tokens) * MOST_CHARACTERS_PER_TOKEN
    texts = read_texts(args.texts, args.suffixes, args.document_tokens * CHARACTERS_PER_TOKEN, most)
    read, model = time.perf_counter(), msa.load(args.model)
    result: dict[str, Any] = {
        "what": "a memory of real texts through Memory.add, and questions over it; exact words quoted, no more",
        "command": command(),
        "model": repr(model),
        "machine": machine(model.device),
        **version_stamp(),
        "texts": {"files": texts.files, "MB": texts.characters / 1e6, "documents": len(texts.documents)},
        "read_seconds": read - started,
        "load_seconds": time.perf_counter() - read,
        "encoding": encoding_speeds(model, texts.documents),
        "device_bytes_per_s": (speed := bandwidth(model.device)),
        "sizes": [],
    }
    free()
    gpu_peak()
    try:
        with msa.Memory.open(args.folder, model) as memory:
            growth = Growth(memory, texts.documents, time.perf_counter() + args.seconds)
            grow_and_measure(growth, args, model, speed, result)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)
    show_and_store(result, args.out)


def grow_and_measure(
    growth: Growth, args: argparse.Namespace, model: msa.MSAModel, speed: float, result: dict[str, Any]
) -> None:
    """Fill ``result`` size by size, and write it after each."""
    placed = read_placed(args.corpus, args.questions) if args.questions else PlacedQuestions({}, {})
    asked, before = Asked({}, {}, args.answered), {}
    sizes = sorted(args.tokens)
    for tokens in sizes:
        last = tokens == sizes[-1]
        for place in [*PLACES[: tokens == sizes[0]], *PLACES[1 : 1 + last]]:
            growth.put(placed.documents.get(place, []))
        ended = growth.grow(tokens)
        if last:
            growth.put(placed.documents.get(PLACES[-1], []))
        if growth.memory.stats()["tokens"] == before.get("tokens", 0):  # nothing is left to add, or no time
            break
        if not growth.added:
            raise SystemExit(f"{tokens:,} tokens hold no texts beside the corpus; begin with a larger size")
        size = {"asked_for": tokens, **size_of(growth, before, ended)}
        before = {"seconds": growth.seconds, "tokens": size["tokens"], "parts": dict(growth.parts)}
        result["sizes"].append(size)
        store(result, args.out)  # a run that is cut off while it measures has this
        asked.quoted = asked.quoted or by_thirds(growth.documents, growth.added, QUESTIONS)
        asked.held_out = placed.questions if last else {place: placed.questions.get(place, []) for place in PLACES[:1]}
        measure(size, args, model, asked, speed)
        store(result, args.out)
        if ended != "size":
            break
    if not result["sizes"]:
        return
    everywhere = by_thirds(growth.documents, growth.added, 3 * QUESTIONS)
    with msa.Memory.open(args.folder, model, read_only=True, tiers=Tiers(routing_keys=args.tiers[-1])) as memory:
        result["found_everywhere"] = {"routing_keys": args.tiers[-1], **found_of(memory, everywhere)[0]}


def store(result: dict[str, Any], out: Path | None) -> None:
    """What there is so far."""
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
