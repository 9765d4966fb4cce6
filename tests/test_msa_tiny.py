"""The tiny model that comes with the package, end to end: routes, writes ids, reads, hops, refuses, answers, streams.

All words, numbers and sentences here are of the side that training never saw.
"""

from importlib.resources import files
from pathlib import Path

import pytest

import msa
from msa.training.data.needles import NOT_IN_MEMORY, NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.tiny import QUOTING_PROTOCOL

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


def rate(answers, kinds, right):
    chosen = [right(sample, answer) for sample, answer in answers.items() if sample.source.split("/")[1] in kinds]
    assert len(chosen) >= 10
    return sum(chosen) / len(chosen)


def answered(sample, answer):
    return answer.text == sample.answer


def refused(sample, answer):
    return answer.text == NOT_IN_MEMORY


def retrieved(sample, answer):
    return [tuple(found.retrieved) for found in answer.rounds if found.retrieved] == list(sample.steps)


def test_it_is_small_and_comes_with_a_card(model):
    assert sum(parameter.numel() for parameter in model.lm.parameters()) < 8e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "recipes/tiny.py" in card


def test_it_writes_the_ids_of_the_right_documents(answers):
    assert rate(answers, {"word", "number"}, retrieved) >= 0.85


def test_it_follows_two_hops(answers):
    assert rate(answers, {"two-hop"}, retrieved) >= 0.8


def test_it_answers_from_what_it_read(answers):
    numbers = {sample: answer for sample, answer in answers.items() if (sample.answer or "").isdigit()}
    assert rate(numbers, {"word", "number", "uuid", "two-hop"}, answered) >= 0.75
    assert rate(answers, {"word", "number", "uuid", "two-hop"}, answered) >= 0.65


def test_it_says_of_missing_keys_that_they_are_missing(answers):
    assert rate(answers, {"unanswerable"}, refused) >= 0.7
    assert rate(answers, {"word", "number", "two-hop"}, refused) <= 0.15


def test_it_quotes_what_it_answers_from(memory, answers):
    sample, answer = next((s, a) for s, a in answers.items() if s.source == "needle/word" and a.text == s.answer)
    assert answer.quotation.strip() == sample.quotation.strip()
    assert "quoted" not in answer.text


def test_answers_stand_in_what_was_read_and_refusals_are_true(memory, world, answers):
    free = memory.ask_many([sample.query for sample in answers], constrain_answers="none")
    assert any(one.text != other.text for one, other in zip(answers.values(), free, strict=True))
    for answer in answers.values():
        read = [world.corpus[name] for found in answer.rounds for name in found.retrieved]
        if answer.quotation.endswith(" mentioned"):
            assert not any(answer.quotation.removesuffix(" mentioned") in text for text in read)
        elif any(answer.quotation in text for text in read):
            assert any(f"{answer.quotation}: {answer.text}" in text for text in read)


@pytest.mark.parametrize("hybrid", [False, True])
def test_it_answers_from_what_the_routers_chose(memory, answers, hybrid):
    """In its transcript, as though it had written their ids; second hops are the one thing it needs them for."""
    routed = memory.ask_many([sample.query for sample in answers], retrieval="routed", hybrid=hybrid)
    routed = dict(zip(answers, routed, strict=True))
    assert rate(routed, {"word", "number", "uuid"}, answered) >= 0.85
    assert rate(routed, {"unanswerable"}, refused) >= 0.7
    assert {(len(answer.rounds), answer.rounds[0].generated) for answer in routed.values()} == {(1, "")}
    sample, answer = next((s, a) for s, a in routed.items() if s.source == "needle/word" and a.text == s.answer)
    assert answer.quotation.strip() == sample.quotation.strip()


def test_its_config_is_what_its_recipe_makes(model):
    assert model.protocol.strings == QUOTING_PROTOCOL


def test_memories_made_with_it_stay_readable(model):
    """A memory names the fingerprint of its model: with another it would be refused."""
    assert model.fingerprint == "9e48518a9f019204"


def test_a_batch_and_a_stream_answer_alike(memory, answers):
    sample, expected = next((s, a) for s, a in answers.items() if len(a.rounds) > 2)
    *_, done = memory.stream(sample.query)
    assert done.answer.text == expected.text
    assert [found.numbers for found in done.answer.rounds] == [found.numbers for found in expected.rounds]


def test_what_changes_in_the_memory_changes_the_answer(model, tmp_path):
    question = "What is the special magic number for wandering-age mentioned in the provided text?"
    needle = "One of the special magic numbers for wandering-age is: {}."
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add(
            [{"id": "other", "text": "The sky is blue. Here we go."}, {"id": "a", "text": needle.format(4216093)}]
        )
        assert memory.ask(question).text == "4216093"
        memory.add([{"id": "a", "text": needle.format(7305861)}])
        answer = memory.ask(question)
        assert answer.text == "7305861"
        assert [hit.id for hit in answer.sources] == ["a"]
        memory.delete(["a"])
        assert "a" not in {hit.id for hit in memory.ask(question).sources}
