"""Processes that train together do what one process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import MERGED_LORA, TWO_AT_A_TIME, config, learner, phase, trainer, weights

from msa.training.log import read_log


@pytest.mark.parametrize(("kind", "settings"), [("ranks", TWO_AT_A_TIME), ("lora", MERGED_LORA)])
def test_two_processes_end_with_the_losses_and_weights_of_one(tmp_path, kind, settings):
    """One of them has no rows to retrieve for in some steps, and less to read than the other in all."""
    script = Path(__file__).with_name("train_in_processes.py")
    run = subprocess.run(
        [sys.executable, str(script), kind, str(tmp_path), "2"],
        env={**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    model = learner()
    assert trainer(model, config(tmp_path / "alone", phase(3), **settings)).run()
    together = load_file(tmp_path / "ranks.safetensors")
    alone = weights(model.lm)
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
