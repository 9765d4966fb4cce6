"""Words and sentences for needles, split once and for all into seen and held out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.errors import DocumentError, TrainingDataError
from msa.training.data.words import NOISE, haystack_sentences, is_held_out, needle_words


def test_held_out_words_are_never_seen_in_training():
    seen, held_out = needle_words(held_out=False), needle_words(held_out=True)
    for training, evaluation in zip(seen, held_out, strict=True):
        assert not set(training) & set(evaluation)
        assert 0.05 < len(evaluation) / len(training + evaluation) < 0.15
        assert len(evaluation) > 50
        assert training == sorted(set(training))
        assert all(word.isalpha() and word.islower() and len(word) > 2 for word in (*training, *evaluation))


def test_held_out_sentences_are_never_seen_in_training():
    seen, held_out = (haystack_sentences(held_out=side) for side in (False, True))
    assert not set(seen) & set(held_out) - set(NOISE)
    assert set(NOISE) <= set(seen) & set(held_out)
    assert len(seen) > len(held_out) > 20
    assert all(3 <= len(sentence.split()) <= 40 for sentence in (*seen, *held_out))
    assert seen == haystack_sentences(held_out=False)


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_whatever_a_smaller_one_does(text, one, other):
    small, large = sorted((one, other))
    assert is_held_out(text, large) or not is_held_out(text, small)


def test_the_split_is_the_same_on_every_machine():
    assert [number for number in range(60) if is_held_out(f"word {number}")] == [16, 31, 34, 39, 47]


def test_sentences_come_from_the_files_given(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text(" ".join(f"This is sentence number {number}. Too short." for number in range(50)))
    seen, held_out = (haystack_sentences([text], held_out=side) for side in (False, True))
    own = {f"This is sentence number {number}." for number in range(50)}
    assert set(seen) | set(held_out) == own | set(NOISE)
    assert set(seen) & set(held_out) == set(NOISE)


def test_noise_is_about_a_tenth_of_the_sentences():
    sentences = haystack_sentences(held_out=False)
    noise = sum(sentence in NOISE for sentence in sentences)
    assert 0.05 < noise / len(sentences) < 0.15


def test_files_without_sentences_are_refused(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short. Again.")
    with pytest.raises(TrainingDataError, match=r"no sentences of 3 to 40 words in .*short\.txt"):
        haystack_sentences([text], held_out=False)
    with pytest.raises(DocumentError, match="gone"):
        haystack_sentences([tmp_path / "gone.txt"], held_out=False)
