import json
import shutil
from dataclasses import dataclass

import pytest
from tiny import tiny_model

from msa.cli.main import main

RECORDS = [
    {"id": "moon", "text": "The moon orbits the earth.", "metadata": {"lang": "en", "title": "Moon", "year": 2024}},
    {"id": "sonne", "text": "Die Sonne ist ein Stern.", "metadata": {"lang": "de", "path": "texte/sonne.md"}},
    {"id": "bridge", "text": "The bridge was opened in 1932.", "metadata": {"lang": "en", "year": 1932}},
]


@dataclass
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def msa(capsys):
    """Run a command in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_model(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def records_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("input") / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return file


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, model_folder, records_file):
    folder = tmp_path_factory.mktemp("memories") / "made"
    assert main(["add", str(folder), str(records_file), "--model", str(model_folder)]) == 0
    return folder


@pytest.fixture
def memory(made_once, tmp_path):
    """A memory of three documents that a test may change."""
    return shutil.copytree(made_once, tmp_path / "memory")
