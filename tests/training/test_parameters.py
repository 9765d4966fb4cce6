"""Which weights a run changes, and what it leaves for others to load."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors import safe_open
from tiny import random_tokens, tiny_lm
from tiny_training import config, learner, phase, trainer, weights

from msa.errors import TrainingError
from msa.model.adapter import apply_adapter
from msa.model.bundle import model_fingerprint
from msa.training.config import LoraConfig
from msa.training.names import is_router
from msa.training.parameters import choose_trainable, save_trained

LORA = LoraConfig(rank=3, alpha=12)


pytestmark = pytest.mark.usefixtures("plain_log")


def trained(folder, model, steps=3, **changes):
    run = config(folder, phase(steps), weight_decay=0.1, **changes)
    assert trainer(model, run).run()
    return run


@torch.no_grad()
def outputs(lm):
    """Logits of questions over a memory, with what every layer routes to."""
    documents = torch.tensor(random_tokens(12, 12, 12))
    memory = lm.encode_documents(documents, torch.tensor([12, 9, 7]))
    out = lm(torch.tensor(random_tokens(10, 10, seed=1)), memory=memory, top_k=2)
    return [out.logits, *(layer.doc_scores for layer in out.routing.values())]


def round_to_bfloat16(lm):
    """What an adapter file keeps of the trained weights."""
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())


def test_all_weights_but_the_temperature_are_trained(tmp_path):
    model = learner(routing_bias=True)
    model.lm.temperature.requires_grad_(True)  # as loading leaves it
    before = weights(model.lm)
    trained(tmp_path, model)
    assert not model.lm.temperature.requires_grad
    assert [name for name, value in weights(model.lm).items() if torch.equal(value, before[name])] == ["temperature"]


def test_routers_alone_leave_everything_else_unchanged(tmp_path):
    model = learner(routing_bias=True)
    before = weights(model.lm)
    fingerprint = model_fingerprint(model.lm, routers=False)
    trained(tmp_path, model, trainable="routers")
    changed = {name for name, value in weights(model.lm).items() if not torch.equal(value, before[name])}
    layer = "model.layers.1.self_attn"
    assert changed == {f"{layer}.router_q_proj.0.weight", f"{layer}.router_k_proj.0.weight", f"{layer}.routing_alpha"}
    assert all(map(is_router, changed))
    untouched = learner(routing_bias=True)
    assert model_fingerprint(untouched.lm, routers=False) == fingerprint


@pytest.mark.parametrize("trainable", ["routers", "lora"])
def test_the_saved_adapter_over_the_untouched_backbone_is_the_trained_network(tmp_path, trainable):
    model = learner(routing_bias=True)
    model.lm.temperature.data.fill_(0.05)
    run = trained(tmp_path, model, trainable=trainable, lora=LORA)
    round_to_bfloat16(model.lm)
    model.lm.eval()
    expected = outputs(model.lm)
    scale = run.lora.alpha / run.lora.rank
    names = save_trained(model.lm, tmp_path / "adapter.safetensors", lora_scale=scale, metadata={"backbone": "b"})
    with safe_open(tmp_path / "adapter.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == names
        assert file.metadata() == {"backbone": "b", "lora_scale": "4.0", "routing_temperature": "0.05"}
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert any("lora_" in name for name in names) == (trainable == "lora")
    plain = learner(routing_bias=True).lm
    before = outputs(plain)
    apply_adapter(plain, tmp_path / "adapter.safetensors", backbone="b")
    assert float(plain.temperature) == pytest.approx(0.05), "what ids are weighed by, too"
    assert plain.config.routing_temperature == pytest.approx(0.05)
    for got, wanted, first in zip(outputs(plain), expected, before, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        assert (wanted - first).abs().max() > 1e-3  # training did change what the network says


def test_lora_changes_its_own_weights_and_the_routers_alone(tmp_path):
    model = learner()
    before = weights(model.lm)
    trained(tmp_path, model, trainable="lora", lora=LORA)
    after = {name.replace(".base_layer", ""): value for name, value in weights(model.lm).items()}
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if is_router(name)}
    added = set(after) - set(before)
    assert len(added) == 2 * 7 * model.lm.config.num_hidden_layers
    assert all(after[name].any() for name in added if "lora_B" in name)  # they begin at zero


@pytest.mark.parametrize("trainable", ["routers", "lora"])
def test_checkpoints_hold_what_is_trained_alone_and_a_stopped_run_ends_with_the_same_weights(tmp_path, trainable):
    options = {"trainable": trainable, "lora": LORA}
    whole = learner(routing_bias=True)
    trained(tmp_path / "whole", whole, **options)
    stopped = learner(routing_bias=True)
    first = config(tmp_path / "parts", phase(3), weight_decay=0.1, stop_after_minutes=1e-9, **options)
    assert not trainer(stopped, first).run()
    (file,) = (tmp_path / "parts" / "checkpoints").glob("*/model.safetensors")
    with safe_open(file, framework="pt") as saved:
        names = {name.removeprefix("lm.") for name in saved.keys()}  # noqa: SIM118
    assert names
    assert all(is_router(name) or "lora_" in name for name in names)
    again = learner(routing_bias=True)
    trained(tmp_path / "parts", again, **options)
    expected = weights(whole.lm)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.lm).items())


def test_a_lora_run_goes_on_where_it_was_stopped(tmp_path):
    changes = {"trainable": "lora", "lora": LORA}
    whole = learner()
    trained(tmp_path / "whole", whole, **changes)
    run = config(tmp_path / "stopped", phase(3), weight_decay=0.1, stop_after_minutes=1e-9, **changes)
    finished = False
    while not finished:
        part = learner()
        finished = trainer(part, run).run()
    expected = weights(whole.lm)
    assert all(torch.equal(value, expected[name]) for name, value in weights(part.lm).items())


@pytest.mark.parametrize("layers", [(), (1,), (0, 3)])
def test_lora_goes_into_the_chosen_layers_and_modules(layers):
    lm = tiny_lm()
    lora = LoraConfig(rank=2, alpha=4, layers=layers, targets=("q_proj", "down_proj"))
    choose_trainable(lm, config("nowhere", trainable="lora", lora=lora))
    found = {name for name, module in lm.named_modules() if isinstance(module, LoraLinear)}
    assert found == {
        f"model.layers.{layer}.{module}"
        for layer in layers or range(4)
        for module in ("self_attn.q_proj", "mlp.down_proj")
    }
    for name, parameter in lm.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or is_router(name)), name


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        (LoraConfig(targets=("nonsense",)), "nonsense"),
        (LoraConfig(targets=("q_proj", "nonsense")), "nonsense"),
        (LoraConfig(layers=(7,)), "7"),
        (LoraConfig(layers=(0, 7)), "7"),
    ],
)
def test_lora_that_does_not_fit_the_network_is_refused(tmp_path, lora, named):
    lm = tiny_lm()
    before = copy.deepcopy(lm.state_dict())
    with pytest.raises(TrainingError, match=f"LoRA does not fit this network: .*{named}"):
        choose_trainable(lm, config(tmp_path, trainable="lora", lora=lora))
    assert set(lm.state_dict()) == set(before)


def test_a_network_without_anything_trained_saves_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="neither routers nor LoRA"):
        save_trained(torch.nn.Linear(2, 2), tmp_path / "adapter", lora_scale=1.0, metadata={})
    assert not (tmp_path / "adapter").exists()
