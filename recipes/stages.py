"""The paper's stages as configurations (paper, training section): print one as YAML for ``msa train``.

    python recipes/stages.py warm_up --data data/ --out runs/warm-up > warm-up.yaml
    msa train warm-up.yaml

Each stage starts from the model the one before left in its ``out`` folder; data is what ``recipes/build_data.py``
writes, or any other samples. Loss weights and learning rates of the first two are the paper's; the rest is ours.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from msa.training.config import FileData, LoraConfig, Phase, TrainConfig
from msa.training.objective import LossWeights

# so many documents of build_data.py's sources, of some 78 tokens with their ids
DOCUMENTS_8K, DOCUMENTS_64K = 105, 820


def warm_up(data: str, out: str, model: str = "smollm2-135m-whitened") -> TrainConfig:
    """Routers first: α 0.1, β 1.0, rate 1e-4; router_warmup.py does it in minutes over a frozen backbone."""
    weights = LossWeights(ids=0.1, answer=0.1, routing=1.0)
    return _config(data, out, model, "warm-up", 2000, 1e-4, weights, final=0.1)


def pretrain(data: str, out: str, model: str = "runs/warm-up/model") -> TrainConfig:
    """Continual pre-training on generative retrieval: α 1.0, β 0.1, learning rate 6e-6."""
    return _config(data, out, model, "continual pre-training", 20_000, 6e-6, LossWeights(routing=0.1), final=0.1)


def sft_8k(data: str, out: str, model: str = "runs/pretrain/model") -> TrainConfig:
    """Question answering over about 8K tokens of memory a step, with negatives mined as the routers learn."""
    whole = _config(data, out, model, "SFT 8K", 4000, 6e-6, LossWeights(routing=0.1), final=0.5, documents=DOCUMENTS_8K)
    return _reading(whole, refresh_every=1000, mined_negatives=1)


def sft_64k(data: str, out: str, model: str = "runs/sft-8k/model") -> TrainConfig:
    """The same over about 64K tokens; documents and layers are computed again in the backward pass, to bound memory."""
    whole = _config(
        data, out, model, "SFT 64K", 2000, 6e-6, LossWeights(routing=0.1), final=0.5, documents=DOCUMENTS_64K
    )
    return replace(whole, checkpoint_documents=True, checkpoint_layers=True)


def chains(data: str, out: str, model: str = "runs/sft-64k/model") -> TrainConfig:
    """Memory Interleave: questions of two hops and more alone, as single steps; most rows find the next document."""
    whole = _config(data, out, model, "interleave chains", 1000, 6e-6, LossWeights(routing=0.1), final=0.3)
    return _reading(whole, min_hops=2)


def lora(data: str, out: str, model: str = "smollm2-135m") -> TrainConfig:
    """SFT of routers and LoRA over a backbone that stays as it is; the result is an adapter."""
    whole = _config(data, out, model, "LoRA", 4000, 1e-4, LossWeights(routing=0.5), final=0.5, documents=64)
    return replace(whole, trainable="lora", lora=LoraConfig(rank=16), checkpoint_documents=True)


STAGES = {stage.__name__: stage for stage in (warm_up, pretrain, sft_8k, sft_64k, chains, lora)}


def _config(
    data: str,
    out: str,
    model: str,
    name: str,
    steps: int,
    learning_rate: float,
    weights: LossWeights,
    *,
    final: float,
    documents: int = 64,
) -> TrainConfig:
    files = FileData(
        paths=(str(Path(data) / "train.jsonl"),),
        held_out_paths=(str(Path(data) / "validation.jsonl"),),
        hidden_paths=(str(Path(data) / "test.jsonl"),),
        corpus=(str(Path(data) / "corpus.jsonl"),),
        documents=documents,
        questions=32,
    )
    phase = Phase(name=name, steps=steps, learning_rate=learning_rate, weights=weights, files=files, final_share=final)
    return TrainConfig(out=out, model=model, phases=(phase,), precision="bf16")


def _reading(whole: TrainConfig, refresh_every: int = 0, **changes: Any) -> TrainConfig:
    """The stage with other settings of its files."""
    (phase,) = whole.phases
    assert phase.files is not None
    changed = replace(phase, files=replace(phase.files, **changes))
    return replace(whole, phases=(changed,), refresh_every=refresh_every)


def main() -> None:
    """Write one stage's YAML to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--data", default="data")
    parser.add_argument("--out")
    parser.add_argument("--model", help="what to start from (default: the stage before)")
    args = parser.parse_args()
    out = args.out or f"runs/{args.stage.replace('_', '-')}"
    more = {"model": args.model} if args.model else {}
    sys.stdout.write(STAGES[args.stage](args.data, out, **more).to_yaml())


if __name__ == "__main__":
    main()
