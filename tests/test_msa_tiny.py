"""The tiny model that comes with the package, end to end: routes, writes ids, reads, hops, refuses, answers, streams.

All words, numbers and sentences here are of the side that training never saw.
"""

from importlib.resources import files
from pathlib import Path

import pytest

import msa
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words

FOLDER = Path(str(files("msa").joinpath("models", "msa-tiny")))
QUESTIONS = 60


@pytest.fixture(scope="module")
def model():
    return msa.load("msa-tiny")


@pytest.fixture(scope="module")
def world():
    worlds = NeedleWorlds(*needle_words(held_out=True), haystack_sentences(held_out=True))
    config = NeedleConfig(documents=2 * QUESTIONS, questions=QUESTIONS, max_filler=60, two_hop=0.25, unanswerable=0.25)
    return worlds.world(config, "tests of msa-tiny")


@pytest.fixture(scope="module")
def memory(model, world, tmp_path_factory):
    with msa.Memory.open(tmp_path_factory.mktemp("tiny") / "memory", model=model) as memory:
        memory.add([{"id": name, "text": text} for name, text in world.corpus.items()])
        yield memory


@pytest.fixture(scope="module")
def answers(memory, world):
    return dict(zip(world.samples, memory.ask_many([s.query for s in world.samples]), strict=True))


def rate(answers, kind, right):
    chosen = [right(sample, answer) for sample, answer in answers.items() if sample.source.startswith(kind)]
    assert len(chosen) >= 10
    return sum(chosen) / len(chosen)


def answered(sample, answer):
    return answer.text == sample.answer


def retrieved(sample, answer):
    return [tuple(found.retrieved) for found in answer.rounds if found.retrieved] == list(sample.steps)


def test_it_is_small_and_comes_with_a_card(model):
    assert sum(parameter.numel() for parameter in model.lm.parameters()) < 8e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "recipes/tiny.py" in card


def test_it_finds_the_right_documents_and_answers(answers):
    assert rate(answers, "needle/", answered) >= 0.8
    plain = {s: a for s, a in answers.items() if s.source.split("/")[1] in ("word", "number", "uuid")}
    assert rate(plain, "needle/", answered) >= 0.9
    assert rate(plain, "needle/", retrieved) >= 0.9


def test_it_follows_two_hops(answers):
    assert rate(answers, "needle/two-hop", answered) >= 0.8


def test_it_says_what_is_not_in_memory(answers):
    assert rate(answers, "needle/unanswerable", answered) >= 0.8
