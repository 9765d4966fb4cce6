"""Train in processes of their own: killed and resumed ones, or ranks that train together.

Run by test_trainer.py and test_distributed.py in a process of its own, because it forks; every child trains the same
little run, whose data follow from the step alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from children import ended, fork
from safetensors.torch import save_file
from tiny_training import MERGED_LORA, SETS, SHARDED, TWO_AT_A_TIME, Recorded, config, learner, phase

from msa.training import log as journal
from msa.training.batches import Batches
from msa.training.config import TrainConfig
from msa.training.data.collate import TrainingBatch
from msa.training.run import save_result
from msa.training.trainer import Trainer

STEPS = 7


def short_run(out: Path) -> TrainConfig:
    """A run with a checkpoint every other step, in two phases."""
    return config(out, phase(4), phase(STEPS - 4, learning_rate=1e-3, final_share=0.6), checkpoint_every=2)


class Killed(Batches):
    """Kills its own process when a certain step asks for its batch; earlier steps may be under way to the disk."""

    at = -1

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """See :class:`Batches`."""
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step, micro)


def train(run: TrainConfig, result: Path, kill_at: int = -1) -> None:
    """Train to the end from whatever checkpoint there is, and write the weights."""
    torch.set_num_threads(1)
    # another seed: whatever a checkpoint does not hold would show
    resumed = (Path(run.out) / "checkpoints").exists()
    model = learner(seed=99 if resumed else 0, routing_bias=True, tie_word_embeddings=True)
    batches = Killed(run, model.protocol, [Recorded(*SETS)] * len(run.phases))
    batches.at = kill_at
    trainer = Trainer(model, run, batches)
    journal.draw_curves = lambda *_: None  # it takes longer than the run
    assert trainer.run()
    if trainer.accelerator.is_main_process:
        save_file({name: value.detach().clone() for name, value in model.lm.named_parameters()}, result)
        if run.sharded and run.trainable == "all":  # as train() does, with one process left
            save_result(model, run, result.with_suffix(".model"), {})
    if run.sharded:
        write_share(trainer, result.with_suffix(f".share-{trainer.accelerator.process_index}.json"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def write_share(trainer: Trainer, path: Path) -> None:
    """How much of the optimiser's state this process holds, and of how much."""
    states = [
        value for optimizer in trainer._optimizers for state in optimizer.state.values() for value in state.values()
    ]
    mine = sum(state.to_local().numel() if hasattr(state, "to_local") else state.numel() for state in states)
    path.write_text(json.dumps([mine, sum(state.numel() for state in states)]))


def kill_and_resume(folder: Path, seed: int) -> None:
    """One run from start to end, and one that is killed at random steps and resumed."""
    first = fork(lambda: train(short_run(folder / "whole"), folder / "whole.safetensors"))
    rng = random.Random(seed)
    for step in sorted(rng.sample(range(1, STEPS), 2)):
        child = fork(lambda step=step: train(short_run(folder / "killed"), folder / "none", step))  # type: ignore[misc]
        assert ended(child) == -signal.SIGKILL
    assert ended(fork(lambda: train(short_run(folder / "killed"), folder / "killed.safetensors"))) == 0
    assert ended(first) == 0


def ranks(folder: Path, count: int, settings: dict[str, Any] = TWO_AT_A_TIME) -> None:
    """As many processes that train together as asked for."""
    assert together(folder / "ranks", folder / "ranks.safetensors", count, settings) == [0] * count


def kill_sharded(folder: Path, count: int) -> None:
    """A sharded run from start to end, and one whose processes are killed and start again."""
    settings = {**SHARDED, "checkpoint_every": 2}
    assert together(folder / "whole", folder / "whole.safetensors", count, settings) == [0] * count
    killed = together(folder / "killed", folder / "none", count, settings, kill_at=2)
    assert killed == [-signal.SIGKILL] * count
    assert together(folder / "killed", folder / "killed.safetensors", count, settings) == [0] * count


def together(out: Path, result: Path, count: int, settings: dict[str, Any], kill_at: int = -1) -> list[int]:
    """Processes that train one run of three steps; how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(index: int) -> None:
        os.environ |= {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        train(config(out, phase(3), **settings), result, kill_at)

    children = [fork(lambda index=index: rank(index)) for index in range(count)]  # type: ignore[misc]
    return [ended(child) for child in children]


if __name__ == "__main__":
    kinds = {
        "kill": kill_and_resume,
        "ranks": ranks,
        "lora": partial(ranks, settings=MERGED_LORA),
        "sharded": partial(ranks, settings=SHARDED),
        "sharded lora": partial(ranks, settings={**MERGED_LORA, "sharded": True}),
        "kill sharded": kill_sharded,
    }
    kinds[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
