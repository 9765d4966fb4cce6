"""LoRA in mixed precision: nothing is cast twice, and nothing changes by it."""

from contextlib import nullcontext

import pytest
import torch
from accelerate.state import AcceleratorState
from operations import Operations
from peft.tuners.lora import LoraLayer
from tiny_training import config, learner, phase, trainer, weights

from msa.training.config import LoraConfig


@pytest.fixture(autouse=True)
def _plain(plain_log):
    """Accelerate keeps the first precision for good."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(folder, precision):
    """Weights after two steps of LoRA, operations of these steps, and the network."""
    model = learner()
    running = trainer(model, config(folder, phase(2), trainable="lora", precision=precision, lora=LoraConfig(rank=2)))
    for parameter in model.lm.parameters():
        if not parameter.requires_grad and parameter.ndim and precision != "no":
            parameter.data = parameter.data.bfloat16()  # as recipes/gpu_run.py keeps them
    with Operations() as operations:
        assert running.run()
    return weights(model.lm), operations.counts, model.lm


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_lora_reads_is_cast_once_at_most(tmp_path, monkeypatch, precision):
    ours, few, lm = trained(tmp_path / "ours", precision)
    monkeypatch.setattr("msa.training.trainer._uncast", lambda *_: nullcontext())
    pefts, many, _ = trained(tmp_path / "peft", precision)
    assert all(torch.equal(value, pefts[name]) for name, value in ours.items())
    casts = [counts["aten._to_copy.default"] for counts in (few, many)]
    assert casts[0] == casts[1] if precision == "no" else casts[0] < 0.8 * casts[1]
    # outside of training LoRA's float32 weights still need PEFT's cast
    assert all(module.cast_input_dtype_enabled for module in lm.modules() if isinstance(module, LoraLayer))
