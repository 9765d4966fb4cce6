"""The default model trained on one GPU, in stretches of minutes that go on from one another.

    python recipes/gpu_run.py --backbone FOLDER --data DIR --out OUT --minutes 8.5

Warm-up → continual pre-training → SFT, as the phases of one run: routers and LoRA over a backbone that stays as it is.
The same command again goes on from the last checkpoint, on the same or on another machine that has OUT. When the last
phase is done it leaves in OUT/result the adapter and the curves, cut into numbered parts of at most 16 MB, and
``metrics.json`` of held-out questions; ``--join`` puts the parts together.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

import msa
from msa.training.batches import Batches
from msa.training.config import FileData, LoraConfig, Phase, TrainConfig
from msa.training.objective import LossWeights
from msa.training.run import held_out_evaluation, sources_of, train, write_metrics

PART_BYTES = 16 * 1000 * 1000
log = logging.getLogger("gpu_run")


def config(args: argparse.Namespace) -> TrainConfig:
    """The three phases; ``--steps`` scales with what the GPU does in the time."""
    files = FileData(
        paths=(str(args.data / "train.jsonl"),),
        held_out_paths=(str(args.data / "validation.jsonl"),),
        corpus=(str(args.data / "corpus.jsonl"),),
        documents=args.documents,
        questions=args.questions,
    )
    plan = (
        ("warm-up", LossWeights(ids=0.1, answer=0.1, routing=1.0), 0.0),
        ("continual pre-training", LossWeights(routing=0.5), 0.1),
        ("SFT 8K", LossWeights(routing=0.5), 0.5),
    )
    phases = tuple(
        Phase(name=name, steps=steps, learning_rate=args.learning_rate, weights=weights, files=files, final_share=final)
        for (name, weights, final), steps in zip(plan, args.steps, strict=True)
    )
    on_gpu = torch.cuda.is_available()
    return TrainConfig(
        out=str(args.out / "run"),
        model=str(args.backbone),
        phases=phases,
        precision="bf16" if on_gpu else "no",
        trainable="lora",
        lora=LoraConfig(rank=args.rank, alpha=2 * args.rank),
        bucket_tokens=32768 if on_gpu else 4096,
        checkpoint_every=100,
        evaluate_every=500,
        stop_after_minutes=args.minutes,
    )


def cut(path: Path, folder: Path) -> list[Path]:
    """A file as numbered parts in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes()
    parts = []
    for number, start in enumerate(range(0, max(len(data), 1), PART_BYTES)):
        part = folder / f"{path.name}.part-{number:03d}"
        part.write_bytes(data[start : start + PART_BYTES])
        parts.append(part)
    return parts


def join(folder: Path) -> list[Path]:
    """Put the parts in ``folder`` together; the files that came of it."""
    names = sorted({part.name.rsplit(".part-", 1)[0] for part in folder.glob("*.part-*")})
    for name in names:
        parts = sorted(folder.glob(f"{name}.part-*"))
        (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    return [folder / name for name in names]


def run(args: argparse.Namespace) -> bool:
    """One stretch; whether the training is complete."""
    settings = config(args)
    model = msa.load(str(args.backbone), dtype="float32")
    adapter = train(model, settings)
    if adapter is None:
        log.info("not finished: run the same command again")
        return False
    sources, held_out = sources_of(model, settings)
    batches = Batches(settings, model.protocol, sources)
    metrics = held_out_evaluation(model, settings, batches, held_out)(model.lm, settings.total_steps)
    result = args.out / "result"
    for path in (adapter, args.out / "run" / "curves.png"):
        if path.is_file():  # no picture without matplotlib
            cut(path, result)
    write_metrics(metrics, result / "metrics.json")
    log.info("finished: %s", json.dumps(metrics))
    return True


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="an MSA model folder (msa convert writes one)")
    parser.add_argument("--data", type=Path, help="corpus.jsonl, train.jsonl and validation.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5, help="length of a stretch")
    parser.add_argument("--steps", type=int, nargs=3, default=(500, 3000, 1500), metavar="N", help="of each phase")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--join", action="store_true", help="only put the parts in OUT/result together")
    args = parser.parse_args(arguments)
    if not args.join and (args.backbone is None or args.data is None):
        parser.error("--backbone and --data are needed to train")
    return args


def main() -> None:
    """Train a stretch, or join the parts."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.join:
        for path in join(args.out / "result"):
            log.info("joined %s", path)
    else:
        run(args)


if __name__ == "__main__":
    main()
