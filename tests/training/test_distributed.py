"""Processes that train together do what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import MERGED_LORA, SHARDED, TWO_AT_A_TIME, config, learner, phase, trainer, weights

from msa.errors import TrainingError
from msa.model import MSAForCausalLM
from msa.training.log import read_log
from msa.training.sharding import ShardedNetwork

KINDS = {
    "ranks": TWO_AT_A_TIME,
    "lora": MERGED_LORA,
    "sharded": SHARDED,
    "sharded lora": MERGED_LORA,
}


@pytest.mark.parametrize(("kind", "settings"), KINDS.items())
def test_two_processes_end_with_the_losses_and_weights_of_one(tmp_path, kind, settings):
    """One of them has no rows to retrieve for in some steps, and less to read than the other in all."""
    run_processes(kind, tmp_path)
    model = learner(routing_bias=True, tie_word_embeddings=True)
    assert trainer(model, config(tmp_path / "alone", phase(3), **settings)).run()
    together = load_file(tmp_path / "ranks.safetensors")
    alone = weights(model.lm)
    assert any("routing_alpha" in name for name in alone), "a scalar, which cannot be divided"
    assert set(together) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("ranks", "alone")]
    assert [record["step"] for record in logs[0]] == [1, 2, 3]
    for mine, expected in zip(*logs, strict=True):
        names = {name for name in expected if name.startswith("loss")}
        assert names == {"loss", "loss/ids", "loss/answer", "loss/routing"} == {n for n in mine if n.startswith("loss")}
        for name in names:
            assert abs(mine[name] - expected[name]) < 1e-5, name
    # both processes' random states were kept, and what they wrote is one run
    kept = sorted(path.name for path in (tmp_path / "ranks" / "checkpoints" / "step-00000003").iterdir())
    assert [name for name in kept if name.startswith("random")] == ["random_states_0.pkl", "random_states_1.pkl"]
    if kind == "sharded":
        saved = MSAForCausalLM.from_pretrained(tmp_path / "ranks.model", dtype=torch.float32)
        assert weights(saved).keys() == alone.keys()
        for name, value in weights(saved).items():
            assert torch.equal(value, together[name]), name
    if "sharded" in kind:
        for rank in range(2):
            mine, whole = json.loads((tmp_path / f"ranks.share-{rank}.json").read_text())
            assert mine < 0.6 * whole, "each process holds about half of the optimiser's state"


def test_killed_and_resumed_sharded_training_is_the_same_to_the_bit(tmp_path):
    run_processes("kill sharded", tmp_path)
    whole, killed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name
    with pytest.raises(TrainingError, match=r"other settings \(sharded\)"):
        trainer(
            learner(routing_bias=True, tie_word_embeddings=True),
            config(tmp_path / "whole", phase(3), **SHARDED, checkpoint_every=2),
        )


def run_processes(kind, folder):
    """Two of train_in_processes.py's."""
    script = Path(__file__).with_name("train_in_processes.py")
    run = subprocess.run(
        [sys.executable, str(script), kind, str(folder), "2"],
        env={**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module: module)
    with pytest.raises(TrainingError, match=r"sharded training needs torch 2\.7 or newer, this is"):
        ShardedNetwork(torch.nn.Linear(2, 2))
