"""What each weight is trained by: one learning rate for all, or the routers' own."""

import json

import pytest
import torch
from tiny_training import config, learner, phase, trainer, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

from msa.errors import TrainingError
from msa.training.config import LoraConfig, TrainConfig
from msa.training.names import is_router
from msa.training.optimizers import build_optimizers
from msa.training.parameters import choose_trainable

pytestmark = pytest.mark.usefixtures("plain_log")


def trained(folder, **changes):
    model = learner(routing_bias=True)
    assert trainer(model, config(folder, **changes)).run()
    return weights(model.lm)


@pytest.fixture
def rates():
    """Of every optimiser step, each weight's learning rate by what it points to."""
    seen = []

    def note(optimizer, *_):
        seen.append({weight.data_ptr(): group["lr"] for group in optimizer.param_groups for weight in group["params"]})

    hook = register_optimizer_step_pre_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("trainable", ["all", "routers", "lora"])
def test_every_trained_weight_is_in_one_group_and_vectors_do_not_decay(tmp_path, optimizer, trainable):
    for rate in (None, 3.0):
        run = config(tmp_path, optimizer=optimizer, trainable=trainable, router_rate=rate, lora=LoraConfig(rank=2))
        lm = choose_trainable(learner(routing_bias=True).lm, run)
        groups = [group for each in build_optimizers(lm, run) for group in each.param_groups]
        names = {id(weight): name for name, weight in lm.named_parameters() if weight.requires_grad}
        assert sorted(names[id(weight)] for group in groups for weight in group["params"]) == sorted(names.values())
        for group in groups:
            routers = {is_router(names[id(weight)]) for weight in group["params"]}
            assert rate is None or routers == {group.get("rate") == rate}
            assert all(weight.ndim > 1 for weight in group["params"]) or group["weight_decay"] == 0


def test_routers_and_their_bias_learn_at_a_multiple_of_the_rate(tmp_path, rates):
    model, run = learner(routing_bias=True), config(tmp_path, phase(4), router_rate=7.5, warmup_steps=2)
    assert trainer(model, run).run()
    names = {weight.data_ptr(): name for name, weight in model.lm.named_parameters()}
    per_step = [{**first, **second} for first, second in zip(rates[::2], rates[1::2], strict=True)]
    assert len(per_step) == 4
    for step, of_step in enumerate(per_step):
        base = run.learning_rate_at(step)
        got = {names[pointer]: rate for pointer, rate in of_step.items()}
        assert {name for name in got if is_router(name)} >= {"model.layers.1.self_attn.routing_alpha"}
        assert got == {name: pytest.approx(base * (7.5 if is_router(name) else 1)) for name in got}


def test_a_rate_of_one_is_as_none(tmp_path):
    expected = trained(tmp_path / "none")
    one, larger = trained(tmp_path / "one", router_rate=1.0), trained(tmp_path / "larger", router_rate=5.0)
    assert all(torch.equal(value, expected[name]) for name, value in one.items())
    moved = {name for name, value in larger.items() if not torch.equal(value, expected[name])}
    assert {name for name in expected if is_router(name)} <= moved


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_with_the_routers_rate(tmp_path, optimizer):
    settings = {"router_rate": 5.0, "optimizer": optimizer}
    expected = trained(tmp_path / "whole", **settings)
    for _ in range(3):
        stopped = trainer(
            learner(routing_bias=True), config(tmp_path / "parts", stop_after_minutes=1e-9, **settings)
        ).run()
        assert not stopped
    resumed = trained(tmp_path / "parts", **settings)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())


def test_a_run_is_not_resumed_with_another_rate_but_one_from_before_there_were_rates_is(tmp_path):
    assert not trainer(learner(), config(tmp_path, stop_after_minutes=1e-9)).run()
    (saved,) = tmp_path.glob("checkpoints/*/run.json")
    fields = json.loads(saved.read_text())
    assert "router_rate" not in fields["run"]
    with pytest.raises(TrainingError, match=r"made with other settings \(router_rate\)"):
        trainer(learner(), config(tmp_path, router_rate=2.0))
    assert trainer(learner(), config(tmp_path)).run()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_that_cannot_be_are_refused(tmp_path, rate):
    with pytest.raises(ValueError, match="router_rate must be a number above 0"):
        config(tmp_path, router_rate=rate)


def test_a_rate_is_read_from_yaml(tmp_path):
    for rate in (None, 7.5):
        run = config(tmp_path, router_rate=rate)
        (tmp_path / "run.yaml").write_text(run.to_yaml())
        assert TrainConfig.from_yaml(tmp_path / "run.yaml") == run
