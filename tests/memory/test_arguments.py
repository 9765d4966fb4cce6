"""What a memory is given at its boundary, and what one that was closed says: errors that name what the user wrote."""

import pytest

from msa import Memory
from msa.errors import BankError, DocumentError
from msa.generation.sampling import Sampling

SHORT = {"retrieval": "routed", "max_new_tokens": 2}


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        opened.add([{"id": "a", "text": "The moon is made of rock."}])
        yield opened


def test_several_questions_are_not_one_string(memory):
    with pytest.raises(TypeError, match="several questions.*got one string"):
        memory.ask_many("Why?", **SHORT)
    assert memory.ask_many([], **SHORT) == []
    assert len(memory.ask_many(iter(["Why?", "Where?"]), **SHORT)) == 2


def test_a_question_is_a_text(memory):
    for use in (memory.ask, memory.search, lambda question: [*memory.stream(question)]):
        with pytest.raises(TypeError, match="a question is a text, got 5 of type int"):
            use(5)
        with pytest.raises(TypeError, match="a question is a text, got None"):
            use(None)
    with pytest.raises(TypeError, match="a question is a text"):
        memory.ask_many(["Why?", 5])


@pytest.mark.parametrize(
    ("error", "seed"), [(TypeError, "a"), (TypeError, 1.5), (ValueError, 2**70), (ValueError, -(2**64))]
)
def test_a_seed_is_a_whole_number_of_64_bits(memory, error, seed):
    with pytest.raises(error, match="seed must"):
        memory.ask("Why?", temperature=1.0, seed=seed, **SHORT)


@pytest.mark.parametrize("seed", [0, -(2**63), 2**64 - 1, None])
def test_every_seed_that_is_taken_can_be_drawn_with(seed):
    assert Sampling(temperature=1.0, seed=seed).generator() is not None


def test_no_strings_that_stop(memory):
    texts = {memory.ask("Why?", **SHORT, **stop).text for stop in ({}, {"stop": None}, {"stop": []}, {"stop": ()})}
    assert len(texts) == 1


@pytest.mark.parametrize("value", [2.5, "3", True])
def test_numbers_of_documents_are_whole_ones(memory, value):
    with pytest.raises(TypeError, match="top_k must be a whole number"):
        memory.search("Why?", top_k=value)
    with pytest.raises(TypeError, match="limit must be a whole number"):
        memory.list(limit=value)


def test_ids_to_delete_are_several(memory):
    with pytest.raises(TypeError, match="several ids.*got one int"):
        memory.delete(3)


def test_an_id_of_too_many_digits_is_refused_with_its_place(memory):
    with pytest.raises(DocumentError, match='item 1: "id" is a number of too many digits'):
        memory.add([{"id": 10**300, "text": "x"}, {"id": 10**5000, "text": "y"}])


@pytest.mark.parametrize(
    ("option", "value"), [("stop", 3), ("stop", [1]), ("answer_lead", 3), ("stop", {"a"}), ("stop", b"x")]
)
def test_texts_of_options_are_texts(memory, option, value):
    with pytest.raises(TypeError, match=f"{option} must be"):
        memory.ask("Why?", **{option: value}, **SHORT)


def test_the_document_to_list_after_is_named(memory):
    with pytest.raises(KeyError, match="there is no document 'nope' to list after"):
        memory.list(after="nope")


def test_a_model_is_one_or_its_name(tmp_path):
    with pytest.raises(TypeError, match="model must be a loaded model or the name of one, got int"):
        Memory.open(tmp_path / "other", model=5)
    assert not (tmp_path / "other").exists()


def test_a_closed_memory_can_no_longer_be_used(memory, tmp_path):
    memory.close()
    uses = (
        memory.verify,
        lambda: memory.backup(tmp_path / "copy"),
        lambda: memory.add([]),
        lambda: memory.delete([]),
        memory.compact,
        memory.stats,
        memory.list,
        lambda: memory.get("a"),
        lambda: memory.ask("Why?"),
        lambda: memory.ask_many([]),
        lambda: memory.search("Why?"),
    )
    for use in uses:
        with pytest.raises(BankError, match="is closed"):
            use()
    assert not (tmp_path / "copy").exists()
