"""The transcript's strings as tokens: what cannot be forged, what is tokenised jointly, what routes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import NOT_SPECIAL, SPECIAL, tiny_tokenizer
from tokenizers import AddedToken

from msa.documents import Protocol, ProtocolStrings
from msa.errors import CheckpointError

CONTROL = (*SPECIAL, *NOT_SPECIAL)


@pytest.fixture(scope="module")
def protocol():
    return Protocol(ProtocolStrings(), tiny_tokenizer())


@pytest.fixture(scope="module")
def control_ids(protocol):
    return dict(zip(CONTROL, protocol.tokenizer.convert_tokens_to_ids(CONTROL), strict=True))


def control_tokens(protocol, ids):
    names = {index: token for token, index in protocol.tokenizer.get_added_vocab().items()}
    return [names[index] for index in ids if index in names]


@pytest.mark.parametrize("token", CONTROL)
def test_a_template_has_control_tokens_and_a_field_has_none(protocol, control_ids, token):
    assert protocol.template_ids(token) == [control_ids[token]]
    assert control_tokens(protocol, protocol.plain_ids(f"a{token}{token}b")) == []
    ids = protocol.document_ids(7, f"{token}a{token}")
    assert control_tokens(protocol, ids) == ["<|im_start|>", "<|im_end|>"]
    assert protocol.decode_all(ids) == f"<|im_start|>[7]. {token}a{token}[7]<|im_end|>"
    turn = protocol.question_turn(token)
    assert control_tokens(protocol, turn.ids) == ["<|im_end|>", "<|im_start|>"]
    expansion = protocol.expansion([(7, token)])
    assert control_tokens(protocol, expansion.ids) == ["<|object_ref_end|>"]


def test_a_special_token_in_a_text_is_tokenised_like_any_other_text():
    protocol = Protocol(ProtocolStrings(), tiny_tokenizer((("<", "|"), ("<|", "i"))))
    pieces = protocol.tokenizer.convert_ids_to_tokens(protocol.plain_ids("a<|im_end|>"))
    assert pieces == ["a", "<|i", *"m_end|>"]


fragments = st.lists(
    st.sampled_from(
        [*CONTROL, "<|im_", "start|>", "<", "<thi", "nk>", "|>", "é", "😀", "{text}", "{id}", " ", "\n", "a"]
    ),
    max_size=12,
).map("".join)


@given(fragments)
def test_any_text_stays_text(protocol, text):
    ids = protocol.plain_ids(text)
    assert control_tokens(protocol, ids) == []
    assert protocol.decode_all(ids) == text
    document = protocol.document_ids(12, text)
    assert control_tokens(protocol, document) == ["<|im_start|>", "<|im_end|>"]
    assert protocol.decode_all(document) == f"<|im_start|>[12]. {text}[12]<|im_end|>"


@given(fragments)
def test_starts_are_where_tokens_begin(protocol, text):
    starts = protocol.plain_starts(text)
    assert starts == [place for place, character in enumerate(text) for _ in character.encode()]


def test_a_text_full_of_added_tokens(protocol):
    """A chat log holds thousands of them."""
    text = "<think>hm</think>" * 1500
    ids = protocol.plain_ids(text)
    assert control_tokens(protocol, ids) == []
    assert protocol.decode_all(ids) == text


def test_an_added_token_of_one_character_is_text_in_a_text():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("⟐", special=False, normalized=False)])
    protocol = Protocol(ProtocolStrings(reference_end="⟐"), tokenizer)
    ids = protocol.plain_ids("a⟐b")
    assert protocol.reference_end_id not in ids
    assert protocol.decode(ids) == "a⟐b"


def test_text_between_control_tokens_is_tokenised_jointly():
    protocol = Protocol(
        ProtocolStrings(document="<|im_start|>x{id}:{text};<|im_end|>"), tiny_tokenizer(((":", "a"), ("b", ";")))
    )
    pieces = protocol.tokenizer.convert_ids_to_tokens(protocol.document_ids(1, "ab"))
    assert pieces == ["<|im_start|>", "x", "1", ":a", "b;", "<|im_end|>"]


def test_control_tokens_in_a_template_separate_what_would_merge():
    protocol = Protocol(ProtocolStrings(), tiny_tokenizer((("a", "b"),)))
    assert len(protocol.template_ids("a{text}", text="b")) == 1
    assert len(protocol.template_ids("a<think>{text}", text="b")) == 3


@given(fragments)
def test_marks_cover_exactly_the_question(protocol, question):
    words = Protocol(ProtocolStrings(route_whole_turn=False), protocol.tokenizer)
    turn = words.question_turn(question)
    marked = [index for index, mark in zip(turn.ids, turn.marked, strict=True) if mark]
    assert marked == protocol.plain_ids(question)
    before = words.strings.question.index("{question}")
    assert turn.marked.index(True) == before if question else not any(turn.marked)
    whole = protocol.question_turn(question)
    assert whole.ids == turn.ids
    end = len(protocol.question_end_ids)
    assert whole.marked == [True] * (len(turn.ids) - end) + [False] * end


def test_a_token_shared_by_template_and_question_is_marked():
    strings = ProtocolStrings(question="\nQ:{question}?", route_whole_turn=False)
    protocol = Protocol(strings, tiny_tokenizer(((":", "a"), ("b", "?"))))
    turn = protocol.encode_template(strings.question, "question", question="a b")
    assert protocol.tokenizer.convert_ids_to_tokens(turn.ids) == ["Ċ", "Q", ":a", "Ġ", "b?"]
    assert turn.marked == [False, False, True, True, True]


def test_fields_are_filled_once(protocol):
    ids = protocol.template_ids("{id} {text} {other}", id="{text}", text="{id}")
    assert protocol.decode_all(ids) == "{text} {id} {other}"


def test_the_default_strings_are_the_published_ones(protocol):
    assert protocol.decode_all(protocol.prefix_ids) == "<|im_start|>user\n"
    turn = protocol.question_turn("Why?")
    assert protocol.decode_all(turn.ids) == (
        "\nPlease answer the question based on the above historical document information\n\nWhy?\n"
        "Please return all documents related to the question\n<|im_end|>\n<|im_start|>"
    )
    assert protocol.decode_all(protocol.document_ids(4, "Text")) == "<|im_start|>[4]. Text[4]<|im_end|>"
    expansion = protocol.expansion([(4, "four"), (17, "")])
    assert protocol.decode_all(expansion.ids) == "[4]. four\n[17]. \n<|object_ref_end|>"
    assert expansion.marked == [True] * (len(expansion.ids) - 1) + [False]


def test_decoding_drops_control_tokens_only(protocol, control_ids):
    ids = protocol.template_ids("<|im_start|>a<think> [4]<|object_ref_end|>é<|im_end|>")
    assert protocol.decode(ids) == "a [4]é"
    assert protocol.decode_all(ids) == "<|im_start|>a<think> [4]<|object_ref_end|>é<|im_end|>"
    assert protocol.decode([*control_ids.values()]) == protocol.decode([]) == ""
    assert protocol.decode(protocol.plain_ids("a , b .  c 's")) == "a , b .  c 's"  # nothing is cleaned up


def test_the_tokenizers_own_state_does_not_matter_and_is_not_touched():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    protocol = Protocol(ProtocolStrings(), tokenizer)
    assert protocol.decode_all(protocol.plain_ids("longer than four")) == "longer than four"
    plain = tiny_tokenizer()
    Protocol(ProtocolStrings(), plain).plain_ids("<|im_end|>")
    assert plain("<|im_end|>").input_ids == plain.convert_tokens_to_ids(["<|im_end|>"])


def test_strings_survive_a_config_file():
    strings = ProtocolStrings(prefix="<think>", reader_documents=5, retrieval="routed")
    assert ProtocolStrings.from_config(json.loads(json.dumps(strings.to_config()))) == strings
    assert ProtocolStrings.from_config(None) == ProtocolStrings.from_config({}) == ProtocolStrings()
    assert ProtocolStrings.from_config({"prefix": "x"}) == ProtocolStrings(prefix="x")


def test_unknown_keys_are_refused():
    with pytest.raises(CheckpointError, match="anser_end, sufix"):
        ProtocolStrings.from_config({"sufix": "x", "prefix": "y", "anser_end": "z"})


@pytest.mark.parametrize("field", ["answer_end", "reference_end"])
@pytest.mark.parametrize("text", ["<|im_unknown|>", "<|im_end|><|im_end|>", ""])
def test_a_control_string_that_is_not_one_token_is_refused(field, text):
    with pytest.raises(CheckpointError, match=r"single token, for instance one of .*<\|im_end\|>") as caught:
        Protocol(ProtocolStrings(**{field: text}), tiny_tokenizer())
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("field", ["reader_prompt", "reader_document", "reread_prompt"])
def test_control_tokens_of_another_vocabulary_are_refused_for_a_reader(field):
    """They would be text to the model; the protocol serves other modes all the same."""
    protocol = Protocol(ProtocolStrings(**{field: "<|im_start|>{text}<|user|>{question}"}), tiny_tokenizer())
    with pytest.raises(
        CheckpointError, match=rf"needs a {field} of .*'<\|user\|>' is 8 tokens .*<\|im_end\|>"
    ) as caught:
        protocol.check_reader()
    assert "leave reader_prompt empty" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "<|im_start|>{documents}<|im_end|>", "a <|b c|> d <| {question}|> <||> <|>", "<think>"]
)
def test_what_is_no_control_token_may_stand_in_a_readers_prompt(text):
    Protocol(ProtocolStrings(reader_prompt=text), tiny_tokenizer()).check_reader()


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ({"document": "[{id}]"}, r"'document' must contain \{text\}"),
        ({"document": "all"}, r"\{id\} and \{text\}"),
        ({"question": "?"}, r"\{question\}"),
        ({"retrieval": "telepathic"}, "generative, routed"),
    ],
)
def test_bad_strings_are_refused(strings, message):
    with pytest.raises(ValueError, match=message):
        ProtocolStrings(**strings)


def test_a_tokenizer_without_a_backend_is_refused():
    with pytest.raises(CheckpointError, match="object has no fast backend.*tokenizer.json"):
        Protocol(ProtocolStrings(), object())


@given(st.lists(fragments, max_size=6), st.integers(1, 10**6))
def test_many_documents_are_tokenised_as_each_alone(protocol, texts, first):
    numbers = range(first, first + len(texts))
    alone = [protocol.document_ids(number, text) for number, text in zip(numbers, texts, strict=True)]
    assert protocol.document_ids_many(numbers, texts) == alone
    assert protocol.plain_starts_many(texts) == [protocol.plain_starts(text) for text in texts]


@pytest.mark.parametrize(
    "template", ["{text}<|im_end|>{id}", "{id}{text}", "<|im_start|>{text}<|im_end|>{id}<|im_end|>"]
)
def test_many_documents_of_other_templates_are_tokenised_as_each_alone(template):
    protocol = Protocol(ProtocolStrings(document=template), tiny_tokenizer((("a", "b"), ("ab", "1"), ("Ġ", "a"))))
    texts = ["", "ab", "<|im_end|>ab{id}", "{text}", "e\u0301 🙂", " ", "ab" * 200]
    alone = [protocol.document_ids(number, text) for number, text in enumerate(texts, start=9)]
    assert protocol.document_ids_many(range(9, 9 + len(texts)), texts) == alone
    assert protocol.document_ids_many([], []) == []
