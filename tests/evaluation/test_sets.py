import json
import logging
import os
import re

import pytest
from set_files import in_own_folder, write  # noqa: F401 (a fixture)
from set_files import refused_questions as refused

from msa.errors import EvaluationError
from msa.evaluation.sets import (
    ANSWERABLE,
    read_question_set,
    write_question_set,
)
from msa.evaluation.types import Question, QuestionSet

QUESTION = {"question": "q", "answers": ["x"], "ids": ["a"]}


def test_a_folder_of_ours():
    write("s/corpus.jsonl", {"id": "a", "text": "A"}, {"_id": "b", "title": "B", "text": "b"}, {"id": 3, "text": "C"})
    write(
        "s/questions.jsonl",
        {
            "id": "one",
            "question": "q1",
            "answers": ["x", "y", "x"],
            "ids": ["a", "b"],
            "hops": [["b"], ["a"]],
            "task": "t",
            "answer_prefix": "It is",
            "max_new_tokens": 7,
            "metadata": {"kind": "k"},
        },
        "",
        {"question": "q2", "answers": "z", "documents": ["D", {"id": "e", "text": "E"}], "positives": [1]},
        {"question": "q3", "answers": [3], "hops": [["3"], ["a"]]},
        {"question": "q4", "answerable": False},
    )
    got = read_question_set("s")
    assert got.name == "s"
    assert got.documents == {"a": "A", "b": "B\nb", "3": "C", "questions.jsonl:3#0": "D", "e": "E"}
    assert got.notes == ("documents from corpus.jsonl",)
    assert got.questions == (
        Question(
            id="one",
            question="q1",
            answers=("x", "y"),
            positives=("a", "b"),
            hops=(("b",), ("a",)),
            task="t",
            answer_prefix="It is",
            max_new_tokens=7,
            metadata={"kind": "k"},
        ),
        Question(id="questions.jsonl:3", question="q2", answers=("z",), positives=("e",)),
        Question(id="questions.jsonl:4", question="q3", answers=("3",), positives=("3", "a"), hops=(("3",), ("a",))),
        Question(id="questions.jsonl:5", question="q4", answers=(), metadata={ANSWERABLE: False}),
    )


def test_one_file_of_ours_and_its_corpus():
    write("q.jsonl", QUESTION)
    assert "no document has the id" in refused("q.jsonl")
    write("corpus.jsonl", {"id": "a", "text": "shared"})
    assert read_question_set("q.jsonl").documents == {"a": "shared"}
    write("q_corpus.jsonl", {"id": "a", "text": "its own"})
    assert read_question_set("q.jsonl").documents == {"a": "its own"}
    write("c1.jsonl", {"id": "a", "text": "given"})
    write("c2.jsonl", {"id": "b", "text": "too"})
    got = read_question_set("q.jsonl", corpus=["c1.jsonl", "c2.jsonl"], name="mine")
    assert (got.name, got.documents) == ("mine", {"a": "given", "b": "too"})
    assert got.notes == ("documents from c1.jsonl, c2.jsonl",)


def test_documents_inside_the_questions_need_no_corpus():
    write("q.json", json.dumps([{"question": "q", "answers": ["x"], "documents": ["D"]}]))
    got = read_question_set("q.json")
    assert got.documents == {"q.json:1.1#0": "D"}
    assert got.questions[0].positives == ("q.json:1.1#0",)


def test_what_is_written_is_read_back():
    documents = {"a": "A\nline 2", "b": "B"}
    questions = (
        Question(id="1", question="q", answers=("x",), positives=("a",), metadata={"n": [1], ANSWERABLE: False}),
        Question(
            id="2",
            question="r",
            answers=("y", "z"),
            positives=("b", "a"),
            hops=(("b",), ("a",)),
            task="t",
            answer_prefix="p",
            max_new_tokens=3,
        ),
        Question(id="3", question="nobody knows where", answers=("y",)),
    )
    whole = QuestionSet(name="set", documents=documents, questions=questions)
    write_question_set(whole, "set")
    got = read_question_set("set")
    assert (got.documents, got.questions) == (documents, questions)
    write_question_set(got, "set")  # over itself
    assert read_question_set("set").questions == questions
    assert sorted(os.listdir("set")) == ["corpus.jsonl", "questions.jsonl"]


def test_metadata_that_json_cannot_hold():
    questions = (Question(id="1", question="q", answers=("x",), metadata={"when": object()}),)
    with pytest.raises(EvaluationError, match="record 1 cannot be written as JSON"):
        write_question_set(QuestionSet(name="s", documents={"a": "A"}, questions=questions), "s")
    assert not os.path.exists("s/questions.jsonl")


