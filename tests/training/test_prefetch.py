"""Batches from worker processes: the very same as without, whatever becomes of the workers."""

import logging
import multiprocessing
import os
import signal
import time
from dataclasses import fields, is_dataclass, replace
from multiprocessing.connection import wait

import pytest
import torch
from tiny_training import CORPUS, ONE_HOP, TWO_HOPS, UNANSWERABLE, config, learner, weights

from msa.training import prefetch
from msa.training.batches import Batches, FileSource
from msa.training.config import FileData, Phase
from msa.training.data.samples import Sample, TrainingSet
from msa.training.prefetch import Prefetched
from msa.training.trainer import Trainer

SAMPLES = [
    ONE_HOP,
    TWO_HOPS,
    UNANSWERABLE,
    Sample(query="When does rain fall?", positives=("rain",), answer="In May"),
    Sample(query="What do cats do?", positives=("cats",), answer="Sleep"),
]
DATA = FileData(paths=("unused",), documents=3, questions=2, mined_negatives=1)


@pytest.fixture(scope="module")
def model():
    return learner()


@pytest.fixture
def opened():
    """Wraps batches, and ends their workers after the test."""
    made = []

    def opened(inner, run, **options):
        made.append(Prefetched(inner, run, **{"workers": 2, **options}))
        return made[-1]

    yield opened
    for each in made:
        each.close()


def run_of(folder, **changes):
    phases = [Phase(name=name, steps=3, learning_rate=3e-3, files=DATA, id_digits=2) for name in ("first", "second")]
    return config(folder, *phases, **{"refresh_every": 2, "micro_batches": 2, **changes})


def batches_of(model, run, kind=Batches, corpus=CORPUS):
    training_set = TrainingSet(corpus=dict(corpus), samples=SAMPLES)
    return kind(run, model.protocol, [FileSource(training_set, DATA, run.seed) for _ in run.phases])


def plain(value):
    """A batch as lists that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in fields(value)]
    return [plain(item) for item in value] if isinstance(value, list) else value


class Signed(Batches):
    """Batches that name the process they were made in."""

    def batch(self, step, micro):
        return replace(super().batch(step, micro), numbers=[step, micro, os.getpid()])


@pytest.mark.parametrize("ahead", [1, 5, 100])
def test_batches_are_those_without_workers_in_the_order_asked(tmp_path, model, opened, ahead):
    run = run_of(tmp_path)
    batches, alone = opened(batches_of(model, run), run, ahead=ahead), batches_of(model, run)
    order = [(step, micro) for step in range(run.total_steps) for micro in range(2)]
    for step, micro in [*order, (1, 1), (0, 0)]:
        assert plain(batches.batch(step, micro)) == plain(alone.batch(step, micro))
    assert batches.sources[1].training_set.samples == SAMPLES


def test_workers_make_them(tmp_path, model, opened):
    run = run_of(tmp_path)
    batches = opened(batches_of(model, run, Signed), run)
    made = [batches.batch(step, micro).numbers for step in range(6) for micro in range(2)]
    assert [(step, micro) for step, micro, _ in made] == [(step, micro) for step in range(6) for micro in range(2)]
    assert os.getpid() not in {process for *_, process in made}
    assert opened(batches_of(model, run, Signed), run, workers=0).batch(0, 0).numbers == [0, 0, os.getpid()]


def test_what_was_mined_reaches_the_workers(tmp_path, model, opened):
    run = run_of(tmp_path)
    batches, alone = opened(batches_of(model, run), run), batches_of(model, run)
    unmined = batches_of(model, run)
    differing = 0
    for step in range(run.total_steps):
        for each, folder in ((batches, "workers"), (alone, "alone")):
            each.refresh(model.lm, step, tmp_path / folder, writes=True)
        for micro in range(2):
            made = plain(batches.batch(step, micro))
            assert made == plain(alone.batch(step, micro))
            differing += made != plain(unmined.batch(step, micro))
    assert differing > 4


def test_a_run_ends_with_the_weights_of_one_without_workers(tmp_path, plain_log, opened):
    trained = []
    for workers in (0, 2):
        model, run = learner(), run_of(tmp_path / str(workers))
        assert Trainer(model, run, opened(batches_of(model, run), run, workers=workers)).run()
        trained.append(weights(model.lm))
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_dead_workers_are_done_without(tmp_path, model, opened, caplog):
    run = run_of(tmp_path)
    batches, alone = opened(batches_of(model, run, Signed), run, ahead=2), batches_of(model, run)
    assert batches.batch(0, 0).numbers[-1] != os.getpid()
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, logger="msa.training.prefetch"):
        made = [batches.batch(step, 0) for step in range(1, 6)]
    assert [batch.numbers[-1] for batch in made] == [os.getpid()] * 5
    assert [plain(batch.rows) for batch in made] == [plain(alone.batch(step, 0).rows) for step in range(1, 6)]
    assert sum("going on without them" in record.message for record in caplog.records) == 1


class Hanging(Signed):
    """Hangs in a worker from the second step on."""

    trainer = os.getpid()

    def batch(self, step, micro):
        if step and os.getpid() != self.trainer:
            time.sleep(600)
        return super().batch(step, micro)


def test_hanging_workers_are_done_without_and_ended(tmp_path, model, opened, monkeypatch):
    run = run_of(tmp_path)
    batches = opened(batches_of(model, run, Hanging), run)
    assert batches.batch(0, 0).numbers[-1] != os.getpid()
    workers = multiprocessing.active_children()
    assert workers
    monkeypatch.setattr(prefetch, "_PATIENCE_S", 0.3)
    assert batches.batch(1, 0).numbers == [1, 0, os.getpid()]
    for worker in workers:
        # not by is_alive(): the executor's own thread may have collected the process first, and then it says yes
        assert wait([worker.sentinel], timeout=10)


def test_a_mistake_in_the_data_is_not_taken_for_a_worker_s(tmp_path, model, opened, caplog):
    run = run_of(tmp_path, max_document_tokens=40)
    batches = opened(batches_of(model, run, corpus={name: f"{text} " * 40 for name, text in CORPUS.items()}), run)
    with pytest.raises(ValueError, match=r"document '\w+' has \d+ tokens .* raise max_document_tokens"):
        batches.batch(0, 0)
    assert not caplog.records


def test_held_out_batches_are_drawn_once_for_each_phase(tmp_path, model, opened):
    run = run_of(tmp_path)
    inner = batches_of(model, run)
    batches, source = opened(inner, run, workers=0), inner.sources[0]
    first, second = run.phases
    drawn = batches.held_out(source, first, 0)
    assert batches.held_out(source, first, 0) is drawn
    assert plain(drawn) == plain(inner.held_out(source, first, 0))
    others = [batches.held_out(source, second, 0), batches.held_out(source, first, 1)]
    others.append(batches.held_out(inner.sources[1], first, 0))
    assert all(other is not drawn for other in others)


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 2, "ahead": 0}])
def test_numbers_that_cannot_be_are_refused(tmp_path, model, options):
    run = run_of(tmp_path)
    with pytest.raises(ValueError, match="prefetching needs"):
        Prefetched(batches_of(model, run), run, **options)
