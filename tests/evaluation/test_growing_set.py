"""A question set over a growing share of its documents."""

import pytest

from msa.errors import EvaluationError
from msa.evaluation.growing_set import GrowingSet
from msa.evaluation.sets import ANSWERABLE
from msa.evaluation.types import Question, QuestionSet

DOCUMENTS = {f"d{number}": f"text {number}" for number in range(20)}
QUESTIONS = (
    Question(id="one", question="q1", answers=("a",), positives=("d7",)),
    Question(id="two", question="q2", answers=("a",), positives=("d3", "d15")),
    Question(id="three", question="q3", answers=("a",), positives=("d11",)),
    Question(id="nothing", question="q4", answers=(), metadata={ANSWERABLE: False}),
    Question(id="somewhere", question="q5", answers=("a",)),
)
SET = QuestionSet(name="letters", documents=DOCUMENTS, questions=QUESTIONS, notes=("about letters",))


def count(text):
    return len(text.split())


def growing(*numbers, questions=SET, **options):
    return GrowingSet(questions, numbers, count, **options)


def asked(memory):
    return [[question.id for question in memory.asked(size)] for size in memory.sizes]


def test_a_size_holds_what_its_questions_need_and_only_adds():
    memory = growing(3, 9, 20)
    assert memory.sizes == (6, 18, 40)
    parts = [dict(memory.documents(size)) for size in memory.sizes]
    assert [len(part) for part in parts] == [3, 6, 11]
    assert [memory.num_documents(size) for size in memory.sizes] == [3, 9, 20]
    assert set(parts[0]) == {"d7", "d3", "d15"}
    assert "d11" in parts[1]
    assert {name: text for part in parts for name, text in part.items()} == DOCUMENTS
    assert memory.notes[0] == "about letters"


def test_a_question_is_asked_where_all_it_needs_is_there():
    assert asked(growing(1, 3, 9, 20)) == [
        ["one", "nothing"],
        ["one", "two", "nothing"],
        ["one", "two", "three", "nothing"],
        ["one", "two", "three", "nothing", "somewhere"],
    ]


def test_the_draw_is_the_seeds_and_places_tell_nothing():
    def order(seed):
        memory = growing(10, 20, seed=seed)
        return [name for size in memory.sizes for name, _ in memory.documents(size)]

    assert order(0) == order(0) != order(1)
    needed = {"d7", "d3", "d15", "d11"}
    assert any(set(order(seed)[:4]) != needed for seed in range(3))
    assert all(needed <= set(order(seed)[:10]) for seed in range(3))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((), "growing numbers of documents, found"),
        ((5, 5), r"growing numbers of documents, found \[5, 5\]"),
        ((0, 5), "growing numbers of documents"),
        ((5, 21), "has 20 documents, 21 were asked for"),
    ],
)
def test_numbers_that_do_not_grow_are_refused(numbers, message):
    with pytest.raises(EvaluationError, match=message):
        growing(*numbers)


def test_sets_that_ask_nothing_at_first_are_refused():
    late = QuestionSet(name="late", documents=DOCUMENTS, questions=QUESTIONS[1:2])
    with pytest.raises(EvaluationError, match="none of the questions of 'late' can be answered from 1 documents"):
        growing(1, 20, questions=late)
    empty = QuestionSet(name="empty", documents={"d7": "", "d8": "x"}, questions=QUESTIONS[:1])
    with pytest.raises(EvaluationError, match="documents without text"):
        growing(1, 2, questions=empty)
