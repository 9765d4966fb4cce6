"""Routed mode of a checkpoint without a prompt to read from: what the routers chose stands in its transcript."""

import pytest
from tiny import tiny_model

import msa
from msa.engine.generative import GenerativeMode
from msa.errors import CheckpointError
from msa.generation.decoding import Decoding

DOCUMENTS = [
    {"id": "moon", "text": "The moon is made of rock."},
    {"id": "cats", "text": "Cats sleep all day."},
    {"id": "sea", "text": "The sea is salty."},
]
QUESTION = "What is the moon made of?"
TURN = (
    "\nPlease answer the question based on the above historical document information\n\n{question}\n"
    "Please return all documents related to the question\n<|im_end|>\n<|im_start|>"
)
REQUEST = "<End-of-Retrieve><|im_start|>The user's question is: {question}\n<|object_ref_end|>"


def memory_of(folder, **protocol):
    memory = msa.Memory.open(folder / "memory", model=tiny_model(protocol={"reader_prompt": "", **protocol}))
    memory.add(DOCUMENTS)
    return memory


@pytest.fixture
def memory(tmp_path):
    with memory_of(tmp_path) as memory:
        yield memory


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that answers are written after, with the numbers of the documents read."""
    kept, decoding = [], GenerativeMode._decoding

    def spy(mode, prompts, read, options, last):
        kept.extend(zip(prompts, read, strict=True))
        return decoding(mode, prompts, read, options, last)

    monkeypatch.setattr(GenerativeMode, "_decoding", spy)
    return kept


def said(memory, prompt):
    return memory.model.protocol.decode_all(prompt.ids)


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_the_texts_stand_as_though_the_model_had_written_their_ids(memory, prompts, rounds):
    answer = memory.ask(QUESTION, retrieval="routed", max_documents=2, max_rounds=rounds, max_new_tokens=2)
    read = [hit for hit in answer.sources if hit.read]
    assert len(read) == 2
    ids = "".join(f"[{hit.number}]" for hit in read)
    texts = "".join(f"[{hit.number}]. {hit.text}\n" for hit in read)
    (prompt, numbers), *others = prompts
    assert not others
    expected = f"{TURN}{ids}<|object_ref_end|>{texts}<|object_ref_end|>{REQUEST}".replace("{question}", QUESTION)
    assert said(memory, prompt) == expected
    assert numbers == {hit.number for hit in read}
    assert [hit.id for hit in answer.sources] == [hit.id for hit in memory.search(QUESTION, top_k=3)]
    assert [found.generated for found in answer.rounds] == [""]


def test_a_checkpoint_in_routed_mode_by_itself_does_the_same(tmp_path, prompts):
    with memory_of(tmp_path, retrieval="routed") as memory:
        memory.ask(QUESTION, max_new_tokens=2)
        assert said(memory, prompts[0][0]).startswith(TURN.replace("{question}", QUESTION) + "[")


def test_nothing_to_read_is_asked_for_at_once(memory, prompts):
    memory.ask(QUESTION, retrieval="routed", max_documents=0, max_new_tokens=2)
    assert said(memory, prompts[0][0]) == (TURN + REQUEST).replace("{question}", QUESTION)


def test_a_conversation_and_an_opening_stand_as_in_generative_mode(memory, prompts):
    given = {"context": "We spoke of the sky.", "answer_lead": "It is", "max_new_tokens": 2}
    memory.ask(QUESTION, retrieval="routed", max_documents=1, routed_context_tokens=3, **given)
    text = said(memory, prompts[0][0])
    assert text.index("We spoke of the sky.") < text.index(QUESTION)
    assert text.endswith("<|object_ref_end|>It is")


def test_what_does_not_fit_is_shortened_and_noted(tmp_path):
    model = tiny_model(protocol={"reader_prompt": "", "max_document_tokens": 5000}, max_position_embeddings=2000)
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add([{"id": "long", "text": "The moon is made of rock. " * 100}])
        answer = memory.ask(QUESTION, retrieval="routed", max_new_tokens=2, hybrid=True)
        assert any("long was shortened" in note for note in answer.notes)
        with pytest.raises(ValueError, match="does not fit this model's context of 2000 tokens"):
            memory.ask("too long " * 300, retrieval="routed")


def test_the_quotation_is_apart_from_the_answer(tmp_path, monkeypatch):
    with memory_of(tmp_path, quotation_end="<think>", answer_lead="") as memory:
        protocol = memory.model.protocol
        tokens = [*protocol.template_ids(" The moon is made of<think> rock."), protocol.answer_end_id]
        monkeypatch.setattr(Decoding, "_draw", staticmethod(lambda row, logits: tokens[len(row.generated)]))
        answer = memory.ask(QUESTION, retrieval="routed")
        assert (answer.text, answer.quotation) == ("rock.", "The moon is made of")


def test_a_batch_answers_as_each_alone(memory):
    questions = [QUESTION, "Who sleeps?", "Is the sea salty, and if so why?"]
    options = {"retrieval": "routed", "max_new_tokens": 6}
    alone = [memory.ask(question, **options) for question in questions]
    assert [one.text for one in memory.ask_many(questions, **options)] == [one.text for one in alone]


def test_a_prompt_of_another_vocabulary_is_refused_in_routed_mode_alone(tmp_path):
    with memory_of(tmp_path, reader_prompt="<|user|>{documents}{question}") as memory:
        for options in ({"retrieval": "routed"}, {"hybrid": True}):
            with pytest.raises(CheckpointError, match=r"'<\|user\|>' is 8 tokens of text"):
                memory.ask(QUESTION, **options)
        assert memory.ask(QUESTION, max_new_tokens=2).rounds
        assert memory.search(QUESTION, hybrid=True)
