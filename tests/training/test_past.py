"""Documents of earlier steps in the memory: who is kept, what they change, and that a resumed run has them too."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SETS, all_steps_batch, batches, config, learner, phase, weights

from msa.model import DocumentMemory
from msa.training.objective import LossWeights, compute_losses, encode_batch
from msa.training.past import PastDocuments
from msa.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch):
    monkeypatch.setattr("msa.training.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda *_: 1e9)


def memory_of(values):
    """Documents of one chunk each, whose latents are these values."""
    rows = torch.tensor(values).view(-1, 1, 1)
    return DocumentMemory({0: rows}, {0: rows + 0.5}, {0: -rows}, torch.arange(len(values) + 1))


def test_the_last_documents_stay_in_their_order(tmp_path):
    past = PastDocuments()
    for first in range(0, 9, 3):
        past.add(memory_of([float(first + i) for i in range(3)]), limit=5)
    assert past.memory.keys[0].flatten().tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]
    assert past.memory.routing_keys[0].flatten().tolist() == [-4.0, -5.0, -6.0, -7.0, -8.0]
    past.save(tmp_path / "past.safetensors")
    again = PastDocuments()
    again.load(tmp_path / "past.safetensors", torch.device("cpu"))
    assert torch.equal(again.memory.values[0], past.memory.values[0])
    assert torch.equal(again.memory.chunk_offsets, past.memory.chunk_offsets)
    past.add(memory_of([1.0]), limit=0)
    assert past.memory is None
    past.save(tmp_path / "none.safetensors")
    again.load(tmp_path / "none.safetensors", torch.device("cpu"))
    assert again.memory is None


def test_past_documents_compete_and_get_no_gradient():
    model = learner(routing_bias=True)
    batch = all_steps_batch(model.protocol)
    prefix = torch.tensor(model.protocol.prefix_ids)
    others = all_steps_batch(model.protocol, seed=7)
    past, _ = encode_batch(model.lm, others.documents, with_closing=False)
    alone = compute_losses(model.lm, batch, prefix, LossWeights())
    beside = compute_losses(model.lm, batch, prefix, LossWeights(), past=past)
    count = past.num_documents
    assert beside.memory.num_documents == len(batch.numbers)
    assert beside.parts["routing"] > alone.parts["routing"]
    for before, after in zip(alone.routing, beside.routing, strict=True):
        for layer, routing in after.items():
            own, added = routing.doc_scores.split([len(batch.numbers), count], dim=1)
            if layer == min(after):  # above it, what was selected has changed what routes
                torch.testing.assert_close(own, before[layer].doc_scores)
            assert torch.isfinite(added).all()
            assert int(routing.doc_indices.max()) >= len(batch.numbers)

    queue = PastDocuments()
    queue.add(past, limit=100)
    assert not any(tensor.requires_grad for tensor in queue.memory.tensors().values())


def run_of(folder, model, steps=6, **changes):
    run = config(folder, phase(steps, past_documents=4), **changes)
    return Trainer(model, run, batches(model, run, *SETS))


def test_a_stopped_run_goes_on_with_the_same_past(tmp_path):
    whole, plain = learner(), learner()
    assert run_of(tmp_path / "whole", whole).run()
    without = config(tmp_path / "plain", phase(6))
    assert Trainer(plain, without, batches(plain, without, *SETS)).run()
    for _ in range(5):
        parts = learner()
        assert not run_of(tmp_path / "parts", parts, stop_after_minutes=1e-9).run()
    parts = learner()
    assert run_of(tmp_path / "parts", parts).run()
    expected, other = weights(whole.lm), weights(plain.lm)
    assert all(torch.equal(value, expected[name]) for name, value in weights(parts.lm).items())
    assert any(not torch.equal(value, expected[name]) for name, value in other.items())
    kept = load_file(tmp_path / "parts" / "checkpoints" / "step-00000006" / "past-0.safetensors")
    assert kept["chunk_offsets"].shape[0] - 1 == 4


def test_chunks_of_another_size_end_the_past(tmp_path):
    model = learner()
    phases = (phase(2, past_documents=4, chunk_size=4), phase(1, past_documents=9, chunk_size=8))
    run = config(tmp_path, *phases)
    trainer = Trainer(model, run, batches(model, run, *SETS))
    assert trainer.run()
    assert trainer._past.memory.num_documents == 3  # the last step's own
