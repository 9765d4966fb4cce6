import os
import pickle

import pytest
from set_files import in_own_folder  # noqa: F401 (a fixture)
from set_files import refused_questions as refused

from msa.errors import EvaluationError
from msa.evaluation.sets import (
    convert_published,
    read_question_set,
)
from msa.evaluation.types import Question


def write_pickle(path, value, protocol=4):
    with open(path, "wb") as file:
        pickle.dump(value, file, protocol)


def write_published(questions, documents, name="hotpotqa", protocol=4):
    write_pickle(f"qdata_{name}.pkl", questions, protocol)
    write_pickle(f"mdata_{name}.pkl", documents, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_published_sets(protocol):
    write_published(
        [
            {"query": "q", "reference_list": ["B", "A"], "answer": "x"},
            {"query": "r", "reference_list": [2], "answer": ("y", 7, "y"), "more": {1, 2}},
            {"query": "s", "reference_list": [], "answer": "z"},
        ],
        ["A", "B", "A"],
        protocol=protocol,
    )
    for path in ("qdata_hotpotqa.pkl", "."):
        got = read_question_set(path)
        assert got.documents == {"0": "A", "1": "B"}
        assert got.questions == (
            Question(id="hotpotqa/0", question="q", answers=("x",), positives=("1", "0"), task="hotpotqa"),
            Question(id="hotpotqa/1", question="r", answers=("y", "7"), positives=("0",), task="hotpotqa"),
            Question(id="hotpotqa/2", question="s", answers=("z",), task="hotpotqa"),
        )
        assert got.notes == ("1 documents equal to an earlier one are left out",)
    assert read_question_set("qdata_hotpotqa.pkl").name == "hotpotqa"


def test_published_sets_become_ours():
    write_published([{"query": "q\ud800", "reference_list": ["B\ud800"], "answer": "x"}], {7: "A", "b": "B\ud800"})
    converted = convert_published("qdata_hotpotqa.pkl", "out")
    got = read_question_set("out")
    assert (got.documents, got.questions) == (converted.documents, converted.questions)
    assert got.documents == {"7": "A", "b": "B\ufffd"}
    assert got.questions[0].positives == ("b",)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ("q", "expected a dict with query, reference_list and answer, found a str"),
        ({"query": "q", "answer": "x"}, 'has no "reference_list" (its keys: "query", "answer")'),
        ({"query": None, "reference_list": [], "answer": "x"}, "query is a NoneType"),
        ({"query": "q", "reference_list": [], "answer": [["x"]]}, "answer is a list"),
        ({"query": "q", "reference_list": [], "answer": ""}, "a reference answer is empty"),
        ({"query": "q", "reference_list": [], "answer": []}, "has no reference answer"),
        ({"query": "q", "reference_list": ["C"], "answer": "x"}, 'reference_list names "C"'),
        ({"query": "q", "reference_list": [5], "answer": "x"}, 'reference_list names "5"'),
        ({"query": "q", "reference_list": [True], "answer": "x"}, 'reference_list names "True"'),
        ({"query": "q", "reference_list": [[]], "answer": "x"}, 'reference_list names "[]"'),
        ({"query": b"q", "reference_list": [], "answer": "x"}, "query is a bytes"),
    ],
)
def test_mistakes_in_published_sets(record, what):
    write_published([{"query": "q", "reference_list": ["A"], "answer": "x"}, record], ["A"])
    message = refused("qdata_hotpotqa.pkl")
    assert "qdata_hotpotqa.pkl: item 2: " in message
    assert what in message
    with pytest.raises(EvaluationError, match="1 problem"):
        convert_published("qdata_hotpotqa.pkl", "out")
    assert not os.path.exists("out")
    assert len(convert_published("qdata_hotpotqa.pkl", "out", skip_bad=True).questions) == 1


def test_published_sets_of_another_shape():
    write_published({"query": "q"}, ["A"])
    assert "expected a list of questions, found a dict" in refused("qdata_hotpotqa.pkl")
    write_published([], 7)
    assert "expected a list of documents, found a int" in refused("qdata_hotpotqa.pkl")
    write_published([], ["A"])
    assert "has no questions that can be used" in refused("qdata_hotpotqa.pkl")
    write_published([{"query": "q", "reference_list": [], "answer": "x"}], ["A", 1j])
    assert "only plain data is read" in refused("qdata_hotpotqa.pkl")
    write_published([{"query": "q", "reference_list": [], "answer": "x"}], ["A"], "two")
    assert "holds 2 sets. Name one: qdata_hotpotqa.pkl, qdata_two.pkl" in refused(".")
    os.remove("mdata_two.pkl")
    assert "mdata_two.pkl does not exist" in refused("qdata_two.pkl")


def test_one_file_of_questions_over_a_memory_of_another_name():
    """As the authors ask ``qdata_msmarco_16K`` over ``mdata_msmarco_100M``."""
    write_published([{"query": "q", "reference_list": ["A"], "answer": "x"}], ["A", "B"])
    os.rename("mdata_hotpotqa.pkl", "mdata_hotpotqa_100M.pkl")
    assert convert_published("qdata_hotpotqa.pkl", "out").questions[0].positives == ("0",)
    write_published([], ["C"], "three")
    os.rename("mdata_three.pkl", "mdata_other.pkl")
    os.remove("qdata_three.pkl")
    assert "put the two that belong together into a folder" in refused("qdata_hotpotqa.pkl")


def test_numbers_are_keys_where_the_memory_is_a_mapping():
    write_published([{"query": "q", "reference_list": [1], "answer": "x"}], {1: "A", 2: "B"})
    (question,) = convert_published("qdata_hotpotqa.pkl", "out").questions
    assert question.positives == ("1",), "not the second one"


def test_a_file_of_another_name():
    write_pickle("other.pkl", [])
    assert "expected qdata_<name>.pkl, or a folder that holds one" in refused("other.pkl")


def test_a_hostile_published_set(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/HACKED",)

    write_published([{"query": "q", "reference_list": [], "answer": Evil()}], ["A"])
    assert "only plain data is read" in refused("qdata_hotpotqa.pkl", skip_bad=True)
    assert not os.path.exists("HACKED")
