"""What saving a checkpoint says."""

import logging

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from msa.errors import TrainingError
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


def test_processes_that_do_not_share_the_folder_are_told(tmp_path, accelerator):
    """As on several machines whose disks are their own."""
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint={})
    checkpoints.save(accelerator, 3, lambda folder: None)
    accelerator.gather = lambda newest: torch.cat([newest, torch.zeros_like(newest)])
    with pytest.raises(TrainingError, match="'out' must be a folder they share"):
        checkpoints.resume(accelerator, lambda folder: None)


def test_a_save_does_not_warn_of_weights_that_are_tied(tmp_path, accelerator, caplog):
    caplog.set_level(logging.INFO)
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint={})
    checkpoints.save(accelerator, 1, lambda folder: None)
    assert checkpoints.steps() == [1]
    assert caplog.messages == []
    logging.getLogger("accelerate.utils.other").warning("said elsewhere")
    assert caplog.messages == ["said elsewhere"]
