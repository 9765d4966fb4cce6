"""What saving a checkpoint says."""

import logging

import pytest
from accelerate import Accelerator
from torch import nn

from msa.training.checkpoints import Checkpoints


class Tied(nn.Module):
    """Two layers that share their weight, as an embedding and a head do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(Tied())
    yield accelerator
    accelerator.free_memory()


def test_a_save_does_not_warn_of_weights_that_are_tied(tmp_path, accelerator, caplog):
    caplog.set_level(logging.INFO)
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint={})
    checkpoints.save(accelerator, 1, lambda folder: None)
    assert checkpoints.steps() == [1]
    assert caplog.messages == []
    logging.getLogger("accelerate.utils.other").warning("said elsewhere")
    assert caplog.messages == ["said elsewhere"]
