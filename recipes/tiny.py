"""msa-tiny from scratch: the whole method in a few million weights, on two CPU cores.

    python recipes/tiny.py --out runs/tiny [--stop-after MINUTES] [--finding] [--ablation NAME] [--phases N]
        [--scale 1.0]

The finished model is ``<out>/model``; with ``--finding`` a further stretch goes on from it, to ``<out>/finding/model``.

Routes, writes ids of up to 7 digits, reads the injected text, hops, stops and answers, on held-out words, numbers,
uuids and sentences. Run it again to go on from the last checkpoint. ``--scale`` shortens every phase and ``--phases``
ends after so many, for comparisons from equal budgets; ``--ablation`` leaves one thing out.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import msa
from msa.training.config import Phase, TrainConfig
from msa.training.data.copies import CopyConfig
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.recalls import RecallConfig
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.objective import LossWeights
from msa.training.run import train
from msa.training.tiny import PROTOCOL, fresh_model

VOCABULARY = 2048
# the text around needles: free package descriptions and the package's own calibration text
HAYSTACK = tuple(
    str(Path(__file__).parent.parent / name)
    for name in ("examples/packages.jsonl", "src/msa/conversion/calibration.jsonl")
)
# uuids are five times as long as other keys
MIXED = ("word", "word", "word", "number", "number", "number", "uuid", "uuid")
LEARNING_RATE = 6e-3
SHORT_COPIES = CopyConfig(questions=8)
LONG_COPIES = CopyConfig(questions=8, tokens=80, quoted_tokens=60, max_span=36, few_tokens=0.5)
SHORT_RECALLS = RecallConfig(rows=6, questions=5, max_filler=20)
# RULER's documents are cut at 512 tokens
LONG_RECALLS = RecallConfig(rows=6, questions=5, max_filler=250, two_hop=0.2, unanswerable=0.2)
ABLATIONS = (
    "none",
    "random-routers",
    "no-copying-heads",
    "no-copy-rows",
    "no-recalls",
    "no-quotation",
    "no-curriculum",
    "no-routing-bias",
    "no-closing-id",
    "no-routing-loss",
    "chunks-of-16",
    "probe-from-the-start",
)


def phase(
    name: str,
    steps: int,
    *,
    digits: int,
    chunk: int,
    filler: int,
    documents: int = 24,
    questions: int = 30,
    keys: tuple[str, ...] = MIXED,
    values: tuple[str, ...] = MIXED,
    alike: float = 0.5,
    hops: float = 0.2,
    unanswerable: float = 0.1,
    second_tries: float = 0.1,
    misses: int = 2,
    copies: CopyConfig = SHORT_COPIES,
    recalls: RecallConfig = SHORT_RECALLS,
    final: float = 0.3,
    past: int = 0,
    probe: float = 0.0,
) -> Phase:
    """One stage of the curriculum."""
    needles = NeedleConfig(
        documents=documents,
        questions=questions,
        max_filler=filler,
        key_kinds=keys,
        value_kinds=values,
        hard_negatives=0.0,
        invented=0.5,
        alike=alike,
        two_hop=hops,
        unanswerable=unanswerable,
    )
    return Phase(
        name=name,
        steps=steps,
        learning_rate=LEARNING_RATE,
        weights=LossWeights(routing=1.0, closing_id=0.5, copying=0.5, id_probe=probe),
        needles=needles,
        copies=copies,
        recalls=recalls,
        id_digits=digits,
        full_ids=0.5,
        repeat_ids=digits < 3,
        chunk_size=chunk,
        final_share=final,
        misses=misses,
        second_tries=second_tries,
        past_documents=past,
    )


def config(out: str, scale: float = 1.0) -> TrainConfig:
    """The recipe: copying first; then ids, chunks and texts grow together, and the memory with them."""
    short: dict[str, Any] = {
        "values": ("word", "number"),
        "documents": 32,
        "questions": 32,
        "hops": 0.0,
        "unanswerable": 0.0,
        "second_tries": 0.0,
    }
    late: dict[str, Any] = {
        "past": 1000,
        "probe": 1.0,
        "unanswerable": 0.15,
        "second_tries": 0.0,
        "misses": 1,
        "final": 0.4,
        "copies": LONG_COPIES,
        "recalls": LONG_RECALLS,
    }
    phases = (
        Phase(name="copying", steps=200, learning_rate=LEARNING_RATE, copies=CopyConfig(questions=32)),
        phase("1 digit, chunks of 8", 120, digits=1, chunk=8, filler=3, alike=0.0, **short),
        phase("1 digit, chunks of 16", 60, digits=1, chunk=16, filler=3, alike=0.1, **short),
        phase("2 digits, chunks of 32", 80, digits=2, chunk=32, filler=6, alike=0.2, **short),
        phase("3 digits, chunks of 64", 200, digits=3, chunk=64, filler=10, alike=0.2, hops=0.4, probe=1.0),
        phase("5 digits", 300, digits=5, chunk=64, filler=20, hops=0.4, past=200, probe=1.0),
        phase("7 digits", 200, digits=7, chunk=64, filler=30, hops=0.4, past=1000, probe=1.0),
        phase("longer texts", 350, digits=7, chunk=64, filler=50, hops=0.3, **late),
        phase("still longer texts", 490, digits=7, chunk=64, filler=80, **late),
    )
    return TrainConfig(
        out=out,
        model="fresh",
        phases=tuple(replace(p, steps=max(1, round(p.steps * scale))) for p in phases),
        haystack=HAYSTACK,
        optimizer="muon",
        warmup_steps=50,
        decay_steps=round(2030 * scale),
        max_document_tokens=1024,
        bucket_tokens=1024,
        log_every=25,
        evaluate_every=250,
        checkpoint_every=250,
    )


def finding(out: str, scale: float = 1.0) -> TrainConfig:
    """A further stretch from the model that :func:`config` ends with, which reads well and routes worse.

    More questions and documents a step, two fifths of the questions of two hops, few rows that answer or copy.
    """
    last = phase(
        "finding",
        max(1, round(850 * scale)),
        digits=7,
        chunk=64,
        filler=80,
        documents=32,
        questions=42,
        hops=0.4,
        second_tries=0.0,
        misses=1,
        final=0.2,
        past=2000,
        probe=1.0,
        copies=replace(LONG_COPIES, questions=3),
        recalls=replace(LONG_RECALLS, rows=2),
    )
    return replace(
        config(out, scale),
        model=f"{out}/model",
        out=f"{out}/finding",
        phases=(replace(last, learning_rate=3e-3),),
        seed=4,
        warmup_steps=40,
        decay_steps=round(870 * scale),
    )


def without(name: str, whole: TrainConfig) -> tuple[TrainConfig, dict[str, object]]:
    """The configuration and changes of the network for one ablation."""
    if name == "random-routers":
        return whole, {"tied_routers": False}
    if name == "no-copying-heads":
        return whole, {"copying_heads": False}
    if name == "no-copy-rows":
        copying, first, *others = (replace(p, copies=None) if p.needles else p for p in whole.phases)
        return replace(whole, phases=(replace(first, steps=first.steps + copying.steps), *others)), {}
    if name == "no-recalls":
        return replace(whole, phases=tuple(replace(p, recalls=None) for p in whole.phases)), {}
    if name == "no-quotation":
        protocol = replace(PROTOCOL, quotation_end="", answer_lead="The answer is:")
        return whole, {"protocol": protocol.to_config()}
    if name == "no-routing-bias":
        return whole, {"routing_bias": False}
    if name == "chunks-of-16":
        phases = tuple(replace(p, chunk_size=min(p.chunk_size, 16)) for p in whole.phases)
        return replace(whole, phases=phases), {"chunk_size": 16}
    if name == "no-curriculum":
        last = replace(whole.phases[-1], steps=whole.total_steps)
        return replace(whole, phases=(last,)), {}
    changed_weights = {
        "no-closing-id": {"closing_id": 0.0},
        "no-routing-loss": {"routing": 0.0},
        "probe-from-the-start": {"id_probe": 1.0},
    }
    if name in changed_weights:
        field = changed_weights[name]
        phases = tuple(replace(p, weights=replace(p.weights, **field)) for p in whole.phases)
        return replace(whole, phases=phases), {}
    return whole, {}


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/tiny")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--phases", type=int, help="end after so many phases")
    parser.add_argument("--ablation", choices=ABLATIONS, default="none")
    parser.add_argument("--finding", action="store_true", help="go on for some 850 steps that are mostly about routing")
    parser.add_argument("--stop-after", type=float, default=0.0, metavar="MINUTES")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    whole = config(args.out, args.scale)
    settings, changes = without(args.ablation, replace(whole, phases=whole.phases[: args.phases]))
    sentences = haystack_sentences(HAYSTACK, held_out=False)
    worlds = NeedleWorlds(*needle_words(held_out=False), sentences)
    model = fresh_model(worlds, sentences, vocab_size=VOCABULARY, seed=settings.seed, **changes)
    trained = train(model, replace(settings, stop_after_minutes=args.stop_after))
    if trained is not None and args.finding:
        last = replace(finding(args.out, args.scale), stop_after_minutes=args.stop_after)
        train(msa.load(trained, dtype="float32"), last)


if __name__ == "__main__":
    main()
