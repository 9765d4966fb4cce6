import pytest
from needle_memory import NEEDLES

import msa
from msa.evaluation.records import RecordLog
from msa.evaluation.types import Prediction


@pytest.fixture(scope="session")
def trained():
    """The model that comes with the package; tests must not change its weights."""
    return msa.load("msa-tiny", dtype="float32")


@pytest.fixture(scope="module")
def needle_folder(trained, tmp_path_factory):
    """A memory of a few needles."""
    folder = tmp_path_factory.mktemp("memories") / "needles"
    with msa.Memory.open(folder, trained) as memory:
        memory.add({"id": name, "text": text} for name, text in NEEDLES.items())
    return folder


class Way:
    """Answers with the ids of all documents it has taken in; once closed, it cannot."""

    def __init__(self, name):
        self.name, self.documents, self.batches, self.closed = name, {}, [], False

    def prepare(self, documents):
        assert not self.documents.keys() & documents.keys()
        self.documents |= documents
        self.batches.append(len(documents))

    def settle(self):
        self.settled = len(self.documents)

    def answer(self, question, max_new_tokens):
        assert not self.closed
        assert self.settled == len(self.documents)
        return Prediction(text=" ".join(self.documents))

    def resident_bytes(self):
        return 0

    def close(self):
        self.closed = True


@pytest.fixture
def made():
    """Every way that was made."""
    return []


@pytest.fixture
def make(made):
    def way(name):
        made.append(Way(name))
        return made[-1]

    return way


@pytest.fixture
def log(tmp_path):
    with RecordLog(tmp_path / "records.jsonl", {}) as log:
        yield log
