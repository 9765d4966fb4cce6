"""A checkpoint that quotes before it answers: the quotation comes apart from the answer, in generative mode alone."""

import pytest
from tiny import tiny_model

import msa
from msa.generation.decoding import Decoding
from msa.generation.types import TextPiece

DOCUMENTS = [{"id": "a", "text": "The moon is made of rock."}, {"id": "b", "text": "Cats sleep all day."}]
QUESTION = "What is the moon made of?"


@pytest.fixture
def memory(tmp_path):
    model = tiny_model(protocol={"quotation_end": "<|object_ref_end|>", "answer_lead": ""})
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add(DOCUMENTS)
        yield memory


@pytest.fixture
def writes(monkeypatch, memory):
    """Makes the model write a given answer, whatever it was asked."""
    protocol = memory.model.protocol

    def write(text):
        tokens = [*protocol.template_ids(text), protocol.answer_end_id]

        monkeypatch.setattr(Decoding, "_draw", staticmethod(lambda row, logits: tokens[len(row.generated)]))

    return write


def test_the_quotation_is_apart_from_the_answer(memory, writes):
    writes(" The moon is made of<|object_ref_end|> rock.")
    answer = memory.ask(QUESTION, retrieval="generative", max_rounds=0)
    assert answer.text == "rock."
    assert answer.quotation == "The moon is made of"
    events = memory.stream(QUESTION, retrieval="generative", max_rounds=0)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "rock."


def test_a_limit_inside_the_quotation_shows_nothing(memory, writes):
    writes(" The moon is made of<|object_ref_end|> rock.")
    answer = memory.ask(QUESTION, retrieval="generative", max_rounds=0, max_new_tokens=8)
    assert (answer.text, answer.quotation, answer.finish_reason) == ("", "", "length")


def test_routed_answers_have_no_quotation(memory, writes):
    writes(" It is rock.")
    answer = memory.ask(QUESTION, retrieval="routed")
    assert (answer.text, answer.quotation) == ("It is rock.", "")


def test_a_given_opening_is_left_to_the_model(memory):
    given = memory.ask(QUESTION, retrieval="generative", max_new_tokens=6, answer_lead="The moon is made of")
    free = memory.ask(QUESTION, retrieval="generative", max_new_tokens=6)
    assert (given.text, given.usage) == (free.text, free.usage)
