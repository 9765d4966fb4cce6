import itertools
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa.documents.splitting import split_text


def words(text):
    """Words with the white space before them, and single marks."""
    return [match.start() for match in re.finditer(r"\s*\w+|\s*[^\w\s]|\s+$", text)]


def utf8_bytes(text):
    """Several tokens for one character, as in byte-level tokenisers."""
    return [i for i, character in enumerate(text) for _ in character.encode("utf-8", "surrogatepass")]


def fours_from_the_left(text):
    """Four characters a token within a word: a cut inside a word moves every token after it."""
    return [i for match in re.finditer(r"\s|\S+", text) for i in range(match.start(), match.end(), 4)]


def dearer_when_cut(text):
    """A text that is cut costs a token more for every eight characters than the same stretch of a longer one."""
    step = 4 if len(text) > 200 else 3
    return list(range(0, len(text), step))


TOKENISERS = [words, utf8_bytes, fours_from_the_left, dearer_when_cut]

awkward = st.text(
    st.sampled_from(
        ["a", "b", " ", "\n", "\r", ".", "!", "。", "漢", "字", "א", "ב", "\u0301", "👩", "\u200d", "💻", "👍"]
    )
    | st.sampled_from(["🏽", "🇩", "🇪", "\ufe0f", "\u1100", "\u1161", "\t", "\u2028", "\ud83d", "\ude00", "؟", "ع"]),
    max_size=300,
)


def check(text, max_tokens, token_starts):
    spans = split_text(text, max_tokens=max_tokens, token_starts=token_starts)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    for start, end in spans:
        assert end > start or not text
        assert len(token_starts(text[start:end])) <= max_tokens or end == start + 1
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("token_starts", TOKENISERS)
@settings(max_examples=150, deadline=None)
@given(text=awkward | st.text(max_size=300), max_tokens=st.integers(1, 40))
def test_spans_partition_the_text_within_the_limit(token_starts, text, max_tokens):
    check(text, max_tokens, token_starts)


def test_a_text_within_the_limit_is_one_span():
    assert split_text("One two.\n\nThree.", max_tokens=6, token_starts=words) == [(0, 16)]
    assert split_text("", max_tokens=1, token_starts=words) == [(0, 0)]


def test_max_tokens_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        split_text("a", max_tokens=0, token_starts=words)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("aa bb cc dd.\n\nee. ff\ngg hh ii jj kk ll", "aa bb cc dd.\n\n"),
        ("aa bb cc.\n \t\n\n\ndd ee. ff\ngg hh ii jj kk ll", "aa bb cc.\n \t\n\n\n"),
        ("aa bb cc dd\nee. ff gg hh ii jj kk ll", "aa bb cc dd\n"),
        ("aa bb cc dd! ee ff gg hh ii jj kk ll", "aa bb cc dd! "),
        ("aa bb cc dd ee ff gg hh ii jj kk ll", "aa bb cc dd ee ff gg "),
        # a border in the first half does not count
        ("aa\n\nbb cc dd ee ff gg hh ii jj kk ll", "aa\n\nbb cc dd ee ff gg "),
    ],
)
def test_the_best_border_in_the_last_half_wins(text, first):
    def starts(text):
        return [match.start() for match in re.finditer(r"\w+", text)]

    assert check(text, 7, starts)[0] == first


def test_sentences_of_chinese_and_arabic():
    assert check("今天天气很好。我们去公园散步吧朋友们", 10, utf8_bytes_per_character) == [
        "今天天气很好。",
        "我们去公园散步吧朋友",
        "们",
    ]
    assert check("كيف حالك؟ أنا بخير وأنت كيف", 14, utf8_bytes_per_character)[0] == "كيف حالك؟ "


def utf8_bytes_per_character(text):
    return range(len(text))


@pytest.mark.parametrize(
    "cluster", ["e\u0301\u0302", "👩\u200d💻", "👍🏽", "🇩🇪", "\u1112\u1161\u11ab", "❤\ufe0f", "\r\n", "\ud83d\ude00"]
)
def test_what_is_shown_as_one_character_stays_whole(cluster):
    for max_tokens in range(len(cluster), 12):
        pieces = check(cluster * 30, max_tokens, utf8_bytes_per_character)
        assert all(len(piece) % len(cluster) == 0 for piece in pieces)


def test_progress_where_one_character_exceeds_the_limit():
    assert check("👍👍a", 2, utf8_bytes) == ["👍", "👍", "a"]
    assert check("👩\u200d💻" * 3, 2, utf8_bytes) == ["👩", "\u200d", "💻"] * 3
    assert len(check("a" + "\u0301" * 500, 100, utf8_bytes)) > 5


@pytest.mark.parametrize("text", ["x" * 2_000_000, "🇩" * 500_000, " " * 1_000_000, "ab " * 700_000, "\n" * 500_000])
def test_megabytes_take_seconds_and_one_tokenisation_of_each_stretch(text):
    num_characters = 0

    def starts(text):
        nonlocal num_characters
        num_characters += len(text)
        return range(0, len(text), 4)

    began = time.perf_counter()
    spans = split_text(text, max_tokens=2_000, token_starts=starts)
    assert num_characters < 3.2 * len(text)
    assert len(spans) < 2.2 * len(text) / 8_000
    assert time.perf_counter() - began < 5


def test_a_trained_byte_level_tokeniser():
    tokenizers = pytest.importorskip("tokenizers")
    text = "Die Straße – naïve café 👩\u200d💻 漢字かな שלום عالم, " * 40 + "Donaudampfschifffahrt" * 60
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text[:1500]], trainer)
    for max_tokens in (4, 17, 100):
        check(text, max_tokens, lambda piece: [start for start, _ in tokenizer.encode(piece).offsets])
