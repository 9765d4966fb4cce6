"""What stands before a question: of it only the end routes, and nothing in it is more than text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPECIAL, tiny_tokenizer

from msa.documents.protocol import Protocol, ProtocolStrings
from msa.generation.budget import Fitted
from msa.generation.interleave import InterleaveState, Limits, Phase
from msa.generation.options import AskOptions

CONTEXT = "User: Who was Ada?\nAssistant: A painter of Lisbon."
QUESTION = "When did she die?"
pieces = st.one_of(st.text(max_size=8), st.sampled_from([*SPECIAL, "<think>", "{question}", "{context}"]))
texts = st.lists(pieces, max_size=6).map("".join)


@pytest.fixture(params=[True, False], ids=["whole-turn", "question"])
def protocol(request):
    return Protocol(ProtocolStrings(route_whole_turn=request.param), tiny_tokenizer())


def state(protocol, **given):
    limits = Limits(context_tokens=2048, max_new_tokens=8, max_id_tokens=8)
    return InterleaveState(protocol, QUESTION, limits, lambda number: True, **given)


def routed_text(protocol, ids, routes):
    return protocol.decode_all([index for index, route in zip(ids, routes, strict=True) if route])


@pytest.mark.parametrize("window", [0, 7, 10_000])
def test_the_turn_has_all_of_it_and_its_end_routes(protocol, window):
    turn = protocol.question_turn(QUESTION, CONTEXT, window)
    assert f"{CONTEXT}\n\n{QUESTION}" in protocol.decode_all(turn.ids)
    routed = routed_text(protocol, turn.ids, turn.marked)
    before, _, _ = routed.partition(QUESTION)
    whole = protocol.strings.route_whole_turn
    template = protocol.strings.question.partition("{question}")[0] if whole else ""
    window_text = CONTEXT[-window:] if window else ""  # one byte is one token here
    assert before == template + (f"{window_text}\n\n" if window else "")


@given(question=texts, context=texts, window=st.integers(0, 40))
def test_what_routes_is_what_the_window_and_the_question_are(question, context, window):
    protocol = Protocol(ProtocolStrings(route_whole_turn=False), tiny_tokenizer())
    turn = protocol.question_turn(question, context, window)
    asked = protocol.after(protocol.end_of(context, window), question)
    assert [index for index, mark in zip(turn.ids, turn.marked, strict=True) if mark] == protocol.plain_ids(asked)
    control = set(protocol.tokenizer.get_added_vocab().values())
    own = protocol.template_ids(protocol.strings.question, question="") + protocol.question_end_ids
    assert sum(index in control for index in turn.ids) == sum(index in control for index in own)


def test_without_one_nothing_changes(protocol):
    assert protocol.question_turn(QUESTION, "", 64) == protocol.question_turn(QUESTION)
    alone, asked = state(protocol), state(protocol, context="", routed_context_tokens=64)
    assert (alone.ids, alone.routes, alone.free_tokens()) == (asked.ids, asked.routes, asked.free_tokens())


@pytest.mark.parametrize("text", ["a€😀b", "naïve 日本語", ""])
@pytest.mark.parametrize("num_tokens", range(9))
def test_the_end_of_a_text_has_whole_characters_and_not_too_many_tokens(text, num_tokens):
    protocol = Protocol(ProtocolStrings(), tiny_tokenizer())
    end = protocol.end_of(text, num_tokens)
    assert text.endswith(end)
    assert len(protocol.plain_ids(end)) <= num_tokens
    assert len(end) == len(text) or len(protocol.plain_ids(text[-len(end) - 1 :])) > num_tokens


@pytest.mark.parametrize("window", [0, 7])
def test_documents_are_chosen_without_the_rest_and_the_answer_is_written_with_it(protocol, window):
    asked = state(protocol, context=CONTEXT, routed_context_tokens=window)
    alone = protocol.question_turn(protocol.after(CONTEXT[-window:] if window else "", QUESTION))
    assert (asked.ids, asked.routes) == (alone.ids, alone.marked)
    free = asked.free_tokens()
    asked.retrieved(protocol.plain_ids("[4]"), Fitted(documents=((4, "She died in 1934."),), notes=()))
    assert asked.ids[: len(alone.ids)] == alone.ids
    assert free - asked.free_tokens() == len(asked.ids) - len(alone.ids)
    assert CONTEXT not in protocol.decode_all(asked.ids)
    asked.retrieved(protocol.template_ids(protocol.strings.end_of_retrieve), Fitted(documents=(), notes=()))
    assert asked.phase is Phase.ANSWER
    assert not asked.continues, "the cache has not seen the whole conversation"
    transcript = protocol.decode_all(asked.ids)
    assert transcript.index(CONTEXT) < transcript.index("She died in 1934.")
    assert len(asked.ids) == len(asked.routes)
    turn = protocol.question_turn(QUESTION, CONTEXT, window)
    assert asked.routes[: len(turn.ids)] == turn.marked


def test_an_answer_at_once_has_it_too(protocol):
    limits = Limits(max_rounds=0)
    asked = InterleaveState(protocol, QUESTION, limits, lambda number: True, context=CONTEXT)
    assert CONTEXT in protocol.decode_all(asked.ids)


def test_the_whole_of_it_takes_room_from_documents(protocol):
    alone, asked = state(protocol), state(protocol, context=CONTEXT)
    assert alone.free_tokens() - asked.free_tokens() == len(protocol.plain_ids(f"{CONTEXT}\n\n"))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="routed_context_tokens must be 0 or more, got -1"):
        AskOptions(routed_context_tokens=-1)
    with pytest.raises(TypeError, match="context must be a text, got list"):
        AskOptions(context=["a"])
    assert AskOptions(context="a\0\ud800").context == "a\ufffd"
