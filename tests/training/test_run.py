"""What a run trains on, out of its files."""

from dataclasses import replace

from msa.training.batches import FileSource, questions_before
from msa.training.config import FileData, Phase, TrainConfig
from msa.training.data.samples import Sample, TrainingSet
from msa.training.run import without_answers

CORPUS = {name: f"Text of {name}." for name in ("asked", "near", "held out", "both", "other")}


def test_documents_of_held_out_questions_do_not_fill_memories_up():
    """They would be learnt as wrong ones, and their closing ids too, before they are measured on."""
    training = TrainingSet(
        corpus=dict(CORPUS),
        samples=[Sample(query="1", positives=("asked",), documents=("near",)), Sample(query="2", positives=("both",))],
    )
    held_out = TrainingSet(corpus=dict(CORPUS), samples=[Sample(query="3", positives=("held out", "both"))])
    seen = without_answers(training, [held_out])
    assert list(seen.corpus) == ["asked", "near", "both", "other"], "what training asks about itself stays"
    assert seen.samples == training.samples
    assert list(training.corpus) == list(CORPUS)
    tested = TrainingSet(corpus=dict(CORPUS), samples=[Sample(query="4", positives=("other",))])
    assert list(without_answers(training, [held_out, tested]).corpus) == ["asked", "near", "both"]


def test_a_later_phase_asks_what_an_earlier_one_did_not():
    files = FileData(paths=("train.jsonl",), questions=4, documents=8)
    one = Phase(name="one", steps=3, learning_rate=1.0, files=files)
    others = Phase(name="others", steps=5, learning_rate=1.0, files=replace(files, paths=("others.jsonl",)))
    two = Phase(name="two", steps=2, learning_rate=1.0, files=replace(files, documents=16))
    config = TrainConfig(out="x", phases=(one, others, two, two), micro_batches=2)
    assert [questions_before(config, index) for index in range(4)] == [0, 0, 24, 40]
    samples = [Sample(query=str(number), positives=("a",)) for number in range(50)]
    whole = TrainingSet(corpus={"a": "Text."}, samples=samples)

    def asked(index, first):
        source = FileSource(whole, config.phases[index].files, 0, first)
        steps = range(config.phases[index].steps * config.micro_batches)
        return [sample.query for number in steps for sample in source.draw(number, "s").samples]

    assert len({*asked(0, 0), *asked(2, 24)}) == 24 + 16
    assert asked(2, 24) != asked(2, 0)
