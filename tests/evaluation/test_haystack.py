"""Running text as a haystack: whole sentences, repeated when short, and named for what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.errors import EvaluationError
from msa.evaluation.haystack import NOISE_LINE, Essay, load_essay, sentence_ends


@pytest.fixture(scope="module")
def shipped():
    return load_essay()


def test_noise_is_rulers_line():
    assert NOISE_LINE == "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two. Three four!", ["One two.", "Three four!"]),
        ("Mr. Fox met Dr. J. B. Smith. They left.", ["Mr. Fox met Dr. J. B. Smith.", "They left."]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("It cost 3.5 marks. 1918 came.", ["It cost 3.5 marks.", "1918 came."]),
        ("the U.S. Senate met. It rose.", ["the U.S. Senate met.", "It rose."]),
        ("it ended. then it went on.", ["it ended. then it went on."]),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text, sentences):
    words = tuple(text.split())
    assert Essay(words, "a test", "").sentences(len(words)) == sentences


def test_no_words_have_no_sentences():
    assert sentence_ends([]) == ()
    with pytest.raises(EvaluationError, match="nothing holds no words"):
        Essay((), "nothing", "")


@given(
    st.lists(st.sampled_from(["a", "B", "c.", "D!", "Mr.", '"e."', "5?"]), min_size=1, max_size=12),
    st.integers(0, 60),
)
def test_so_many_words_in_order_however_short_the_text(words, wanted):
    essay = Essay(tuple(words), "a test", "")
    found = " ".join(essay.sentences(wanted)).split()
    assert found == [words[i % len(words)] for i in range(wanted)]
    whole = [essay.sentence(i) for i in range(len(essay.ends))]
    assert " ".join(whole).split() == words
    assert essay.sentence(len(whole)) == whole[0]


def test_the_shipped_text_is_named_a_substitute(shipped):
    assert len(shipped.words) > 40_000
    assert "substitute" in shipped.note
    assert "do not compare" in shipped.note
    lengths = [len(shipped.sentence(i).split()) for i in range(len(shipped.ends))]
    assert max(lengths) < 300
    assert 15 < sum(lengths) / len(lengths) < 40


def test_files_of_the_user(tmp_path):
    essays = tmp_path / "PaulGrahamEssays.json"
    essays.write_text(json.dumps({"text": "First one. Second\n\none."}))
    other = tmp_path / "more.txt"
    other.write_text("Third one.")
    essay = load_essay([essays, other])
    assert essay.sentences(6) == ["First one.", "Second one.", "Third one."]
    assert "PaulGrahamEssays.json, more.txt" in essay.note
    assert "only if these are Paul Graham's essays" in essay.note
    digest = essay.note.split("SHA-256 of their text ")[1][:16]
    other.write_text("Third two.")
    assert digest not in load_essay([essays, other]).note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.json", b'["text"]', "no field 'text'"),
        ("a.json", b'{"text": 5}', "no field 'text'"),
        ("a.txt", b" \n", "holds no words"),
        ("a.txt", None, "cannot be read"),
        ("a.json", None, "cannot be read"),
        ("a.txt", b"\x00\x01\x02\xff" * 50, "cannot be read"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message) as error:
        load_essay([path])
    assert name in str(error.value)


def test_a_single_path_is_refused(tmp_path):
    with pytest.raises(TypeError, match="list of paths"):
        load_essay(str(tmp_path))
