"""Files of question sets and of training samples, written as a test wants them, and what their readers say to them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from msa.errors import EvaluationError, TrainingDataError
from msa.evaluation.sets import read_question_set
from msa.training.data.formats import read_training_set


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    """Relative paths are in the test's own folder, for every test of a module that imports this."""
    monkeypatch.chdir(tmp_path)


def write(path: str, *lines: Any) -> None:
    """A file of lines: bytes and texts as they are, anything else as JSON."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    texts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    with open(path, "wb") as file:
        file.write(b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts))


def refused_questions(path: str, *args: Any, **options: Any) -> str:
    """Why a question set cannot be read."""
    with pytest.raises(EvaluationError) as caught:
        read_question_set(path, *args, **options)
    return str(caught.value)


def refused_samples(*paths: str, **options: Any) -> str:
    """Why a training set cannot be read."""
    with pytest.raises(TrainingDataError) as caught:
        read_training_set(paths, **options)
    return str(caught.value)
