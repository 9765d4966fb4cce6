"""Answers held to what was read, token by token, over a vocabulary of bytes."""

import dataclasses

import pytest
from tiny import tiny_model, tiny_tokenizer

from msa.documents import Protocol, ProtocolStrings
from msa.errors import CheckpointError
from msa.evaluation import Question
from msa.evaluation.alternatives import make
from msa.generation.options import AskOptions
from msa.generation.quotation import QuotedAnswer

STRINGS = ProtocolStrings(quotation_end="<think>", quotation_refusal="#", constrain_answers="quoted")
PROTOCOL = Protocol(STRINGS, tiny_tokenizer())
END, REFUSAL, STOP = PROTOCOL.quotation_end_id, PROTOCOL.quotation_refusal_id, PROTOCOL.answer_end_id
TEXTS = (" for oak is: 42. for oaken is: 7 (", " for elm is: oak. for ash is: 13.", " for ash is: 19")
QUESTION = "What is it for beech # here?"


def allowed(quoted, answer=None, texts=TEXTS):
    """What may follow: text, with > for the end of the quotation and | for that of the answer; or words for it."""
    constraint = QuotedAnswer(PROTOCOL, [PROTOCOL.plain_ids(text) for text in texts], PROTOCOL.plain_ids(QUESTION))
    generated = PROTOCOL.plain_ids(quoted)
    generated += [] if answer is None else [END, *PROTOCOL.plain_ids(answer)]
    found = constraint.allowed(generated)
    if found is None:
        return "anything"
    assert len(set(found)) == len(found)
    if REFUSAL not in found and len(found) == len(PROTOCOL.tokenizer) - 1:
        return "no refusal"
    shown = {END: ">", STOP: "|"}
    return "".join(shown.get(token) or PROTOCOL.decode([token]) for token in found)


@pytest.mark.parametrize(
    ("quoted", "expected"),
    [
        ("", "anything"),
        (" f", "no refusal"),  # two tokens are too few to go on from, but they were read
        (" b", "anything"),
        ("yew", "anything"),
        (" for oak", " e.>"),  # "is", "en", and the oak of another text: a hop
        (" for oak is: 4", ">"),  # said once, so it is the answer, and not quoted
        (" for oak is:", " >"),  # as another text has it before an oak
        (" for elm is: oak", ". e>"),
        (" for beech", " #>"),  # only the question has it: it goes on with a space there
        (" for beech ", "#>"),
        (" for oaks", "anything"),
    ],
)
def test_a_quotation_is_made_of_spans_and_a_refusal_may_not_follow_words_that_were_read(quoted, expected):
    assert sorted(allowed(quoted)) == sorted(expected)


@pytest.mark.parametrize(
    ("quoted", "answer", "expected"),
    [
        (" for oak is", "", " "),  # the colon is skipped, and an answer has at least one token
        (" for oak is", " ", "4"),
        (" for oak is", " 4", "2"),  # it ends where a word does
        (" for oak is", " 42", ".|"),
        (" for oaken is", " ", "7"),
        (" for oaken is", " 7", " |"),
        (" for oaken is", " 7 (", "|"),  # the text ends here
        (" for elm is: oak is", " ", "4"),  # a hop: the longest end that stands in a text is " oak is"
        (" for ash is", " 1", "39"),  # both texts have it
        (" for ash is", " 13", ".|"),
        (" for ash is", " 5", "|"),  # nothing goes on so
        (" for beech #", "", "anything"),
        (" for beech #", "It is", "anything"),
        ("of yew", "", "anything"),  # stands in no text
        ("", "", "anything"),
    ],
)
def test_an_answer_goes_on_from_its_quotation_in_a_text(quoted, answer, expected):
    assert sorted(allowed(quoted, answer)) == sorted(expected)


CHAIN = (" for birch has: maple-tree. End", " So: for maple-tree eats: 5-6.1 so.")


@pytest.mark.parametrize(
    ("quoted", "expected"),
    [
        (" for birch", " >"),
        (" for birch has", ":>"),  # a word that is said once, between two that are said twice
        (" for birch has:", " >"),
        (" for birch has: maple-tree", " .>"),
        (" for birch has: maple-tree.", " >"),
        (" for birch has: maple-tree eats", ":#>"),
        (" for birch has: maple-tree eats:", ">"),  # here is the answer
    ],
)
def test_a_quotation_is_a_chain_from_the_question_to_what_is_said_once(quoted, expected):
    constraint = QuotedAnswer(
        PROTOCOL, [PROTOCOL.plain_ids(text) for text in CHAIN], PROTOCOL.plain_ids("What is it for birch # here?")
    )
    shown = {END: ">", REFUSAL: "#"}
    found = constraint.allowed(PROTOCOL.plain_ids(quoted))
    assert sorted(shown.get(token) or PROTOCOL.decode([token]) for token in found) == sorted(expected)


@pytest.mark.parametrize(("answer", "ends"), [(" 5", False), (" 5-6", False), (" 5-6.1", True), (" 5-6.1 so", True)])
def test_an_answer_ends_where_a_word_does(answer, ends):
    constraint = QuotedAnswer(PROTOCOL, [PROTOCOL.plain_ids(text) for text in CHAIN], [])
    found = constraint.allowed([*PROTOCOL.plain_ids(" for maple-tree eats"), END, *PROTOCOL.plain_ids(answer)])
    assert (STOP in found) == ends


def test_without_texts_nothing_is_constrained():
    assert allowed(" for oak", texts=()) == "anything"
    assert sorted(allowed(" for be", texts=())) == sorted("e#>"), "but spans of the question"
    assert allowed(" for oak is", " 1", texts=()) == "anything"


def test_the_words_are_checked():
    with pytest.raises(ValueError, match="constrain_answers must be one of quoted, none, got 'some'"):
        AskOptions(constrain_answers="some")
    with pytest.raises(ValueError, match="constrain_answers must be one of quoted, none, got 'some'"):
        dataclasses.replace(STRINGS, constrain_answers="some")
    with pytest.raises(ValueError, match="'quoted' needs a protocol with quotation_end and quotation_refusal"):
        dataclasses.replace(STRINGS, quotation_refusal="")
    with pytest.raises(CheckpointError, match="' mentioned' is 10 tokens"):
        Protocol(dataclasses.replace(STRINGS, quotation_refusal=" mentioned"), tiny_tokenizer())


@pytest.mark.parametrize("name", ["full", "rag-bm25@1"])
def test_alternatives_are_held_to_what_they_read_as_the_memory_is(name, monkeypatch):
    if name.startswith("rag-bm25"):
        pytest.importorskip("bm25s")
    model = tiny_model(protocol=dataclasses.asdict(STRINGS))
    asked = []
    real = QuotedAnswer.allowed

    def forced(self, generated):
        """The end of a quotation that no random network would write; then what the rule allows."""
        quoted = [*PROTOCOL.plain_ids(" for oak is"), END]
        if len(generated) < len(quoted):
            return [quoted[len(generated)]]
        asked.append(real(self, generated))
        return asked[-1]

    monkeypatch.setattr(QuotedAnswer, "allowed", forced)
    row = make(name, model)
    row.prepare({"a": "Nothing here for you. It is for oak is: 4", "b": "The sky is blue."})
    prediction = row.answer(Question(id="q", question="What is for oak?", answers=()), 40)
    assert len(asked) > 1
    assert all(asked)
    assert prediction.text.startswith("4")
