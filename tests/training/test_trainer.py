"""The training loop: it learns, it goes on to the bit where it was killed or stopped, and it refuses what is wrong."""

import math
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_training import CORPUS, ONE_HOP, SETS, Repeating, batches, config, learner, phase, trainer, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

from msa.errors import TrainingError
from msa.training.data.samples import Sample, TrainingSet
from msa.training.log import read_log
from msa.training.metrics import evaluate
from msa.training.objective import LossWeights, compute_losses

TWO = TrainingSet(
    corpus={name: CORPUS[name] for name in ("ada", "snow")},
    samples=[ONE_HOP, Sample(query="When does it snow?", positives=("snow",), answer="January", source="snow")] * 2,
)


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch):
    """What test_training_log.py tests takes longer than these runs: the picture, and the measurement of the machine."""
    monkeypatch.setattr("msa.training.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda *_: 1e9)


def prefix_of(model):
    return torch.tensor(model.protocol.prefix_ids)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_same_weights(got, expected):
    assert set(got) == set(expected)
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert different == []


def run_to_end(folder, model=None, **changes):
    """The weights after an uninterrupted run."""
    model = model or learner()
    assert trainer(model, config(folder, **changes)).run()
    return weights(model.lm)


# learning


def test_two_documents_and_two_questions_are_learnt_by_heart(tmp_path):
    model = learner(routing_bias=True)
    run = config(
        tmp_path,
        phase(50, learning_rate=1e-2, weights=LossWeights(routing=0.3), final_share=0.5),
        warmup_steps=5,
        log_every=10,
        weight_decay=0.0,
        seed=7,
    )
    batch = batches(model, run, TWO).batch(0, 0)
    learnt = [pair for rows in batch.rows for pair in zip(rows.sources, map(bool, rows.positives), strict=True)]
    assert set(learnt) == {("one", True), ("one", False), ("snow", True), ("snow", False)}
    assert trainer(model, run, TWO, kind=Repeating).run()
    with torch.no_grad():
        parts = compute_losses(model.lm, batch, prefix_of(model), LossWeights()).parts
    assert parts["ids"] + parts["answer"] < 0.02
    metrics = evaluate(model.lm, [batch], prefix_of(model))
    assert metrics["ids_exact"] == metrics["answer_exact"] == metrics["recall@1/mean"] == 1.0
    assert not model.lm.training
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


# going on


def test_a_killed_and_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(tmp_path):
    seed = 0
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("train_in_processes.py")), "kill", str(tmp_path), str(seed)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert_same_weights(load_file(tmp_path / "killed.safetensors"), load_file(tmp_path / "whole.safetensors"))
    steps = [[record["step"] for record in read_log(tmp_path / name / "log.jsonl")] for name in ("killed", "whole")]
    assert steps[0] == steps[1] == list(range(1, steps[1][-1] + 1))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_after_some_time_goes_on_to_the_very_same_weights(tmp_path, optimizer):
    expected = run_to_end(tmp_path / "whole", optimizer=optimizer)
    stops = 0
    while True:
        model = learner(seed=stops)  # what a checkpoint does not hold would show
        running = trainer(model, config(tmp_path / "stopped", stop_after_minutes=1e-9, optimizer=optimizer))
        assert running.done == stops
        if running.run():
            break
        stops += 1
        assert model.lm.training
        assert checkpoints(tmp_path / "stopped")[-1] == f"step-{stops:08d}"
    assert stops == 3
    assert_same_weights(weights(model.lm), expected)


def test_weights_shared_by_embedding_and_head_are_resumed_as_one(tmp_path):
    settings = {"tie_word_embeddings": True}
    expected = run_to_end(tmp_path / "whole", learner(**settings))
    assert not trainer(learner(**settings), config(tmp_path / "stopped", stop_after_minutes=1e-9)).run()
    model = learner(seed=5, **settings)
    assert trainer(model, config(tmp_path / "stopped")).run()
    assert_same_weights(weights(model.lm), expected)
    assert model.lm.lm_head.weight is model.lm.model.embed_tokens.weight


def test_a_finished_run_is_not_trained_again(tmp_path):
    expected = run_to_end(tmp_path)
    again = learner(seed=1)
    running = trainer(again, config(tmp_path))
    assert running.done == 4
    assert running.run()
    assert_same_weights(weights(again.lm), expected)


