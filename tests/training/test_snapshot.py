"""The corpus as encoded during training: what is mined from it, latents of frozen documents, and resumed runs."""

from itertools import pairwise

import pytest
import torch
from tiny_training import CORPUS, ONE_HOP, TWO_HOPS, UNANSWERABLE, config, learner, weights

from msa.errors import TrainingError
from msa.training.batches import Batches, FileSource
from msa.training.config import FileData, Phase
from msa.training.data.copies import CopyConfig
from msa.training.data.samples import Sample, TrainingSet
from msa.training.snapshot import Snapshot, take_snapshot
from msa.training.trainer import Trainer

SAMPLES = [
    ONE_HOP,
    TWO_HOPS,
    UNANSWERABLE,
    Sample(query="When does rain fall?", positives=("rain",), answer="In May", source="one"),
    Sample(query="When does snow fall?", positives=("snow",), answer="In January", source="one"),
    Sample(query="What do cats do?", positives=("cats",), answer="Sleep", source="one"),
]
SET = TrainingSet(corpus=dict(CORPUS), samples=SAMPLES)


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch):
    monkeypatch.setattr("msa.training.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda *_: 1e9)


def snapshot_of(model, **changes):
    options = {
        "step": 0,
        "numbers": [5, 17, 3, 88, 9, 41],
        "places": range(len(SAMPLES)),
        "negatives": 2,
        "bucket_tokens": 60,
        "keep_latents": True,
        **changes,
    }
    return take_snapshot(model.lm, model.protocol, SET, **options)


@pytest.mark.parametrize("negatives", [1, 3, 99])
@pytest.mark.parametrize("bucket_tokens", [1, 60, 10_000], ids="bucket-{}".format)
def test_mined_negatives_are_the_best_wrong_documents_of_each_question_alone(negatives, bucket_tokens):
    model = learner()
    snapshot = snapshot_of(model, negatives=negatives, bucket_tokens=bucket_tokens)
    names = list(CORPUS)
    prefix = model.lm.encode_prefix(torch.tensor(model.protocol.prefix_ids))
    for place, sample in enumerate(SAMPLES):
        turn = model.protocol.question_turn(sample.query)
        with torch.no_grad():
            parts = [
                model.lm.encode_documents(torch.tensor([ids]), torch.tensor([len(ids)]))
                for ids in (model.protocol.document_ids(snapshot.numbers[name], CORPUS[name]) for name in names)
            ]
            memory = type(parts[0]).concatenate(parts)
            routing = model.lm.route(
                torch.tensor([turn.ids]), memory, routing_mask=torch.tensor([turn.marked]), prefix=prefix
            )
        scores = torch.stack([layer.doc_scores[0] for layer in routing.values()]).mean(0)
        ranked = [names[index] for index in scores.argsort(descending=True).tolist()]
        assert snapshot.mined[place] == tuple(name for name in ranked if name not in sample.positives)[:negatives]


def test_latents_are_those_of_documents_encoded_alone():
    model = learner()
    latents = snapshot_of(model).latents(["snow", "ada"])
    assert latents.num_documents == 2
    ids = model.protocol.document_ids(88, CORPUS["snow"])
    with torch.no_grad():
        alone = model.lm.encode_documents(torch.tensor([ids]), torch.tensor([len(ids)]))
    count = alone.chunk_offsets[-1]
    for layer in model.lm.config.router_layers:
        for table in ("keys", "values", "routing_keys"):
            got = getattr(latents, table)[layer][:count]
            torch.testing.assert_close(got, getattr(alone, table)[layer], atol=1e-5, rtol=1e-4)


def test_a_snapshot_is_read_back_as_it_was_written(tmp_path):
    snapshot = snapshot_of(learner())
    snapshot.save(tmp_path / "s" / "one.safetensors")
    again = Snapshot.load(tmp_path / "s" / "one.safetensors", torch.device("cpu"))
    assert (again.step, again.numbers, again.mined) == (snapshot.step, snapshot.numbers, snapshot.mined)
    for layer, keys in snapshot.memory.keys.items():
        assert torch.equal(again.memory.keys[layer], keys)
    assert torch.equal(again.memory.chunk_offsets, snapshot.memory.chunk_offsets)
    without = snapshot_of(learner(), keep_latents=False)
    without.save(tmp_path / "two.safetensors")
    assert Snapshot.load(tmp_path / "two.safetensors", torch.device("cpu")) == without


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_lost_or_damaged_snapshot_is_named(tmp_path, damage):
    path = tmp_path / "one.safetensors"
    snapshot_of(learner()).save(path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TrainingError, match=r"one\.safetensors cannot be read .* another 'out' folder"):
        Snapshot.load(path, torch.device("cpu"))


# in a run


class Noting(FileSource):
    """Notes which documents every step had in its memory."""

    def draw(self, number, seed):
        drawn = super().draw(number, seed)
        self.drawn = [*getattr(self, "drawn", []), drawn]
        return drawn


def run_of(tmp_path, model, *, steps=6, **changes):
    data = FileData(paths=("unused",), documents=3, questions=2, mined_negatives=1)
    phase = Phase(name="files", steps=steps, learning_rate=3e-3, files=data, id_digits=2, second_tries=0.5)
    run = config(tmp_path, phase, **{"refresh_every": 2, **changes})
    source = Noting(SET, data, run.seed)
    return Trainer(model, run, Batches(run, model.protocol, [source])), source


def test_a_run_reads_what_was_mined_last(tmp_path):
    model = learner()
    trainer, source = run_of(tmp_path, model)
    assert trainer.run()
    kept = sorted((tmp_path / "snapshots").iterdir())
    assert [path.name for path in kept] == [f"step-{step:08d}.safetensors" for step in (0, 2, 4)]
    mined = [Snapshot.load(path, torch.device("cpu")).mined for path in kept]
    for number, drawn in enumerate(source.drawn):
        for sample in drawn.samples:
            place = next(i for i, other in enumerate(SAMPLES) if other.query == sample.query)
            assert sample.documents == mined[number // 2][place]
            assert set(sample.documents) <= set(drawn.corpus)
    assert any(before != after for before, after in pairwise(mined))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stopped_run_goes_on_to_the_very_same_weights(tmp_path, frozen):
    whole = learner()
    assert run_of(tmp_path / "whole", whole, freeze_documents=frozen, refresh_every=4)[0].run()
    parts = learner()
    changes = {"freeze_documents": frozen, "refresh_every": 4, "stop_after_minutes": 1e-9}
    for _ in range(5):  # each stretch stops after its first step, twice within a snapshot's four
        parts = learner()
        assert not run_of(tmp_path / "parts", parts, **changes)[0].run()
    parts = learner()
    assert run_of(tmp_path / "parts", parts, freeze_documents=frozen, refresh_every=4)[0].run()
    expected = weights(whole.lm)
    assert all(torch.equal(value, expected[name]) for name, value in weights(parts.lm).items())


def test_frozen_documents_are_encoded_once_a_refresh_under_one_number(tmp_path):
    model = learner()
    calls = []
    encode = model.lm.encode_documents
    model.lm.encode_documents = lambda *args: calls.append(args) or encode(*args)
    trainer, _ = run_of(tmp_path, model, freeze_documents=True, refresh_every=3)
    batches = []
    collate = trainer._batches.batch
    trainer._batches.batch = lambda step, micro: batches.append(collate(step, micro)) or batches[-1]
    assert trainer.run()
    assert sum(args[0].shape[0] for args in calls) == 2 * len(CORPUS)
    assert all(batch.documents == [] and batch.memory.num_documents == len(batch.numbers) for batch in batches)
    saved = Snapshot.load(tmp_path / "snapshots" / "step-00000003.safetensors", torch.device("cpu"))
    assert set(batches[4].numbers) <= set(saved.numbers.values())


def test_old_snapshots_are_deleted(tmp_path):
    trainer, _ = run_of(tmp_path, learner(), steps=20, checkpoint_every=2, keep_checkpoints=1)
    assert trainer.run()
    steps = [int(path.stem.removeprefix("step-")) for path in (tmp_path / "snapshots").iterdir()]
    assert max(steps) == 18
    assert min(steps) >= 10


@pytest.mark.parametrize(("every", "expected"), [(10**6, {0: 12}), (4, {0: 8, 4: 4})])
def test_no_negatives_are_mined_for_questions_after_the_phase(tmp_path, monkeypatch, every, expected):
    asked = {}

    def noting(*given, step, places, **options):
        asked[step] = len(places)
        return take_snapshot(*given, step=step, places=places, **options)

    monkeypatch.setattr("msa.training.batches.take_snapshot", noting)
    model = learner()
    data = FileData(paths=("unused",), documents=3, questions=2, mined_negatives=1)
    one = Phase(name="one", steps=6, learning_rate=3e-3, files=data, id_digits=2)
    run = config(
        tmp_path, one, Phase(name="none", steps=9, learning_rate=3e-3, copies=CopyConfig()), refresh_every=every
    )
    batches = Batches(run, model.protocol, [FileSource(SET, data, run.seed), None])
    for step in range(run.total_steps):
        batches.refresh(model.lm, step, tmp_path / "snapshots", writes=True)
    assert asked == expected


def test_mining_needs_to_know_how_often(tmp_path):
    with pytest.raises(ValueError, match="say how often with refresh_every"):
        run_of(tmp_path, learner(), refresh_every=0)
