"""LoRA merged once a step: the same training as PEFT's, in fewer operations."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from operations import Operations
from tiny_training import batches, config, learner, phase, trainer

from msa.errors import TrainingError
from msa.model.adapter import apply_adapter
from msa.training.config import LoraConfig, TrainConfig
from msa.training.names import is_router
from msa.training.parameters import load_trained, save_trained
from msa.training.trainer import Trainer

RANK, SCALE = 2, 2.0
WITH_BIAS = {"routing_bias": True}


@pytest.fixture(autouse=True)
def _plain(plain_log):
    """Accelerate keeps the first precision for good."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def lora(merged, **changes):
    """A small change of every linear layer, or of those that ``changes`` name."""
    return LoraConfig(**{"rank": RANK, "alpha": int(RANK * SCALE), "merged": merged, **changes})


def prepared(folder, merged, start=None, steps=3, **changes):
    """A trainer of a tiny network, its LoRA as in ``start``; and its model."""
    AcceleratorState._reset_state(reset_partial_state=True)
    model = learner(**WITH_BIAS)
    run = config(folder, phase(steps), trainable="lora", lora=lora(merged), **changes)
    running = trainer(model, run)
    if start is not None:
        load_trained(model.lm, start, lora_scale=SCALE, backbone="")
    return running, model


def saved(lm, path):
    """What was trained, in a file."""
    save_trained(lm, path, lora_scale=SCALE, metadata={})
    return path


def trained(lm):
    """Name in an adapter → float32 weight that was trained."""
    from msa.training.parameters import _trained

    return {name: value.detach().clone() for name, value in _trained(lm).items()}


@pytest.fixture
def start(tmp_path):
    """An adapter whose every tensor says something."""
    _, model = prepared(tmp_path / "start", merged=False)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.lm.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    return saved(model.lm, tmp_path / "start.safetensors")


@pytest.mark.parametrize("changes", [{}, {"checkpoint_documents": True, "checkpoint_layers": True}])
def test_merged_lora_learns_what_pefts_learns(tmp_path, start, changes):
    after = {}
    for merged in (False, True):
        running, model = prepared(tmp_path / str(merged), merged, start, **changes)
        first = trained(model.lm)
        assert running.run()
        after[merged] = trained(model.lm)
        assert all(not torch.equal(first[name], value) for name, value in after[merged].items())
    assert set(after[True]) == set(after[False])
    for name, value in after[True].items():
        torch.testing.assert_close(value, after[False][name], atol=3e-5, rtol=1e-3, msg=name)


def test_the_adapter_is_what_was_trained(tmp_path, start):
    running, model = prepared(tmp_path / "run", True, start)
    assert running.run()
    other = learner(**WITH_BIAS).lm
    apply_adapter(other, saved(model.lm, tmp_path / "adapter.safetensors"))
    ids = torch.randint(0, 250, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(model.lm(ids).logits, other(ids).logits, atol=0.02, rtol=0.02)  # saved in bfloat16
        before = learner(**WITH_BIAS).lm(ids).logits
    assert (other(ids).logits - before).abs().max() > 0.1


def test_in_bf16_only_what_is_trained_stays_in_float32(tmp_path, start):
    running, model = prepared(tmp_path / "run", True, start, precision="bf16")
    for name, value in model.lm.named_parameters():
        kept = is_router(name) or "lora_" in name
        assert value.requires_grad == kept, name
        assert value.dtype == (torch.float32 if kept or not value.ndim else torch.bfloat16), name
    base = {name: value.clone() for name, value in model.lm.named_parameters() if not value.requires_grad}
    first = trained(model.lm)
    assert running.run()
    after = dict(model.lm.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(not torch.equal(first[name], value) for name, value in trained(model.lm).items())


def test_a_merged_step_computes_less_often(tmp_path, start):
    counts = {}
    for merged in (False, True):
        running, _ = prepared(tmp_path / str(merged), merged, start, steps=1, precision="bf16")
        with Operations() as operations:
            assert running.run()
        counts[merged] = operations.counts
    products = {merged: of["aten.mm.default"] + of["aten.addmm.default"] for merged, of in counts.items()}
    assert products[True] < 0.7 * products[False]
    assert counts[True].total() < 0.8 * counts[False].total()


def test_each_weight_is_merged_once_a_step(tmp_path, start, monkeypatch):
    from msa.training.merged_lora import LowRankChange

    merges = Counter()
    forward = LowRankChange.forward
    monkeypatch.setattr(LowRankChange, "forward", lambda self, w: merges.update([id(self)]) or forward(self, w))
    running, model = prepared(tmp_path / "run", True, start, steps=2, checkpoint_documents=True, checkpoint_layers=True)
    merges.clear()
    assert running.run()
    assert set(merges.values()) == {2}
    assert len(merges) == 7 * model.lm.config.num_hidden_layers


def test_a_stopped_run_goes_on(tmp_path, start):
    whole, model = prepared(tmp_path / "whole", True, start)
    assert whole.run()
    finished, stretches = False, 0
    while not finished:
        running, part = prepared(tmp_path / "part", True, start if not stretches else None, stop_after_minutes=1e-9)
        finished, stretches = running.run(), stretches + 1
    assert stretches > 1
    expected = trained(model.lm)
    assert all(torch.equal(value, expected[name]) for name, value in trained(part.lm).items())


@pytest.mark.parametrize("layers", [(), (1,)])
def test_merged_lora_goes_into_the_chosen_layers_and_modules(tmp_path, layers):
    model = learner()
    chosen = lora(True, layers=layers, targets=("q_proj", "down_proj"))
    trainer(model, config(tmp_path, trainable="lora", lora=chosen))
    pairs = {name.removesuffix(".lora_A.weight") for name in trained(model.lm) if name.endswith("lora_A.weight")}
    assert pairs == {
        f"model.layers.{layer}.{module}"
        for layer in layers or range(2)
        for module in ("self_attn.q_proj", "mlp.down_proj")
    }


@pytest.mark.parametrize("changes", [{"targets": ("nonsense",)}, {"layers": (7,)}])
def test_merged_lora_that_does_not_fit_is_refused(tmp_path, changes):
    with pytest.raises(TrainingError, match="LoRA does not fit this network"):
        trainer(learner(), config(tmp_path, trainable="lora", lora=lora(True, **changes)))


def test_merged_lora_in_fp16_is_refused(tmp_path):
    with pytest.raises(ValueError, match="set precision to bf16 or no"):
        TrainConfig(out=str(tmp_path), phases=(phase(),), trainable="lora", precision="fp16", lora=lora(True))


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_splits_the_network_is_refused(tmp_path, engine):
    model = learner()
    splitting = SimpleNamespace(distributed_type=engine, num_processes=1)
    run = config(tmp_path)
    with pytest.raises(TrainingError, match=f"{engine.value}, which splits .* start it with torchrun alone"):
        Trainer(model, run, batches(model, run), accelerator=splitting)
