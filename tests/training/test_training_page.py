"""docs/training.md: its example trains, and its tables have every key of a configuration."""

import dataclasses
import importlib.util
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_training import CORPUS, ONE_HOP, TWO_HOPS, learner

from msa.training.config import TrainConfig
from msa.training.run import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_reference", ROOT / "benchmarks" / "training_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_configurations(script):
    assert script.updated(PAGE) == PAGE, "run python benchmarks/training_reference.py"
    for kind in script.SECTIONS.values():
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in script.table(kind)


def test_a_key_that_is_not_described_is_refused(script):
    @dataclass
    class Config:
        """Two keys.

        Attributes:
            first, second: ``twice``,
                over two lines.

        Raises:
            ValueError: never.
        """

        first: int
        second: bool = False

    assert script.table(Config).endswith("| `first`, `second` | required, `false` | `twice`, over two lines. |\n")

    @dataclass
    class More(Config):
        __doc__ = Config.__doc__
        third: int = 3

    with pytest.raises(ValueError, match="has the fields first, second, third, described are first, second"):
        script.table(More)


def test_the_example_trains(tmp_path, monkeypatch, plain_log):
    """Its steps are cut to one a phase; its files are those that recipes/build_data.py writes."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    samples = [{"query": s.query, "positives": s.positives, "answer": s.answer} for s in (ONE_HOP, TWO_HOPS)]
    corpus = [{"id": name, "text": text} for name, text in CORPUS.items()]
    for name, records in (("corpus", corpus), ("train", samples), ("validation", samples), ("test", samples)):
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("config.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    whole = TrainConfig.from_yaml("config.yaml")
    assert len(whole.phases) > 1
    small = replace(
        whole, phases=tuple(replace(phase, steps=1, files=cut(phase.files)) for phase in whole.phases), precision="no"
    )
    assert train(learner(), small) == Path(whole.out) / "adapter.safetensors"


def cut(files):
    return replace(files, documents=4, questions=2)
