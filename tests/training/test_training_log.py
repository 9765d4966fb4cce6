"""The record of a run: lines that survive kills and resumptions, and a picture of them."""

import json

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import config, phase

from msa.training.config import FileData, Phase
from msa.training.data.needles import NeedleConfig
from msa.training.log import TrainingLog, draw_curves, matmul_peak, operations_per_token, read_log

LOSSES = {"loss": 3.0, "ids": 2.0, "answer": 1.0}


@pytest.fixture
def network():
    """One that has 12 weights besides its embedding."""
    module = torch.nn.Linear(3, 4, bias=False)
    module.embed_tokens = torch.nn.Embedding(7, 7)
    return module


def open_log(folder, network, **changes):
    return TrainingLog(folder, config(folder, phase(6), **changes), network)


def test_steps_are_written_as_often_as_asked_and_the_last_always(tmp_path, network):
    log = open_log(tmp_path / "new", network, log_every=4)
    for step in range(1, 7):
        log.step(step, "main", LOSSES, 0.5, 10)
    log.close()
    records = read_log(tmp_path / "new" / "log.jsonl")
    assert [record["step"] for record in records] == [4, 6]
    first = records[0]
    assert (first["phase"], first["loss"], first["loss/ids"], first["loss/answer"]) == ("main", 3.0, 2.0, 1.0)
    assert first["gradient_norm"] == 0.5
    assert first["tokens_per_second"] > 0
    # of 4 steps, then of 2, 10 tokens each
    for record in records:
        assert record["tokens_per_second"] * record["seconds_per_step"] == pytest.approx(10)
    # 6 · parameters · tokens, over what the machine can do
    assert first["utilisation"] == pytest.approx(6 * 12 * first["tokens_per_second"] / log._peak)


def test_losses_are_means_over_a_phase_s_steps_since_the_last_line(tmp_path, network):
    log = open_log(tmp_path, network, log_every=3)
    for step, loss in enumerate([1.0, 2.0, 6.0, 4.0, 7.0, 9.0], start=1):
        parts = {"loss": loss} if step % 2 else {"loss": loss, "ids": loss}
        log.step(step, "first" if step < 5 else "second", parts, 0.5, 10)
        if step == 2:
            log.metrics(step, {"ids_exact": 0.5})
    log.close()
    first, second = (record for record in read_log(tmp_path / "log.jsonl") if "loss" in record)
    assert (first["loss"], first["loss/ids"]) == (3.0, 2.0)
    assert (second["loss"], second["loss/ids"]) == (8.0, 9.0), "what the first phase had is no part of it"


@pytest.mark.parametrize(
    ("trained", "operations"),
    [
        ("", 6 * 3 * 8),  # all of three layers of 8 weights
        ("lora", 2 * (3 * 8 + 4) + 2 * (2 * 8 + 4) + 2 * 4),  # adapters of 2 weights in the upper two layers
        ("layers.2", 2 * 24 + 2 * 8 + 2 * 8),
        ("nothing", 2 * 24),
    ],
)
def test_operations_per_token(trained, operations):
    network = torch.nn.Module()
    network.embed_tokens = torch.nn.Embedding(7, 7)
    network.model = torch.nn.Module()
    network.model.layers = torch.nn.ModuleList(torch.nn.Linear(2, 4, bias=False) for _ in range(3))
    for layer in network.model.layers[1:] if trained == "lora" else ():
        layer.lora = torch.nn.Linear(2, 1, bias=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained in name)
    assert operations_per_token(network) == operations


def test_what_is_done_again_replaces_what_tensorboard_has(tmp_path, network):
    for done, loss in ((0, 1.0), (2, 5.0)):
        log = TrainingLog(tmp_path, config(tmp_path, phase(6)), network, done=done)
        for step in range(done + 1, 5):
            log.step(step, "main", {"loss": loss}, 0.5, 10)
        log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 5.0), (4, 5.0)]


