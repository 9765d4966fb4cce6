"""The cut into documents: nothing lost, nothing cut through, and the right documents named as positives."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.errors import EvaluationError
from msa.evaluation.ruler import TASKS, Needle, Sample, SampleMaker, cut, question_set, ruler_sets
from msa.evaluation.ruler.samples import find_needles
from msa.evaluation.runner import check_questions


def count(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def squeezed(text):
    return "".join(text.split())


NEEDLES = st.builds(
    lambda kind, key, value: f"One of the special magic {kind} for {key} is: {value}.",
    st.sampled_from(["numbers", "words", "uuids"]),
    st.sampled_from(["big-dog", "ad hoc-dump truck", "3-D-x", "a", "Dr. No-U.S. Navy"]),
    st.sampled_from(["1234567", "blue-eyed cat", "0-0", "x"]),
)
TEXT = st.sampled_from(
    ["One two. ", "No end", "\n", "\n\n ", " ", "word " * 30, "x" * 300, "Eh?! ", '"Yes." ', "é≈中文。", "A."]
)
CONTEXTS = st.lists(st.one_of(TEXT, NEEDLES), min_size=1, max_size=25).map("".join)


@given(CONTEXTS, st.integers(1, 60))
def test_no_needle_is_cut_and_nothing_is_lost(context, document_tokens):
    needles = find_needles(TASKS["niah_single_1"], context)
    pieces = cut(context, needles, count, document_tokens)
    assert squeezed("".join(piece.text for piece in pieces)) == squeezed(context)
    assert all(piece.text == context[piece.start : piece.end].strip() for piece in pieces)
    for needle in needles:
        text = context[needle.start : needle.end]
        assert [needle.start >= p.start and needle.end <= p.end and text in p.text for p in pieces].count(True) == 1
    assert sum(len(find_needles(TASKS["niah_single_1"], piece.text)) for piece in pieces) == len(needles)


@given(CONTEXTS, st.integers(5, 60))
def test_documents_are_about_as_long_as_asked(context, document_tokens):
    pieces = cut(context, find_needles(TASKS["niah_single_1"], context), count, document_tokens)
    longest = 30  # a needle, or a word no cut can go through
    assert all(count(piece.text) <= document_tokens + longest for piece in pieces)


@pytest.mark.parametrize("document_tokens", [16, 100, 512])
def test_documents_are_of_equal_size(document_tokens):
    sample = SampleMaker("niah_single_2", 4096, count).sample(0)
    sizes = [count(piece.text) for piece in cut(sample.context, sample.needles(), count, document_tokens)]
    if document_tokens > 16:  # sentences are longer than that
        assert max(sizes) < 1.5 * document_tokens
        assert min(sizes) > 0.5 * document_tokens
    assert abs(sum(sizes) / len(sizes) - document_tokens) < 0.2 * document_tokens


def test_a_needle_longer_than_a_document_is_one():
    context = "One of the special magic numbers for a-b is: 1234567. Then more. And more."
    pieces = cut(context, find_needles(TASKS["niah_single_1"], context), count, 1)
    assert pieces[0].text == "One of the special magic numbers for a-b is: 1234567."


def test_no_text_no_documents():
    assert cut(" \n ", [], count, 10) == []
    with pytest.raises(ValueError, match="document_tokens of at least 1"):
        cut("a", [], count, 0)


@pytest.mark.parametrize("task", TASKS)
def test_positives_hold_the_answers_and_no_other_document_does(task):
    for questions in ruler_sets(task, 2048, count, num_samples=4, document_tokens=128):
        check_questions(questions)
        (question,) = questions.questions
        assert len(questions.documents) > 8
        for answer in question.answers:
            holders = {name for name, text in questions.documents.items() if answer in text}
            assert holders <= set(question.positives)
            assert holders
        assert question.max_new_tokens == TASKS[task].tokens_to_generate
        assert question.task == task
        depths = question.metadata["depths"]
        assert len(depths) == len(question.answers)
        names = list(questions.documents)
        middle = [(names.index(name) + 0.5) / len(names) * 100 for name in question.positives]
        assert abs(sum(depths) / len(depths) - question.metadata["depth"]) < 0.01
        assert all(min(abs(place - depth) for place in middle) < 12 for depth in depths)
        assert any("cut between sentences" in note for note in questions.notes)
        assert any("substitute" in note for note in questions.notes) == (TASKS[task].haystack == "essay")
        assert question.metadata["example"] not in " ".join(questions.documents.values()) or task != "vt"
        if task == "vt":
            assert [name for (name,) in question.hops] == list(question.positives)


def test_ids_of_samples_differ():
    sets = list(ruler_sets("niah_single_1", 512, count, num_samples=3))
    assert len({questions.questions[0].id for questions in sets}) == 3


def sample(context, answers, question="What is the special magic number for a-b mentioned in the provided text?"):
    return Sample(
        task="niah_single_1", index=7, head="", context=context, question=question, answer_prefix="", answers=answers
    )


def test_only_needles_with_key_and_value_are_asked_for():
    needle = "One of the special magic numbers for {} is: {}."
    context = " ".join(needle.format(*one) for one in (("a-b", "1"), ("a-b", "2"), ("a-c", "1"), ("b-a-b", "1")))
    made = sample(context, ("1",))
    assert [(one.key, one.value) for one in made.asked()] == [("a-b", "1")]
    assert made.asked()[0] == Needle(0, len(needle.format("a-b", "1")), "a-b", "1")


@pytest.mark.parametrize(
    ("context", "answers", "message"),
    [
        ("The grass is green.", ("1",), "the answer '1', which no needle"),
        ("One of the special magic numbers for a-b is: 1.", ("1", "2"), "the answer '2', which no needle"),
        ("One of the special magic numbers for a-b is: 1.", (), "no answers"),
    ],
)
def test_answers_that_are_not_there(context, answers, message):
    with pytest.raises(EvaluationError, match=f"sample 7 of niah_single_1 has {message}"):
        question_set(sample(context, answers), count)
