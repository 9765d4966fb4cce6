"""Streaming text: whole characters, stop strings wherever token borders fall, the hidden lead."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from msa.documents import Protocol, ProtocolStrings
from msa.generation.text_stream import LONGEST_QUOTATION, TextStream

LEAD = "The answer to the question is:"


def stream(model, tokens, **options):
    """Push all tokens; returns the pieces in order, the rest at the end last."""
    stream = TextStream(model.protocol, **options)
    pieces = [stream.push(token) for token in tokens]
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces, stream


def of(model, text):
    return model.protocol.plain_ids(text)


def test_an_emoji_appears_once_it_is_whole(model):
    tokens = of(model, "a😀é!")
    assert len(tokens) == 8
    pieces, _ = stream(model, tokens)
    assert pieces == ["a", "", "", "", "😀", "", "é", "!", ""]


def test_a_character_that_never_ends_is_shown_as_such_at_the_end(model):
    pieces, _ = stream(model, of(model, "ab😀")[:-1])
    assert pieces == ["a", "b", "", "", "", "\ufffd"]


def test_a_character_that_the_limit_cut_is_left_out(model):
    tokens = of(model, "ab 😀")
    for missing in (1, 2, 3):
        cut = TextStream(model.protocol)
        pieces = [cut.push(token) for token in tokens[:-missing]] + [cut.finish(cut=True)]
        assert "".join(pieces) == cut.text == "ab "


@pytest.mark.parametrize("stop", [("\n\n",), ("STOP",), ("ab STOP", "zz"), ("S", "STOP")])
def test_text_ends_before_a_stop_string(model, stop):
    text = "ab STOP\n\nnever"
    expected = text[: min(text.find(string) for string in stop if string in text)]  # the first one met
    pieces, ended = stream(model, of(model, text), stop=stop)
    assert "".join(pieces) == expected
    assert ended.stopped
    assert ended.push(of(model, "x")[0]) == ended.finish() == ""


def test_the_beginning_of_a_stop_string_is_held_back(model):
    pieces, ended = stream(model, of(model, "a STOb STO"), stop=["STOP"])
    assert pieces == ["a", " ", "", "", "", "STOb", " ", "", "", "", "STO"]
    assert not ended.stopped


def test_the_earliest_stop_string_wins(model):
    """However the tokens fall: all at once, the text is the same as character by character."""
    merges = (("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o"))
    whole = Protocol(ProtocolStrings(), tiny_tokenizer(merges))
    assert len(whole.plain_ids("hello")) == 1
    for protocol in (whole, model.protocol):
        ended = TextStream(protocol, stop=["lo", "ell"])
        for token in protocol.plain_ids("hello"):
            ended.push(token)
        ended.finish()
        assert (ended.text, ended.stopped) == ("h", True)


@pytest.mark.parametrize("stop", [["ab", "b"], ["b", "ab"]])
def test_the_order_of_stop_strings_does_not_matter(model, stop):
    pieces, _ = stream(model, of(model, "xab"), stop=stop)
    assert "".join(pieces) == "x"


def test_empty_stop_strings_are_ignored(model):
    pieces, ended = stream(model, of(model, "ab"), stop=["", "zz"])
    assert "".join(pieces) == "ab"
    assert not ended.stopped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{LEAD} 42.", "42."),
        (f" \n{LEAD}\n42.", "42."),
        ("The answer is 42.", "The answer is 42."),
        (f"It is: {LEAD}", f"It is: {LEAD}"),
        (LEAD, ""),
        (LEAD[:10], LEAD[:10]),  # cut short: what there is
        (f"{LEAD} {LEAD}", LEAD),
        ("  42", "42"),
        ("", ""),
    ],
)
def test_the_lead_is_hidden_only_at_the_start(model, text, shown):
    pieces, _ = stream(model, of(model, text), hidden_lead=LEAD)
    assert "".join(pieces) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [(LEAD[:3], ""), (LEAD[:10], ""), (LEAD, ""), ("The answ\u00e9", "The answ\u00e9"), ("42", "42"), ("", "")],
)
def test_a_lead_that_was_cut_off_is_not_shown(model, text, shown):
    stream = TextStream(model.protocol, hidden_lead=LEAD)
    pieces = [stream.push(token) for token in of(model, text)]
    assert "".join([*pieces, stream.finish(cut=True)]) == stream.text == shown


def test_nothing_is_shown_while_the_lead_may_still_come(model):
    pieces, _ = stream(model, of(model, "The answer of"), hidden_lead=LEAD)
    assert pieces[:11] == [""] * 11
    assert pieces[11] == "The answer o"


def test_what_is_quoted_before_the_answer_is_kept_and_not_shown(model):
    end = model.tokenizer.convert_tokens_to_ids("<|object_ref_end|>")
    tokens = [*of(model, " the sky is"), end, *of(model, " blue STOP now")]
    pieces, ended = stream(model, tokens, quotation_end=end, stop=["sky", "STOP"])
    assert "".join(pieces) == ended.text == "blue "
    assert not any(pieces[:12])
    assert ended.quotation == "the sky is"
    assert ended.stopped  # by the string in the answer, not by the one in the quotation


def test_a_quotation_that_never_ended_is_the_answer_and_one_that_was_cut_is_nothing(model):
    end = model.tokenizer.convert_tokens_to_ids("<|object_ref_end|>")
    for cut, shown in ((False, "the sky"), (True, "")):
        stream = TextStream(model.protocol, quotation_end=end)
        pieces = [stream.push(token) for token in of(model, " the sky")]
        assert "".join([*pieces, stream.finish(cut=cut)]) == stream.text == shown
        assert stream.quotation == ""


def test_what_is_too_long_to_be_a_quotation_is_shown_as_it_comes(model):
    end = model.protocol.answer_end_id
    stream = TextStream(model.protocol, quotation_end=end)
    (letter,) = of(model, "l")
    shown = [stream.push(letter) for _ in range(LONGEST_QUOTATION + 2)]
    assert shown == [""] * (LONGEST_QUOTATION - 1) + ["l" * LONGEST_QUOTATION, "l", "l"]
    assert stream.finish(cut=True) == ""
    assert stream.text == "l" * (LONGEST_QUOTATION + 2)
    assert stream.quotation == ""


def test_a_second_end_of_a_quotation_is_only_a_control_token(model):
    end = model.tokenizer.convert_tokens_to_ids("<|object_ref_end|>")
    pieces, ended = stream(model, [end, *of(model, "a"), end, *of(model, "b")], quotation_end=end)
    assert "".join(pieces) == "ab"
    assert ended.quotation == ""


def test_control_tokens_are_not_shown(model):
    control = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>"])
    pieces, _ = stream(model, [*of(model, "a"), *control, *of(model, "b")])
    assert "".join(pieces) == "ab"


def test_an_opening_that_is_not_the_models_own(model):
    """Put there before the first token: not returned again, and the model's text goes on after it as it was written."""
    ended = TextStream(model.protocol, stop=["."])
    ended.text = "Moon:"
    pieces = [ended.push(token) for token in of(model, " round.")]
    assert "".join(pieces) == " round"
    assert ended.text == "Moon: round"


