"""Runs of several ways: none is made, and no document is, where every answer is there already."""

import pytest

from msa.evaluation.runs import run_samples, run_sets
from msa.evaluation.types import Question, QuestionSet

SETS = [
    QuestionSet(
        name=name,
        documents={"a": "alpha", "b": "beta"},
        questions=tuple(Question(id=str(i), question=f"q{i}", answers=("alpha",)) for i in range(2)),
        notes=(f"about {name}",),
    )
    for name in ("first", "second")
]
WAYS = ("one", "two")


def run_questions_of_sets(make, ways, sets, log):
    return run_sets(make, ways, sets, log, count=len, max_new_tokens=5, say=lambda message: None)


def run_questions_of_samples(make, ways, sets, log):
    records, notes = run_samples(make, ways, sets, log, size_tokens=9, say=lambda message: None)
    assert notes == [note for each in sets for note in each.notes]
    return records


@pytest.mark.parametrize("run", [run_questions_of_sets, run_questions_of_samples])
def test_a_way_is_made_only_where_it_has_a_question_left(run, make, made, log):
    records = run(make, WAYS[:1], SETS, log)
    assert [(record.set, record.question_id) for record in records] == [
        (each.name, question.id) for each in SETS for question in each.questions
    ]
    assert [way.name for way in made] == ["one", "one"]
    assert all(way.closed for way in made)
    again = run(make, WAYS, SETS, log)
    assert [way.name for way in made[2:]] == ["two", "two"]
    assert [record for record in again if record.answerer == "one"] == records
    assert run(make, WAYS, SETS, log) == again
    assert len(made) == 4


def test_a_way_that_fails_is_closed_and_what_it_answered_is_kept(make, made, log):
    def failing(name):
        way = make(name)
        answer = way.answer

        def once(question, max_new_tokens):
            if log.records:
                raise KeyboardInterrupt
            return answer(question, max_new_tokens)

        way.answer = once
        return way

    with pytest.raises(KeyboardInterrupt):
        run_questions_of_sets(failing, WAYS, SETS, log)
    assert (len(made), made[-1].closed, len(log.records)) == (1, True, 1)


def test_some_ways_are_asked_fewer_questions(make, log):
    given = {"count": len, "max_new_tokens": 5, "say": lambda message: None}
    records = run_sets(make, WAYS, SETS, log, limits={"two": 3}, **given)
    assert [(record.set, record.answerer, record.question_id) for record in records] == [
        *(("first", way, number) for way in WAYS for number in "01"),
        *(("second", way, number) for way, number in (("one", "0"), ("one", "1"), ("two", "0"))),
    ]
