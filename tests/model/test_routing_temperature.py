"""τ of the routing loss and of weighed ids: the config and the tensor say the same, and a routing bias keeps its own."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_tokens, tiny_lm
from tiny_training import config

from msa.documents.batching import pad_right
from msa.model import MSAConfig, MSAForCausalLM
from msa.model.adapter import apply_adapter
from msa.model.routing_temperature import set_routing_temperature
from msa.training.run import begin_routing

IDS = torch.tensor(random_tokens(11, seed=3))


def set_it(lm, folder):
    set_routing_temperature(lm, 0.03)


def begin_training(lm, folder):
    begin_routing(lm, config(folder, routing_temperature=0.03))


def lay_an_adapter_over(lm, folder):
    name = "model.layers.2.self_attn.router_q_proj.0.weight"
    tensors = {name: lm.get_parameter(name).detach().clone()}
    save_file(tensors, folder / "adapter.safetensors", metadata={"routing_temperature": "0.03"})
    apply_adapter(lm, folder / "adapter.safetensors")


@torch.no_grad()
def asked(lm):
    return lm(IDS, memory=lm.encode_documents(*pad_right(random_tokens(9, 3, 14, 8, seed=1))))


def aux_loss(lm):
    memory = lm.encode_documents(*pad_right(random_tokens(9, 3, 14, 8, seed=1)))
    return lm(IDS, memory=memory, positives=[[2]]).aux_loss.detach()


@pytest.mark.parametrize("change", [set_it, begin_training, lay_an_adapter_over])
def test_it_changes_in_config_and_tensor_and_not_in_a_trained_bias(change, tmp_path):
    """A bias of strength α was trained with its own τ: another would change what the network says at once."""
    lm = tiny_lm(routing_bias=True)
    before, loss = asked(lm).logits, aux_loss(lm)
    change(lm, tmp_path)
    lm.save_pretrained(tmp_path / "saved")
    for network in (lm, MSAForCausalLM.from_pretrained(tmp_path / "saved").eval()):
        assert network.config.routing_temperature == pytest.approx(0.03)
        assert network.temperature.item() == pytest.approx(0.03)
        assert torch.equal(asked(network).logits, before)
        assert aux_loss(network) != loss


def test_a_bias_takes_the_temperature_of_the_config(tmp_path):
    """Its own where it names one, else that of the loss."""
    logits = {
        name: asked(tiny_lm(routing_bias=True, **settings)).logits
        for name, settings in {
            "both": {"routing_temperature": 0.2},
            "own": {"routing_bias_temperature": 0.2},
            "loss": {"routing_temperature": 0.2, "routing_bias_temperature": 0.1},
            "neither": {},
        }.items()
    }
    assert torch.equal(logits["both"], logits["own"])
    assert torch.equal(logits["loss"], logits["neither"])
    assert not torch.equal(logits["both"], logits["neither"])


def test_setting_it_twice_leaves_the_bias_with_its_first(tmp_path):
    lm = tiny_lm(routing_bias=True)
    for temperature in (0.03, 0.5):
        set_routing_temperature(lm, temperature)
    assert (lm.config.routing_temperature, lm.config.routing_bias_temperature) == (0.5, 0.1)
    assert MSAConfig().routing_bias_temperature is None
