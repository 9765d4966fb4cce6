"""Runs of several ways: none is made, and no document is, where every answer is there already."""

import re

import pytest

from msa.evaluation.records import RecordLog
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.runs import run_growing, run_samples, run_sets
from msa.evaluation.types import Prediction, Question, QuestionSet

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


class Way:
    """Answers with the ids of all documents it has taken in; once closed, it cannot."""

    def __init__(self, name):
        self.name, self.documents, self.closed = name, {}, False

    def prepare(self, documents):
        assert not self.documents.keys() & documents.keys()
        self.documents |= documents

    def answer(self, question, max_new_tokens):
        assert not self.closed
        return Prediction(text=" ".join(self.documents))

    def resident_bytes(self):
        return 0

    def close(self):
        self.closed = True


@pytest.fixture
def made():
    """Every way that was made."""
    return []


@pytest.fixture
def make(made):
    def way(name):
        made.append(Way(name))
        return made[-1]

    return way


@pytest.fixture
def log(tmp_path):
    with RecordLog(tmp_path / "records.jsonl", {}) as log:
        yield log


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


def count(text):
    return len(re.findall(r"\w+", text))


class Growing(GrowingMemory):
    """Notes the sizes whose documents were made."""

    def documents(self, size):
        self.read.append(size)
        return super().documents(size)


def growing(*sizes):
    memory = Growing("niah_single_1", sizes, count, num_questions=11, document_tokens=60)
    memory.read = []
    return memory


def run_over(memory, make, ways, log):
    return run_growing(make, ways, memory, log, lambda message: None)


def test_growing_documents_are_taken_in_once_and_only_for_questions_that_are_left(make, made, log):
    small, large = growing(1000, 2000), growing(1000, 2000, 4000)
    records = run_over(small, make, WAYS[:1], log)
    assert [record.size_tokens for record in records] == [1000] * 11 + [2000] * 11
    assert (len(made), made[0].closed, small.read) == (1, True, [1000, 2000])
    assert [len(record.text.split()) for record in records[::11]] == [
        small.num_documents(1000),
        small.num_documents(2000),
    ]
    small.read.clear()
    assert run_over(small, make, WAYS[:1], log) == records
    assert (len(made), small.read) == (1, [])
    more = run_over(large, make, WAYS, log)
    assert [way.name for way in made[1:]] == ["one", "two"]
    assert [record for record in more if record.answerer == "one"][:22] == records
    assert all(len(way.documents) == large.num_documents(4000) for way in made[1:])


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
        run_over(growing(1000), failing, WAYS, log)
    assert made[-1].closed
    assert len(log.records) == 1
    with pytest.raises(KeyboardInterrupt):
        run_questions_of_sets(failing, WAYS, SETS, log)
    assert (len(made), made[-1].closed, len(log.records)) == (2, True, 1)
