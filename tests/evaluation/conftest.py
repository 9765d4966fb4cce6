import pytest
from needle_memory import NEEDLES

import msa


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
