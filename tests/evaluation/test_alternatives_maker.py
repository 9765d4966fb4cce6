"""What a run makes once, however often it makes a way: a trained network, kept in its folder."""

import pytest
import torch
from tiny import tiny_model

from msa.errors import CheckpointError
from msa.evaluation.alternatives import WayMaker, registry
from msa.evaluation.alternatives.memn2n import MemN2N, MemN2NConfig
from msa.evaluation.types import Question
from msa.training.data.needles import NOT_IN_MEMORY

DOCUMENTS = {"a": "The sky is blue.", "b": "Here we go."}


@pytest.fixture
def trainings(monkeypatch):
    """Training that takes no time and gives another network each time; what was trained so far."""
    trained = []

    def train(worlds, training):
        torch.manual_seed(len(trained))
        config = MemN2NConfig(pointer=training.network.pointer, size=4, buckets=8)
        trained.append(MemN2N(config, () if config.pointer else [NOT_IN_MEMORY, "blue"]))
        return trained[-1]

    monkeypatch.setattr(registry, "train_memn2n", train)
    return trained


@pytest.mark.parametrize("name", ["memn2n", "memn2n-pointer"])
def test_a_network_is_trained_once_for_all_ways_of_a_run_and_for_those_that_go_on_with_it(name, trainings, tmp_path):
    make = WayMaker(tiny_model(), tmp_path / "run")
    first, second = make(name), make(name)
    assert len(trainings) == 1
    first.prepare(DOCUMENTS)  # the network is shared, what was taken in is not
    assert (len(first._sentences), len(second._sentences)) == (3, 1)
    assert first.answer(Question(id="1", question="What is blue?", answers=()), 5).text
    again = WayMaker(tiny_model(), tmp_path / "run")(name)
    assert len(trainings) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"{name}.safetensors"]
    wanted = trainings[0].state_dict()
    for way in (first, second, again):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in way.network.state_dict().items())


def test_each_way_has_a_network_of_its_own_and_others_train_none(trainings, tmp_path):
    make = WayMaker(tiny_model(), tmp_path)
    make("full")
    assert not trainings
    assert not list(tmp_path.iterdir())
    assert make("memn2n-pointer").network.config.pointer
    assert not make("memn2n").network.config.pointer
    assert len(trainings) == 2


def test_a_damaged_network_is_named_and_not_trained_over(trainings, tmp_path):
    (tmp_path / "memn2n.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"memn2n\.safetensors"):
        WayMaker(tiny_model(), tmp_path)("memn2n")
    assert not trainings


def test_an_unknown_way_is_refused_as_ever(tmp_path):
    with pytest.raises(ValueError, match="no alternative 'oracle'"):
        WayMaker(tiny_model(), tmp_path)("oracle")