def test_of_several_processes_the_peak_is_that_of_all(tmp_path, network, monkeypatch):
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda device, dtype: 100.0)
    run = config(tmp_path, phase(6))
    log = TrainingLog(tmp_path, run, network, processes=3)
    assert log._peak == 300.0
    log.close()


def test_an_evaluation_is_no_part_of_a_step_s_time(tmp_path, network):
    log = open_log(tmp_path, network, log_every=3)
    for step in range(1, 4):
        log.step(step, "main", LOSSES, 0.5, 10)
        if step == 2:
            log.metrics(step, {"ids_exact": 0.5})
    log.close()
    (record,) = [record for record in read_log(tmp_path / "log.jsonl") if "loss" in record]
    assert record["tokens_per_second"] * record["seconds_per_step"] == pytest.approx(10)


def test_everything_is_on_disk_before_the_log_is_closed(tmp_path, network):
    log = open_log(tmp_path, network)
    log.step(1, "main", LOSSES, 0.5, 10)
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1]
    log.close()


def test_a_torn_last_line_is_passed_over_and_swallows_nothing_of_a_resumed_run(tmp_path, network):
    log = open_log(tmp_path, network)
    log.step(1, "main", LOSSES, 0.5, 10)
    log.step(2, "main", LOSSES, 0.5, 10)
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [record["step"] for record in read_log(path)] == [1]
    resumed = open_log(tmp_path, network)
    for step in (2, 3):
        resumed.step(step, "main", {**LOSSES, "loss": 9.0}, 0.5, 10)
    resumed.close()
    assert [(record["step"], record["loss"]) for record in read_log(path)] == [(1, 3.0), (2, 9.0), (3, 9.0)]


def test_of_a_step_that_was_trained_twice_the_last_record_counts(tmp_path):
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5))]
    lines.insert(3, {"step": 3, "held_out/ids_exact": 0.5})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_log(path) == [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.5},
        {"step": 3, "held_out/ids_exact": 0.5},
        {"step": 3, "loss": 3.5},
    ]


def test_the_curves_are_a_picture_and_the_numbers_are_in_tensorboard(tmp_path, network):
    log = open_log(tmp_path, network)
    for step in (1, 2):
        log.step(step, "main", LOSSES, 0.5, 10)
        log.metrics(step, {"ids_exact": 0.5, "recall@1/mean": 0.25, "recall@1/layer 2": 0.1})
    log.close()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(10**6)) > 10
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("held_out/recall@1/mean")]
    assert points == [(1, 0.25), (2, 0.25)]
    assert {"loss", "loss/ids", "gradient_norm", "tokens_per_second"} <= set(board.Tags()["scalars"])


def test_without_any_record_there_is_no_picture(tmp_path, network):
    open_log(tmp_path, network).close()
    assert read_log(tmp_path / "log.jsonl") == []
    assert not (tmp_path / "curves.png").exists()


def test_held_out_metrics_alone_can_be_drawn(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "held_out/ids_exact": 0.5}\n')
    draw_curves(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_what_is_measured_on_training_data_is_called_so(tmp_path, network):
    log = open_log(tmp_path, network)
    log.metrics(1, {"ids_exact": 0.5}, held_out=False)
    log.close()
    (record,) = read_log(tmp_path / "log.jsonl")
    assert record == {"step": 1, "training/ids_exact": 0.5}
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_phase_of_files_without_others_to_evaluate_on_holds_nothing_out():
    def of_files(**paths):
        return Phase(name="files", steps=1, learning_rate=1.0, files=FileData(paths=("a.jsonl",), **paths))

    assert not of_files().holds_out
    assert of_files(held_out_paths=("b.jsonl",)).holds_out
    assert Phase(name="made up", steps=1, learning_rate=1.0, needles=NeedleConfig()).holds_out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_machine_s_peak_is_measured(dtype):
    assert 1e6 < matmul_peak(torch.device("cpu"), dtype, size=64) < 1e15