def cut_by_hand(text, stop, lead):
    """What is shown of a whole text: after the lead, before the stop string that is complete first."""
    text = text.lstrip()
    text = text[len(lead) :].lstrip() if text.startswith(lead) else text
    ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string and string in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(st.text(alphabet="ab \n😀é:", max_size=20), st.lists(st.text(alphabet="ab é", max_size=3), max_size=2))
@example("aéb", ["aé"])
@example("é: ab", [])
@example("éa", [])
def test_streaming_equals_cutting_the_whole_text(model, text, stop):
    """Whatever bytes a token ends at; and nothing shown is ever taken back."""
    for lead in ("a:", "é:"):
        pieces, ended = stream(model, of(model, text), stop=stop, hidden_lead=lead)
        assert ("".join(pieces), ended.stopped) == cut_by_hand(text, stop, lead)


@pytest.mark.parametrize("prepend", [False, True])
def test_long_answers_are_what_their_tokens_say_and_cost_no_more_a_token(model, monkeypatch, prepend):
    """Also where a tokenizer leaves out the space before a text's first word."""
    text = "Ünïcode 😀 wörds, and  spaces\n\n" * 40
    tokens = of(model, text)
    decoded, lengths = Protocol.decode, []

    def watched(protocol, ids):
        lengths.append(len(ids))
        said = decoded(protocol, ids)
        return said.removeprefix(" ") if prepend else said

    monkeypatch.setattr(Protocol, "decode", watched)
    pieces, ended = stream(model, tokens)
    assert ended.text == "".join(pieces) == text
    assert len(tokens) > 1000
    assert max(lengths) < 100
