"""The stages of recipes/stages.py are configurations that ``msa train`` reads back unchanged."""

import json
from pathlib import Path

import pytest
from recipe_files import recipe
from tiny_training import learner

from msa.errors import TrainingDataError
from msa.training.config import TrainConfig
from msa.training.data.formats import read_training_set
from msa.training.run import sources_of


@pytest.mark.parametrize("name", ["warm_up", "pretrain", "sft_8k", "sft_64k", "chains", "lora"])
def test_a_stage_survives_yaml(name, tmp_path):
    stage = recipe("stages").STAGES[name](str(tmp_path), "out")
    path = tmp_path / "stage.yaml"
    path.write_text(stage.to_yaml())
    assert TrainConfig.from_yaml(path) == stage


def test_the_papers_weights():
    stages = recipe("stages").STAGES
    warm_up, pretrain = (stages[name]("data", "out").phases[0] for name in ("warm_up", "pretrain"))
    assert (warm_up.weights.ids, warm_up.weights.routing, warm_up.learning_rate) == (0.1, 1.0, 1e-4)
    assert (pretrain.weights.ids, pretrain.weights.routing, pretrain.learning_rate) == (1.0, 0.1, 6e-6)


def test_a_stage_reads_what_the_builder_writes(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "a", "text": "The moon is rock."}) + "\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({"query": "What is the moon?", "positives": ["a"]}) + "\n")
    files = recipe("stages").STAGES["sft_8k"](str(tmp_path), "out").phases[0].files
    assert len(read_training_set([Path(p) for p in files.paths], corpus=[Path(p) for p in files.corpus])) == 1


def test_chains_train_on_questions_of_several_hops_alone(tmp_path):
    corpus = [{"id": name, "text": f"About {name}."} for name in "abc"]
    samples = [
        {"query": "one?", "positives": ["a"], "answer": "x"},
        {"query": "two?", "positives": ["a", "b"], "hops": [["a"], ["b"]], "answer": "y"},
    ]
    for name, records in (("corpus", corpus), ("train", samples), ("validation", samples), ("test", samples[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stage = recipe("stages").STAGES["chains"](str(tmp_path), "out")
    for sources in sources_of(learner(), stage):
        drawn = [sample.query for number in range(4) for sample in sources[0].draw(number, "s").samples]
        assert set(drawn) == {"two?"}
    (tmp_path / "validation.jsonl").write_text(json.dumps(samples[0]) + "\n")
    with pytest.raises(TrainingDataError, match=r"no sample in .*validation\.jsonl has 2 retrieval steps or more"):
        sources_of(learner(), stage)