def test_a_checkpoint_holds_every_weight_of_a_network_whose_projections_were_fused(tmp_path):
    model = learner()
    run_to_end(tmp_path, model)
    saved = load_file(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    assert_same_weights({name.removeprefix("lm."): value for name, value in saved.items()}, weights(model.lm))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"micro_batches": 2}, "micro_batches"),
        ({"phases": (phase(5),)}, "phases"),
        ({"weight_decay": 0.5, "max_grad_norm": 2.0}, "max_grad_norm, weight_decay"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_and_the_setting_named(stopped, change, named):
    with pytest.raises(TrainingError, match=rf"made with other settings \({named}\); use another 'out' folder"):
        trainer(learner(), config(stopped, **change))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run with a checkpoint after its first step; tests must not train on."""
    folder = tmp_path_factory.mktemp("stopped")
    assert not trainer(learner(), config(folder, stop_after_minutes=1e-9)).run()
    return folder


def test_what_does_not_change_the_result_may_differ_between_the_parts_of_a_run(stopped):
    run = config(stopped, checkpoint_every=3, keep_checkpoints=7, log_every=2, evaluate_every=3, stop_after_minutes=5.0)
    assert trainer(learner(), run).done == 1


# checkpoints on disk


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    broken = tmp_path / "checkpoints" / ".step-00000003.incomplete"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"torn")
    running = trainer(learner(), config(tmp_path, checkpoint_every=3))
    assert running.done == 0
    assert running.run()
    assert checkpoints(tmp_path) == ["step-00000003", "step-00000004"]  # the torn one was written anew


def test_old_checkpoints_are_deleted(tmp_path):
    run_to_end(tmp_path / "two", checkpoint_every=1)
    assert checkpoints(tmp_path / "two") == ["step-00000003", "step-00000004"]
    run_to_end(tmp_path / "one", checkpoint_every=2, keep_checkpoints=1)
    assert checkpoints(tmp_path / "one") == ["step-00000004"]


# losses that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_before_any_weight_changes(tmp_path):
    model = learner()
    run = config(tmp_path, phase(1), phase(2, weights=LossWeights(ids=1e300)), checkpoint_every=1)
    running = trainer(model, run)
    with pytest.raises(TrainingError, match="step 2: a loss or gradient is not finite .*nothing was changed"):
        running.run()
    assert running.done == 1
    resumed = learner(seed=1)
    assert trainer(resumed, run).done == 1
    assert_same_weights(weights(model.lm), weights(resumed.lm))
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1]


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    model = learner()
    model.lm.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = weights(model.lm)
    with pytest.raises(TrainingError, match="step 1: .*norm nan"):
        trainer(model, config(tmp_path)).run()
    assert_same_weights(weights(model.lm), before)


# one optimiser step


@pytest.fixture
def stepped():
    """(gradients, settings of the groups) as each optimiser step finds them."""
    seen = []

    def note(optimizer, *_):
        groups = optimizer.param_groups
        seen.append(
            (
                [None if p.grad is None else p.grad.clone() for g in groups for p in g["params"]],
                [dict(g, params=None) for g in groups],
            )
        )

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def gradients_by_hand(model, run, step, norm):
    """The mean gradient of a step's micro-batches, clipped; in the optimiser's order."""
    sums = {name: torch.zeros_like(p) for name, p in model.lm.named_parameters() if p.requires_grad}
    for micro in range(run.micro_batches):
        model.lm.zero_grad()
        batch = batches(model, run).batch(step, micro)
        compute_losses(model.lm, batch, prefix_of(model), run.phase_at(step)[1].weights).total.backward()
        for name, parameter in model.lm.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad / run.micro_batches
    model.lm.zero_grad()
    total = math.sqrt(sum(float((gradient**2).sum()) for gradient in sums.values()))
    factor = min(1.0, norm / total)
    order = sorted(sums.values(), key=lambda gradient: gradient.ndim <= 1)
    return [gradient * factor for gradient in order], total


@pytest.mark.parametrize("norm", [0.05, 1e6])
def test_micro_batches_take_one_step_along_their_mean_gradient_clipped(tmp_path, stepped, norm):
    run = config(tmp_path, phase(1), micro_batches=2, max_grad_norm=norm)
    expected, total = gradients_by_hand(learner(), run, 0, norm)
    assert trainer(learner(), run).run()
    [(got, _)] = stepped
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5 * min(norm, 1.0), rtol=1e-3)
    [record] = read_log(tmp_path / "log.jsonl")
    assert record["gradient_norm"] == pytest.approx(total, rel=1e-4)


def test_the_optimiser_follows_the_schedule_and_spares_vectors_from_decay(tmp_path, stepped):
    run = config(tmp_path, phase(2), phase(2, learning_rate=1e-4), weight_decay=0.3, betas=(0.7, 0.8))
    model = learner()
    assert trainer(model, run).run()
    for step, (_, groups) in enumerate(stepped):
        assert [group["lr"] for group in groups] == [run.learning_rate_at(step)] * 2
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
        assert {group["betas"] for group in groups} == {(0.7, 0.8)}
    assert len(stepped) == 4
    assert model.lm.temperature.item() == pytest.approx(model.lm.config.routing_temperature)


@pytest.mark.parametrize("option", ["checkpoint_documents", "checkpoint_layers", "freeze_documents"])
def test_the_run_s_memory_options_reach_the_objective(tmp_path, stepped, option):
    run = config(tmp_path, phase(1), **{option: True})
    expected, _ = gradients_by_hand(learner(), run, 0, run.max_grad_norm)
    model = learner()
    assert trainer(model, run).run()
    [(got, _)] = stepped
    if option == "freeze_documents":
        assert sum(gradient is None for gradient in got) == len(model.lm.config.router_layers)  # the documents' routers
    else:
        for mine, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-3)


def test_a_batch_that_no_trained_weight_has_a_part_in_is_passed_over(tmp_path):
    model = learner()
    before = weights(model.lm)
    last_steps = phase(2, final_share=1.0)  # nothing to route to, so nothing for the routers to learn
    assert trainer(model, config(tmp_path, last_steps, trainable="routers", weight_decay=0.0), SETS[0]).run()
    assert_same_weights(weights(model.lm), before)
    assert [record["gradient_norm"] for record in read_log(tmp_path / "log.jsonl")] == [0.0, 0.0]


def test_phases_may_differ_in_chunk_size_and_a_resumed_run_knows_it(tmp_path):
    phases = (phase(1, chunk_size=2), phase(1), phase(1, chunk_size=3), phase(1))
    model, sizes = learner(), []
    model.lm.model.register_forward_pre_hook(lambda *_: sizes.append(model.lm.config.chunk_size))
    assert trainer(model, config(tmp_path / "whole", *phases)).run()
    assert [size for size, _ in groupby(sizes)] == [2, 4, 3, 4]
    finished, seed = False, 0
    while not finished:
        again, seed = learner(seed=seed), seed + 1
        finished = trainer(again, config(tmp_path / "stopped", *phases, stop_after_minutes=1e-9)).run()
    assert_same_weights(weights(again.lm), weights(model.lm))


@pytest.mark.parametrize(("trainable", "expected"), [("all", 3), ("routers", 4)])
def test_a_finished_run_that_is_repeated_has_the_last_phase_s_chunk_size(tmp_path, trainable, expected):
    """An adapter's model keeps its own: the adapter does not say another."""
    run = config(tmp_path, phase(1, chunk_size=2), phase(1, chunk_size=3), trainable=trainable)
    for _ in range(2):
        model = learner()
        assert trainer(model, run).run()
        assert model.lm.config.chunk_size == expected


def test_half_precision_changes_the_losses_little_and_keeps_the_weights_in_float32(tmp_path):
    losses = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = learner()
        assert trainer(model, config(tmp_path / precision, precision=precision)).run()
        assert {parameter.dtype for parameter in model.lm.parameters()} == {torch.float32}
        losses.append([record["loss"] for record in read_log(tmp_path / precision / "log.jsonl")])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


# evaluation and the order of the data


def test_evaluation_happens_every_so_often_and_at_the_end_and_changes_nothing(tmp_path):
    expected = run_to_end(tmp_path / "plain")
    seen = []

    def metrics(lm, step):
        seen.append(step)
        lm.eval()
        torch.rand(3)
        lm.train()
        return {"recall@1/mean": step / 10}

    model = learner()
    assert trainer(model, config(tmp_path / "judged", evaluate_every=3), evaluate=metrics).run()
    assert seen == [3, 4]
    assert_same_weights(weights(model.lm), expected)
    held_out = [r for r in read_log(tmp_path / "judged" / "log.jsonl") if "loss" not in r]
    assert held_out == [{"step": 3, "held_out/recall@1/mean": 0.3}, {"step": 4, "held_out/recall@1/mean": 0.4}]


def test_micro_batches_must_divide_over_the_processes(tmp_path):
    class Two:
        num_processes = 2

    with pytest.raises(TrainingError, match="micro_batches 3 do not divide over 2 processes"):
        trainer(learner(), config(tmp_path, micro_batches=3), accelerator=Two())


def test_batches_are_a_function_of_their_step_alone():
    model, run = learner(), config("nowhere", phase(2), phase(2), micro_batches=2)

    def numbers(step, micro):
        return batches(model, run, SETS[0]).batch(step, micro).numbers

    drawn = [numbers(step, micro) for step in range(4) for micro in range(2)]
    assert drawn == [numbers(step, micro) for step in range(4) for micro in range(2)]
    assert len(set(map(tuple, drawn))) == len(drawn)
    assert batches(model, config("nowhere", phase(4), seed=1), SETS[0]).batch(0, 0).numbers not in drawn
