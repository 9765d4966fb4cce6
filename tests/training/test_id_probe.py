"""The probe that reads ids in the latents: its loss written out, whom it teaches, and that it stays out of the model."""

import pytest
import torch
from tiny_training import all_steps_batch, batches, config, learner, phase, weights

from msa.model import DocumentMemory
from msa.training.id_probe import PLACES, IdProbe, digits_of
from msa.training.objective import LossWeights, compute_losses
from msa.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch):
    monkeypatch.setattr("msa.training.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda *_: 1e9)


def test_digits_are_counted_from_the_first():
    assert digits_of(torch.tensor([1234567, 80])).tolist() == [[1, 2, 3, 4, 5, 6, 7], [8, 0, 10, 10, 10, 10, 10]]


def test_the_loss_is_the_mean_over_chunks_and_places():
    lm = learner(router_layers=[0, 1]).lm
    probe = IdProbe(lm.config)
    size = lm.config.num_key_value_heads, lm.config.head_dim
    values = {layer: torch.randn(3, *size) for layer in (0, 1)}
    memory = DocumentMemory(values, values, values, torch.tensor([0, 2, 3]))
    loss = probe(memory, torch.tensor([42, 7]))
    expected = []
    for chunk, number in ((0, "42"), (1, "42"), (2, "7")):
        joined = torch.cat([values[0][chunk].flatten(), values[1][chunk].flatten()])
        log_p = (probe.head.weight @ joined).view(PLACES, 11).log_softmax(1)
        digits = [int(digit) for digit in number] + [10] * (PLACES - len(number))
        expected += [-log_p[place, digit] for place, digit in enumerate(digits)]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_it_teaches_the_document_side_where_it_has_a_weight():
    model = learner()
    batch = all_steps_batch(model.protocol)
    prefix, probe = torch.tensor(model.protocol.prefix_ids), IdProbe(model.lm.config)
    without = compute_losses(model.lm, batch, prefix, LossWeights(), probe=probe)
    assert "id_probe" not in without.parts
    losses = compute_losses(model.lm, batch, prefix, LossWeights(id_probe=0.5), probe=probe)
    torch.testing.assert_close(losses.total, without.total + 0.5 * losses.parts["id_probe"])
    losses.parts["id_probe"].backward()
    assert model.lm.model.embed_tokens.weight.grad.abs().sum() > 0
    assert probe.head.weight.grad.abs().sum() > 0


def test_ids_that_it_cannot_read_are_refused():
    with pytest.raises(ValueError, match="the id probe reads 7 digits, id_digits is 8"):
        phase(id_digits=8, weights=LossWeights(id_probe=1.0))


def test_it_is_trained_resumed_and_not_part_of_the_model(tmp_path):
    def run_of(folder, model, **changes):
        run = config(folder, phase(4, weights=LossWeights(id_probe=1.0)), **changes)
        return Trainer(model, run, batches(model, run))

    whole, parts = learner(), learner()
    trainer = run_of(tmp_path / "whole", whole)
    before = trainer._step.id_probe.head.weight.detach().clone()
    assert trainer.run()
    assert not torch.equal(trainer._step.id_probe.head.weight, before)
    for _ in range(3):
        parts = learner()
        assert not run_of(tmp_path / "parts", parts, stop_after_minutes=1e-9).run()
    parts = learner()
    assert run_of(tmp_path / "parts", parts).run()
    expected = weights(whole.lm)
    assert all(torch.equal(value, expected[name]) for name, value in weights(parts.lm).items())
    assert not any("probe" in name for name in whole.lm.state_dict())
