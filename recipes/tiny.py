"""msa-tiny from scratch: the whole method in a few million weights, on two CPU cores.

    python recipes/tiny.py --out runs/tiny [--stop-after MINUTES] [--reading-from MODEL] [--ablation NAME] [--phases N]
        [--scale 1.0]

Routes, writes ids of up to 7 digits, reads the injected text, hops, stops and answers, on held-out words, numbers,
uuids and sentences. Three runs, one after the other: the method; a stretch of deciding; and, with one layer more,
reading. The finished model is ``<out>/reading/model``. Run it again to go on from the last checkpoint.

``--reading-from`` begins with the last run, from a model that routes. ``--scale`` shortens every phase, ``--phases``
ends the first run after so many and does no other, for comparisons from equal budgets; ``--ablation`` leaves one thing
out.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import msa
from msa.model.bundle import MSAModel
from msa.training.config import Phase, TrainConfig
from msa.training.data.copies import CopyConfig
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.recalls import RecallConfig, recall_rows
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.objective import LossWeights
from msa.training.reading_layer import with_reading_layer
from msa.training.run import train
from msa.training.tiny import QUOTING_PROTOCOL, fresh_model

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
ABLATIONS = (
    "none",
    "random-routers",
    "no-copying-heads",
    "no-copy-rows",
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
    recalls: RecallConfig | None = None,
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
        "keys": ("word",),
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
        "unanswerable": 0.2,
        "second_tries": 0.0,
        "misses": 1,
        "final": 0.4,
        "copies": LONG_COPIES,
    }
    phases = (
        Phase(name="copying", steps=200, learning_rate=LEARNING_RATE, copies=CopyConfig(questions=32)),
        phase("1 digit, chunks of 8", 120, digits=1, chunk=8, filler=3, alike=0.0, **short),
        phase("1 digit, chunks of 16", 60, digits=1, chunk=16, filler=3, alike=0.1, **short),
        phase("2 digits, chunks of 32", 80, digits=2, chunk=32, filler=6, alike=0.2, **short),
        phase("3 digits, chunks of 64", 200, digits=3, chunk=64, filler=10, alike=0.2, probe=1.0),
        phase("5 digits", 300, digits=5, chunk=64, filler=20, past=200, probe=1.0),
        phase("7 digits", 200, digits=7, chunk=64, filler=30, past=1000, probe=1.0),
        phase("longer texts", 350, digits=7, chunk=64, filler=50, **late),
        phase("still longer texts", 650, digits=7, chunk=64, filler=80, **late),
    )
    return TrainConfig(
        out=out,
        model="fresh",
        phases=tuple(replace(p, steps=max(1, round(p.steps * scale))) for p in phases),
        haystack=HAYSTACK,
        optimizer="muon",
        warmup_steps=50,
        decay_steps=round(2260 * scale),
        max_document_tokens=1024,
        bucket_tokens=1024,
        log_every=25,
        evaluate_every=250,
        checkpoint_every=250,
    )


def deciding(out: str, scale: float = 1.0) -> TrainConfig:
    """A last stretch from the model that :func:`config` ends with: fewer refusals, more rows that answer."""
    last = phase(
        "deciding",
        max(1, round(90 * scale)),
        digits=7,
        chunk=64,
        filler=80,
        past=1000,
        probe=1.0,
        unanswerable=0.1,
        second_tries=0.0,
        misses=1,
        final=0.6,
        copies=LONG_COPIES,
    )
    return replace(
        config(out, scale),
        model=f"{out}/model",
        out=f"{out}/deciding",
        phases=(replace(last, learning_rate=1.5e-3),),
        seed=1,
        warmup_steps=15,
        decay_steps=round(94 * scale),
    )


def reading(out: str, scale: float = 1.0) -> TrainConfig:
    """The last run: answers that quote what they read, and rows of several questions about one text.

    Texts around the needles of such rows grow to the 512 tokens at which RULER's documents are cut.
    """
    common: dict[str, Any] = {
        "digits": 7,
        "chunk": 64,
        "past": 1000,
        "unanswerable": 0.2,
        "second_tries": 0.0,
        "misses": 1,
    }
    short = RecallConfig(rows=8, questions=5, max_filler=60, two_hop=0.2, unanswerable=0.25)
    long = RecallConfig(rows=6, questions=5, max_filler=250, two_hop=0.25, unanswerable=0.25)
    phases = (
        phase(
            "reading",
            250,
            filler=50,
            hops=0.25,
            final=0.5,
            copies=replace(LONG_COPIES, questions=3),
            recalls=short,
            **common,
        ),
        phase(
            "reading longer texts",
            350,
            filler=80,
            hops=0.3,
            final=0.4,
            copies=replace(LONG_COPIES, questions=4),
            recalls=long,
            **common,
        ),
    )
    return replace(
        config(out, scale),
        model=f"{out}/deciding/model",
        out=f"{out}/reading",
        phases=tuple(replace(p, steps=max(1, round(p.steps * scale)), learning_rate=3e-3) for p in phases),
        seed=7,
        warmup_steps=15,
        decay_steps=round(610 * scale),
    )


def reader(model: MSAModel, worlds: NeedleWorlds) -> MSAModel:
    """A model that routes → one with a layer more and a transcript that quotes, for :func:`reading`."""
    rows = recall_rows(
        RecallConfig(rows=400, questions=5, max_filler=80),
        worlds,
        NeedleConfig(invented=0.5, alike=0.5),
        model.protocol,
        id_digits=7,
        seed="ridge",
    )
    return with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=0)


def without(name: str, whole: TrainConfig) -> tuple[TrainConfig, dict[str, object]]:
    """The configuration and changes of the network for one ablation."""
    if name == "random-routers":
        return whole, {"tied_routers": False}
    if name == "no-copying-heads":
        return whole, {"copying_heads": False}
    if name == "no-copy-rows":
        copying, first, *others = (replace(p, copies=None) if p.needles else p for p in whole.phases)
        return replace(whole, phases=(replace(first, steps=first.steps + copying.steps), *others)), {}
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


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/tiny")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--phases", type=int, help="end the first run after so many phases")
    parser.add_argument("--ablation", choices=ABLATIONS, default="none", help="of the first run, which then is all")
    parser.add_argument("--reading-from", metavar="MODEL", help="the last run alone, from this model")
    parser.add_argument("--stop-after", type=float, default=0.0, metavar="MINUTES")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sentences = haystack_sentences(HAYSTACK, held_out=False)
    worlds = NeedleWorlds(*needle_words(held_out=False), sentences)
    routing: str | Path | None = args.reading_from
    if routing is None:
        whole = config(args.out, args.scale)
        settings, changes = without(args.ablation, replace(whole, phases=whole.phases[: args.phases]))
        model = fresh_model(worlds, sentences, vocab_size=VOCABULARY, seed=settings.seed, **changes)
        routing = train(model, replace(settings, stop_after_minutes=args.stop_after))
        if args.phases is not None or args.ablation != "none":
            return
        if routing is not None:
            last = replace(deciding(args.out, args.scale), stop_after_minutes=args.stop_after)
            routing = train(msa.load(routing, dtype="float32"), last)
    if routing is not None:
        model = reader(msa.load(routing, dtype="float32"), worlds)
        train(model, replace(reading(args.out, args.scale), stop_after_minutes=args.stop_after))


if __name__ == "__main__":
    main()
