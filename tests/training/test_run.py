"""What a run trains on, out of its files."""

from msa.training.data.samples import Sample, TrainingSet
from msa.training.run import without_held_out

CORPUS = {name: f"Text of {name}." for name in ("asked", "near", "held out", "both", "other")}


def test_documents_of_held_out_questions_do_not_fill_memories_up():
    """They would be learnt as wrong ones, and their closing ids too, before they are measured on."""
    training = TrainingSet(
        corpus=dict(CORPUS),
        samples=[Sample(query="1", positives=("asked",), documents=("near",)), Sample(query="2", positives=("both",))],
    )
    held_out = TrainingSet(corpus=dict(CORPUS), samples=[Sample(query="3", positives=("held out", "both"))])
    seen = without_held_out(training, held_out)
    assert list(seen.corpus) == ["asked", "near", "both", "other"], "what training asks about itself stays"
    assert seen.samples == training.samples
    assert list(training.corpus) == list(CORPUS)
