"""The default model trained on one GPU in minutes: routers and LoRA over a backbone that stays as it is.

    python recipes/gpu_run.py --backbone FOLDER --data DIR --out OUT --measure
    python recipes/gpu_run.py --backbone FOLDER --data DIR --out OUT --start ADAPTER.safetensors --seconds 520

The first command takes a few steps of every phase and notes their time; the second divides ``--seconds`` by it, unless
``--steps`` says otherwise. Phases: made-up memories whose ids have one digit, then two and three, in chunks that grow →
real documents in middle chunks → continual pre-training in the model's own, with mined negatives. ``--plan later`` goes
on from what they leave: SFT over 8K and 64K tokens a step, and chains of hops. ``--start`` takes trained routers, or an
adapter of an earlier run to go on from. Let nothing else run on the GPU: with three small
trainings beside it a step took three times as long.

The same command again goes on from the last checkpoint, on the same or on another machine that has OUT. With every
evaluation and at the end of a stretch it leaves in OUT/result the adapter as it is then and the curves, cut into
numbered parts of at most 16 MB, and ``metrics.json`` of held-out questions; ``--join`` puts the parts together.
recipes/gpu_evaluate.py measures the adapter.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import msa
from msa.documents import Protocol
from msa.errors import TrainingDataError
from msa.model import MSAForCausalLM
from msa.model.adapter import apply_adapter, file_checksum
from msa.model.bundle import MSAModel, model_fingerprint
from msa.model.routing_temperature import set_routing_temperature
from msa.training.batches import FileSource, NeedleSource, SampleSource, questions_before
from msa.training.config import FileData, LoraConfig, Phase, TrainConfig
from msa.training.data.formats import read_training_set
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.samples import TrainingSet
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.files import replace_file
from msa.training.log import draw_curves, read_log
from msa.training.objective import LossWeights
from msa.training.parameters import has_lora, load_trained, save_trained
from msa.training.parts import cut, join
from msa.training.prefetch import Prefetched
from msa.training.reading_batches import ReadingBatches
from msa.training.run import held_out_evaluation, read_within_limits, without_answers, write_metrics
from msa.training.trainer import Trainer

# share of --seconds that steps are planned for; the rest is for evaluation, checkpoints and slower steps
PLANNED_SHARE = 0.88
# what every layer's routing bias begins at, and the temperature of the routing loss
ROUTING_BIAS = 3.0
ROUTING_TEMPERATURE = 0.05
NEVER = 10**6  # steps, more than any run has
log = logging.getLogger("gpu_run")


@dataclass(frozen=True)
class Stage:
    """One of the phases.

    Attributes:
        name: shown in the log; share: of the time.
        chunk_size: 0: the model's own; digits: of ids.
        filler: words around the needles of made-up memories, at most; None: real documents.
        final: share of rows that answer; negatives: mined for each question.
        documents: of a step; 0: as the command line says.
        hops: retrieval steps of its questions, at least.
    """

    name: str
    share: float
    chunk_size: int
    digits: int
    filler: int | None = None
    final: float = 0.0
    negatives: int = 0
    documents: int = 0
    hops: int = 0


# ids of one digit are read after some thirty steps, and each longer kind soon after the one before; begun with real
# documents and longer ids, none were read after 240
PHASES = (
    Stage("1 digit", 0.12, 8, 1, filler=2),
    Stage("2 digits", 0.10, 16, 2, filler=4),
    Stage("3 digits", 0.13, 32, 3, filler=8),
    Stage("middle chunks", 0.20, 32, 5, final=0.1),
    Stage("continual pre-training", 0.45, 0, 5, final=0.15, negatives=1),
)
# over an adapter of the first plan: more answering, memories of some 8K and 64K tokens a step, questions that hop
LATER = (
    Stage("SFT 8K", 0.4, 0, 5, final=0.4, negatives=1, documents=105),
    Stage("SFT 64K", 0.35, 0, 5, final=0.4, negatives=1, documents=820),
    Stage("interleave chains", 0.25, 0, 5, final=0.3, hops=2),
)
PLANS = {"first": PHASES, "later": LATER}


def phase(args: argparse.Namespace, stage: Stage, steps: int) -> Phase:
    """A stage of so many steps."""
    made_up = stage.filler is not None
    needles = NeedleConfig(
        documents=args.needle_documents,
        questions=args.needle_questions,
        max_filler=stage.filler or 0,
        key_kinds=("word",),
        value_kinds=("word", "number"),
        hard_negatives=0.0,
        two_hop=0.0,
        unanswerable=0.0,
        plain_documents=0.0,
    )
    files = FileData(
        paths=(str(args.data / "train.jsonl"),),
        held_out_paths=(str(args.data / "validation.jsonl"),),
        corpus=(str(args.data / "corpus.jsonl"),),
        documents=stage.documents or args.documents,
        questions=args.questions,
        mined_negatives=stage.negatives,
        min_hops=stage.hops,
    )
    routing = 0.5 if made_up else 1.0
    return Phase(
        name=stage.name,
        steps=steps,
        learning_rate=args.learning_rate,
        weights=LossWeights(ids=1.0, answer=0.3, routing=routing, recall=0.5, id_probe=1.0, closing_id=0.2),
        needles=needles if made_up else None,
        files=None if made_up else files,
        id_digits=stage.digits,
        full_ids=0.5,
        repeat_ids=stage.digits < 3,
        final_share=stage.final,
        chunk_size=stage.chunk_size,
    )


def config(args: argparse.Namespace, steps: list[int], seconds: float) -> TrainConfig:
    """The phases, of so many steps each; a step takes about ``seconds``."""
    phases = tuple(phase(args, stage, count) for stage, count in zip(args.stages, steps, strict=True))
    on_gpu = torch.cuda.is_available()
    return TrainConfig(
        out=str(args.out / "run"),
        model=str(args.backbone),
        phases=phases,
        seed=args.seed,
        precision="bf16" if on_gpu else "no",
        trainable="lora",
        lora=LoraConfig(rank=args.rank, alpha=2 * args.rank, merged=not args.peft),
        bucket_tokens=args.bucket_tokens,
        checkpoint_documents=args.checkpoint_documents,
        max_document_tokens=1024,
        router_rate=args.router_rate,
        warmup_steps=max(1, min(20, sum(steps) // 10)),
        min_learning_rate=0.03,
        weight_decay=0.0,
        refresh_every=max(1, -(-steps[-1] // 2)),
        log_every=10 if sum(steps) > 100 else 2,
        checkpoint_every=max(1, round(2 * args.evaluate_seconds / seconds)),
        evaluate_every=max(1, round(args.evaluate_seconds / seconds)),
        stop_after_minutes=args.seconds / 60,
    )


def planned_steps(measured: dict[str, Any], seconds: float, shares: dict[str, float]) -> list[int]:
    """Steps of each phase that fill its share of the time, by what a step of each was measured to take."""
    whole = sum(shares.values())
    return [max(2, int(seconds * PLANNED_SHARE * share / whole / measured[name])) for name, share in shares.items()]


def read_sources(
    settings: TrainConfig, folder: Path, protocol: Protocol
) -> tuple[list[SampleSource | None], list[SampleSource | None]]:
    """Per phase the training and the validation data; no document of a validation or test question is in the former."""
    corpus = [folder / "corpus.jsonl"]
    # the corpus is the same for all: its documents' lengths are looked at once
    training = read_within_limits([folder / "train.jsonl"], corpus, settings, protocol, settings.phases[-1].id_digits)
    held_out = read_training_set([folder / "validation.jsonl"], corpus=corpus)
    # read apart, for their documents alone
    tested = read_training_set([folder / "test.jsonl"], corpus=corpus)
    hidden = {name for part in (held_out, tested) for sample in part.samples for name in sample.positives}
    asked = [sample for sample in training.samples if not hidden & set(sample.named)]
    seen = without_answers(replace(training, samples=asked), [held_out, tested])
    log.info("%d documents to train on of %d, %d questions", len(seen.corpus), len(training.corpus), len(seen.samples))

    def sources(real: TrainingSet, *, hold_out: bool) -> list[SampleSource | None]:
        worlds = NeedleWorlds(*needle_words(held_out=hold_out), haystack_sentences((), held_out=hold_out))
        return [
            NeedleSource(worlds, each.needles)
            if each.needles
            else file_source(real, each, settings.seed, 0 if hold_out else questions_before(settings, index))
            for index, each in enumerate(settings.phases)
            if each.needles or each.files
        ]

    return sources(seen, hold_out=False), sources(held_out, hold_out=True)


def file_source(whole: TrainingSet, phase: Phase, seed: int, first: int = 0) -> FileSource:
    """Those of the questions that have as many retrieval steps as a phase asks for.

    Raises:
        TrainingDataError: there are none.
    """
    assert phase.files is not None
    kept = whole.of_hops(phase.files.min_hops)
    if not kept.samples:
        raise TrainingDataError(f"no question has {phase.files.min_hops} retrieval steps; {phase.name!r} needs some")
    return FileSource(kept, phase.files, seed, first)


@dataclass(frozen=True)
class Stretch:
    """What a stretch of training needs.

    Attributes:
        model: with what it starts from; LoRA's weights are in it.
        backbone: fingerprint of the weights that stay as they are.
        trainer: exports the adapter with every evaluation, so that a run that is cut off leaves one.
        batches: to be closed in the end.
        held_out: network and steps done → metrics of held-out questions.
    """

    model: MSAModel
    backbone: str
    trainer: Trainer
    batches: Prefetched
    held_out: Callable[[MSAForCausalLM, int], dict[str, float]]


def prepared(args: argparse.Namespace, settings: TrainConfig) -> Stretch:
    """Read model and data, and go on from the last checkpoint if there is one."""
    started = time.monotonic()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it has no gradient of the routing bias
    model = msa.load(str(args.backbone), dtype="float32")
    backbone = model_fingerprint(model.lm, routers=False)
    goes_on = args.start is not None and has_lora(args.start)
    if args.start is not None and not goes_on:
        apply_adapter(model.lm, args.start, backbone=backbone)
    model.lm.add_routing_bias(ROUTING_BIAS)
    set_routing_temperature(model.lm, ROUTING_TEMPERATURE)
    sources, held_out = read_sources(settings, args.data, model.protocol)
    rows = ReadingBatches(settings, model.protocol, sources, args.reading)
    batches = Prefetched(rows, settings, workers=args.workers)
    measured = held_out_evaluation(model, settings, batches, held_out)

    def evaluate(lm: MSAForCausalLM, step: int) -> dict[str, float]:
        export(model, settings, backbone, args.out / "result")
        return measured(lm, step)

    trainer = Trainer(model, settings, batches, evaluate=evaluate)
    if goes_on and not trainer.done:
        load_trained(trainer.model.lm, args.start, lora_scale=settings.lora.scale, backbone=backbone)
    if torch.cuda.is_available():
        for parameter in model.lm.parameters():
            if not parameter.requires_grad and parameter.ndim:
                # frozen weights are bfloat16 in the checkpoint: nothing is lost, and nothing has to be cast
                parameter.data = parameter.data.to(torch.bfloat16)
    log.info("ready after %.1f s on %s", time.monotonic() - started, model.device)
    return Stretch(model, backbone, trainer, batches, measured)


def run(args: argparse.Namespace) -> bool:
    """One stretch; whether the training is complete."""
    plan = args.out / "steps.json"
    measured = json.loads(plan.read_text()) if plan.is_file() else {}
    shares = {stage.name: share for stage, share in zip(args.stages, args.shares, strict=True)}
    steps = list(args.steps or measured.get("steps") or planned_steps(measured, args.seconds, shares))
    if measured and not args.steps and "steps" not in measured:
        measured |= {"steps": steps}  # a later stretch has the same schedule
        replace_file(plan, lambda path: path.write_text(json.dumps(measured, indent=1)))
    settings = config(args, steps, sum(measured.get(name, 1.0) for name in shares) / len(shares))
    log.info("steps of the phases: %s", steps)
    stretch = prepared(args, settings)
    model, trainer = stretch.model, stretch.trainer
    result, folder = args.out / "result", args.out / "run"
    try:
        finished = trainer.run()
    finally:
        stretch.batches.close()
        export(model, settings, stretch.backbone, result)
    with torch.no_grad(), trainer.computing():
        metrics = stretch.held_out(model.lm, max(trainer.done, 1))
    write_metrics({"step": trainer.done, **metrics}, result / "metrics.json")
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    if (folder / "curves.png").is_file():  # no picture without matplotlib
        cut(folder / "curves.png", result)
    log.info("%s at step %d of %d", "finished" if finished else "stopped", trainer.done, settings.total_steps)
    return finished


def export(model: MSAModel, settings: TrainConfig, backbone: str, result: Path) -> None:
    """The adapter as it is now, whole and in parts."""
    adapter = Path(settings.out) / "adapter.safetensors"
    metadata = {"name": "smollm2-135m-gpu", "backbone": backbone, "config": settings.to_yaml()}
    replace_file(adapter, partial(save_trained, model.lm, lora_scale=settings.lora.scale, metadata=metadata))
    log.info("wrote %s, %.1f MB, in %d parts", adapter, adapter.stat().st_size / 1e6, len(cut(adapter, result)))


def measure(args: argparse.Namespace) -> None:
    """Note in OUT/steps.json what a step of each phase takes; nothing of the training itself is kept."""
    scratch = argparse.Namespace(**{**vars(args), "out": args.out / "measured"})
    shutil.rmtree(scratch.out, ignore_errors=True)  # a checkpoint of an earlier measurement would be gone on from
    settings = replace(
        config(scratch, [args.measured_steps] * len(args.stages), 1.0),
        log_every=max(1, args.measured_steps // 2),  # the first half of a phase is warm-up
        checkpoint_every=NEVER,
        evaluate_every=NEVER,
        refresh_every=NEVER,  # but as a phase begins
    )
    stretch = prepared(scratch, settings)
    try:
        stretch.trainer.run()
    finally:
        stretch.batches.close()
    records = read_log(Path(settings.out) / "log.jsonl")
    times = {record["phase"]: record["seconds_per_step"] for record in records if "seconds_per_step" in record}
    if torch.cuda.is_available():
        log.info("most memory: %.1f GB", torch.cuda.max_memory_allocated() / 1e9)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "steps.json").write_text(json.dumps(times, indent=1))
    log.info("seconds per step: %s", json.dumps(times))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="an MSA model folder (msa convert writes one)")
    parser.add_argument("--data", type=Path, help="folder of recipes/build_data.py: corpus.jsonl and three splits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="adapter to begin with: trained routers, or of an earlier run")
    parser.add_argument("--seconds", type=float, default=520, help="length of a stretch")
    parser.add_argument("--plan", choices=PLANS, default="first", help="later: over an adapter that the first one left")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="of each phase")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="of the time for each phase; a first plan that goes on from an adapter needs little of the first three",
    )
    parser.add_argument("--evaluate-seconds", type=float, default=60, help="between evaluations; checkpoints: twice")
    parser.add_argument("--measure", action="store_true", help="only measure a step of each phase")
    parser.add_argument("--measured-steps", type=int, default=8, help="of each phase")
    parser.add_argument("--documents", type=int, default=160, help="of a step")
    parser.add_argument("--questions", type=int, default=96, help="of a step")
    parser.add_argument("--needle-documents", type=int, default=48, help="of a step with made-up memories")
    parser.add_argument("--needle-questions", type=int, default=128, help="of a step with made-up memories")
    parser.add_argument("--reading", type=int, default=16, help="rows of a step that answer from texts in the prompt")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of LoRA")
    parser.add_argument("--router-rate", type=float, default=3.0, help="the routers' learning rate in multiples of it")
    parser.add_argument("--rank", type=int, default=24)
    parser.add_argument("--seed", type=int, help="of data and order (default: 0, or by the adapter that --start names)")
    parser.add_argument("--peft", action="store_true", help="LoRA beside every layer, under autocast, not merged")
    parser.add_argument("--bucket-tokens", type=int, default=49152 if on_gpu else 4096)
    parser.add_argument("--checkpoint-documents", action="store_true", help="less memory, a third more time")
    parser.add_argument("--workers", type=int, default=8 if on_gpu else 0, help="processes that prepare batches")
    parser.add_argument("--join", action="store_true", help="only put the parts in OUT/result together")
    args = parser.parse_args(arguments)
    if not args.join and (args.backbone is None or args.data is None):
        parser.error("--backbone and --data are needed to train")
    if args.seed is None:  # a stretch over an adapter draws other questions and ids than the one that made it
        args.seed = int(file_checksum(args.start)[:8], 16) if args.start and args.start.is_file() else 0
    args.stages = PLANS[args.plan]
    args.shares = args.shares or [stage.share for stage in args.stages]
    for name in ("steps", "shares"):
        if len(getattr(args, name) or args.stages) != len(args.stages):
            parser.error(f"--{name} needs {len(args.stages)} numbers: {', '.join(stage.name for stage in args.stages)}")
    if args.measure and args.measured_steps < 2:
        parser.error(f"--measured-steps must be 2 or more, got {args.measured_steps}: the first half is warm-up")
    if not (args.join or args.measure or args.steps or (args.out / "steps.json").is_file()):
        parser.error("give --steps, or measure them first with --measure")
    return args


def main() -> None:
    """Measure, train a stretch, or join the parts."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.join:
        for path in join(args.out / "result"):
            log.info("joined %s", path)
    elif args.measure:
        measure(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
