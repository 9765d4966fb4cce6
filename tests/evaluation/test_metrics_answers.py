import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.evaluation.metrics import (
    abstains,
    abstention_rates,
    contains_answer,
    exact_match,
    normalise_answer,
    token_f1,
)
from msa.training.data.needles import NOT_IN_MEMORY

WORDS = st.lists(st.sampled_from(["the", "a", "Paris", "rome", "7", "x-y", "!"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("", ""),
        ("The", ""),
        ("An apple, a day!", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre anatomy", "theatre anatomy"),
        ("«Élan»\u00a0vital", "«élan» vital"),
    ],
)
def test_normalisation(text, normalised):
    assert normalise_answer(text) == normalised


def test_exact_match_takes_the_best_answer():
    assert exact_match("The U.S.A.", ["France", "usa"]) == 1.0
    assert exact_match("U.S.", ["usa"]) == 0.0


def test_an_answer_of_nothing_but_articles_or_signs_is_compared_as_written():
    assert exact_match("a", ["A"]) == 1.0
    for wrong in ("", "the", "B", "!"):
        assert exact_match(wrong, ["A"]) == token_f1(wrong, ["A"]) == contains_answer(wrong, ["A"]) == 0.0
    assert exact_match("+", ["+"]) == token_f1("+", ["+"]) == 1.0
    assert exact_match("-", ["+"]) == 0.0


def test_f1_counts_repeats_as_often_as_both_have_them():
    assert token_f1("new york new york", ["york"]) == pytest.approx(0.4)
    assert token_f1("", ["york"]) == 0.0
    assert token_f1("york city", ["new york", "york city hall"]) == pytest.approx(0.8)


def test_contains_answer_looks_for_whole_words():
    assert contains_answer("It is in New York City.", ["new york"]) == 1.0
    assert contains_answer("Newark, York", ["new york"]) == 0.0
    assert contains_answer("171", ["17"]) == 0.0


@pytest.mark.parametrize("score", [exact_match, token_f1, contains_answer])
def test_no_answers_or_one_string_is_an_error(score):
    with pytest.raises(ValueError, match="no reference answers"):
        score("x", [])
    with pytest.raises(TypeError, match="put it into a list"):
        score("x", "x")


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_scores_are_between_0_and_1_and_ordered(prediction, answers):
    em, f1 = exact_match(prediction, answers), token_f1(prediction, answers)
    assert em in (0.0, 1.0)
    assert 0.0 <= f1 <= 1.0
    assert em <= f1
    assert em <= contains_answer(prediction, answers)


@given(WORDS, WORDS)
def test_f1_is_symmetric(one, other):
    if normalise_answer(one) and normalise_answer(other):
        assert token_f1(one, [other]) == pytest.approx(token_f1(other, [one]))


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I do not have any information about this.",
        "The document doesn’t mention the year.",
        "Unanswerable",
        "Unknown.",
        "It cannot be determined from the text.",
        "I can't answer that",
        "There is no mention of a dog in our conversations.",
        "Not mentioned.",
        "You have not told me; the name is not provided.",
        "Based on the history, there is\ninsufficient information.",
        NOT_IN_MEMORY,
        "That isn't in my memory",
    ],
)
def test_phrases_that_decline(text):
    assert abstains(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "No",
        "Unknown Pleasures",
        "Not in Paris but in Rome",
        "She knows it.",
        "He cannot swim.",
        "The phone was not available until 1990.",
        "There is no dog.",
        "It is in memory.",
        "The spare key is not in the drawer.",
    ],
)
def test_answers_that_do_not_decline(text):
    assert not abstains(text)


def test_abstention_rates():
    rates = abstention_rates(["unanswerable", "x", "x", "I don't know"], [False, False, True, True])
    assert (rates.accuracy, rates.false_rate) == (0.5, 0.5)
    assert abstention_rates(["x"], [True]).accuracy is None
    assert abstention_rates(["x"], [False]).false_rate is None
    for predictions, flags in (([], []), (["x"], [])):
        with pytest.raises(ValueError, match="one flag for each"):
            abstention_rates(predictions, flags)
