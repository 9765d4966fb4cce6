"""How an answer is to begin: given to the model where its own opening would stand, and not shown."""

import pytest
from tiny import tiny_model

import msa
from msa.generation.decoding import Decoding

DOCUMENTS = [{"id": "a", "text": "The moon is made of rock."}, {"id": "b", "text": "Cats sleep all day."}]
QUESTION = "What is the moon made of?"
LEAD = "The moon is made of"


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that answers are decoded from."""
    seen = []
    init = Decoding.__init__

    def noting(self, lm, prompts, *given, **named):
        seen.extend(list(prompt.ids) for prompt in prompts)
        init(self, lm, prompts, *given, **named)

    monkeypatch.setattr(Decoding, "__init__", noting)
    return seen


@pytest.fixture
def memory(tmp_path):
    with msa.Memory.open(tmp_path / "memory", model=tiny_model(protocol={"reader_lead": "According to {title},"})) as m:
        m.add(DOCUMENTS)
        yield m


@pytest.mark.parametrize("retrieval", ["routed", "generative"])
def test_the_prompt_ends_with_it_and_the_answer_does_not_begin_with_it(memory, prompts, retrieval):
    ends = []
    for lead in ("", LEAD):
        prompts.clear()
        answer = memory.ask(QUESTION, retrieval=retrieval, max_rounds=1, max_new_tokens=4, answer_lead=lead)
        assert LEAD not in answer.text
        ends.append(prompts[-1])
    tokens = memory.model.protocol.plain_ids(LEAD)
    assert ends[1][-len(tokens) :] == tokens
    assert ends[0][-len(tokens) :] != tokens


def test_it_stands_in_place_of_the_opening_of_routed_mode(memory):
    assert memory.ask(QUESTION, retrieval="routed", max_new_tokens=4).text.startswith("According to ")
    assert "According to" not in memory.ask(QUESTION, retrieval="routed", max_new_tokens=4, answer_lead=LEAD).text


@pytest.mark.parametrize("retrieval", ["routed", "generative"])
def test_a_context_without_room_for_it_is_said(memory, retrieval):
    limit = memory.model.lm.config.max_position_embeddings
    with pytest.raises(ValueError, match="does not fit this model's context"):
        memory.ask(QUESTION, retrieval=retrieval, max_new_tokens=4, answer_lead="moon " * limit)