MISTAKES = [
    ("{", "not JSON"),
    (b"\xff", "not UTF-8"),
    ("7", "expected an object such as"),
    ("[" * 100_000, "nested too deeply"),
    ({**QUESTION, "question": " "}, "the question is empty"),
    ({"answers": ["x"]}, 'has no "question" (its keys: "answers")'),
    ({"question": "q", "ids": ["a"]}, "has no reference answer"),
    ({**QUESTION, "answers": []}, "has no reference answer"),
    ({**QUESTION, "answers": None}, "has no reference answer"),
    ({**QUESTION, "answers": ["x", " "]}, "a reference answer is empty"),
    ({**QUESTION, "answers": {"text": "x"}}, '"answers" is an object'),
    ({**QUESTION, "answers": [True]}, '"answers" holds a boolean'),
    ({**QUESTION, "ids": "a"}, '"ids" is a string'),
    ({**QUESTION, "ids": ["zz"]}, 'no document has the id "zz"'),
    ({**QUESTION, "ids": [0]}, '"ids" names document number 0, but "documents" has 0'),
    ({**QUESTION, "ids": [["a"]]}, '"ids" holds a list'),
    ({**QUESTION, "documents": [{"id": "a", "text": "another"}]}, 'the id "a" has another text in corpus.jsonl:1'),
    ({**QUESTION, "documents": [" "]}, "has no text"),
    ({**QUESTION, "documents": [7]}, "found a number"),
    ({**QUESTION, "hops": [["a"], []]}, "a step without documents"),
    ({**QUESTION, "hops": [["b"]]}, '"hops" names "b", which does not hold the answer'),
    ({**QUESTION, "hops": ["a"]}, '"hops" is a string'),
    ({**QUESTION, "max_new_tokens": 0}, '"max_new_tokens" is "0"'),
    ({**QUESTION, "max_new_tokens": True}, '"max_new_tokens" is "True"'),
    ({**QUESTION, "answerable": "no"}, '"answerable" is a string'),
    ({**QUESTION, "metadata": []}, "found a list"),
    ({**QUESTION, "id": "good"}, 'the id "good" is also that of q.jsonl:1'),
    ({**QUESTION, "id": ""}, '"id" is an empty string'),
]


@pytest.mark.parametrize(("line", "what"), MISTAKES)
def test_mistakes_are_named_and_never_dropped_silently(line, what, caplog):
    write("corpus.jsonl", {"id": "a", "text": "A"}, {"id": "b", "text": "B"})
    write("q.jsonl", {**QUESTION, "id": "good"}, line)
    message = refused("q.jsonl")
    assert re.match(r"q: [12] problems? \(1 × ", message)
    assert "q.jsonl:2: " in message
    assert what in message
    with caplog.at_level(logging.WARNING):
        got = read_question_set("q.jsonl", skip_bad=True)
    assert "good" in [question.id for question in got.questions]
    assert what in got.notes[-1]
    assert "q.jsonl:2: " in got.notes[-1]
    assert "q.jsonl:2: " in caplog.text


def test_many_mistakes_are_counted_and_all_logged(caplog):
    write("corpus.jsonl", {"id": "a", "text": "A"})
    write("q.jsonl", QUESTION, *[{**QUESTION, "answers": []}] * 15, *["{"] * 5)
    message = refused("q.jsonl")
    assert "20 problems (15 × missing answer, 5 × broken JSON)" in message
    assert message.count("q.jsonl:") == 10
    assert "And 10 more.\nCorrect them, or leave these records out with --skip-bad (in Python skip_bad=True)" in message
    assert "documents.\n" in message
    with caplog.at_level(logging.WARNING):
        got = read_question_set("q.jsonl", skip_bad=True)
    assert len(got.questions) == 1
    assert all(f"q.jsonl:{line}: " in caplog.text for line in range(2, 22))


def test_sets_with_nothing_to_ask():
    write("corpus.jsonl", {"id": "a", "text": "A"})
    write("empty.jsonl")
    assert "empty has no questions that can be used (0 questions were read)" in refused("empty.jsonl")
    write("bad.jsonl", {"question": "q"})
    message = refused("bad.jsonl", skip_bad=True)
    assert "bad has no questions that can be used" in message
    assert "bad.jsonl:1: has no reference answer" in message
    write("d/q.jsonl", {"question": "q", "answers": ["x"]})
    assert "q has no documents that can be used (1 questions" in refused("d/q.jsonl")


def test_retrieval_only_sets_need_no_answers():
    write("corpus.jsonl", {"id": "a", "text": "A"})
    write("q.jsonl", {"question": "q", "ids": ["a"]})
    assert read_question_set("q.jsonl", retrieval_only=True).questions[0].answers == ()


def test_keys_that_nothing_uses_are_told(caplog):
    write("corpus.jsonl", {"id": "a", "text": "A"})
    write("q.jsonl", {**QUESTION, "dificulty": 1})
    with caplog.at_level(logging.WARNING):
        read_question_set("q.jsonl")
    assert 'keys that nothing makes use of, with the number of records: "dificulty" (1)' in caplog.text


def test_wrong_arguments():
    write("q.jsonl", {"question": "q", "answers": ["x"], "documents": ["D"]})
    for options, error, what in (
        ({"format": "squad"}, ValueError, "format is 'squad'; expected one of auto"),
        ({"max_document_chars": 0}, ValueError, "max_document_chars of at least 1"),
        ({"corpus": "q.jsonl"}, TypeError, "put it into a list"),
        ({"format": "longbench", "corpus": ["q.jsonl"]}, ValueError, "corpus is for sets of the format msa"),
        ({"corpus": ["lost.jsonl"]}, EvaluationError, "lost.jsonl cannot be found"),
        ({"format": "beir"}, EvaluationError, "q.jsonl is not a folder"),
        ({"format": "msa-rag-benchmarks"}, EvaluationError, r"expected qdata_<name>\.pkl"),
    ):
        with pytest.raises(error, match=what):
            read_question_set("q.jsonl", **options)
    assert "nowhere cannot be found" in refused("nowhere")
    os.mkdir("folder")
    assert "holds neither questions.jsonl nor queries.jsonl" in refused("folder")
    assert "holds no questions.jsonl" in refused("folder", "msa")
    assert "folder is not a file" in refused("folder", "longmemeval")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read():
    write("q.jsonl", QUESTION)
    os.chmod("q.jsonl", 0)
    assert "q.jsonl cannot be read" in refused("q.jsonl")
