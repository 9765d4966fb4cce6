import sys

import pytest

from msa.errors import EvaluationError
from msa.evaluation.metrics.longbench import (
    METRICS,
    TASKS,
    chosen_letter,
    classification,
    code_similarity,
    count,
    longbench_score,
    qa_f1,
    qa_f1_zh,
    retrieval,
    retrieval_zh,
    rouge_l,
    rouge_l_zh,
)


def test_every_task_has_a_metric():
    assert len(TASKS) == 21
    assert {task.metric for task in TASKS.values()} == {*METRICS, "classification"}
    assert sorted(name for name, task in TASKS.items() if task.first_line) == ["lsht", "samsum", "trec", "triviaqa"]
    assert {name for name, task in TASKS.items() if task.max_new_tokens == 128} == {
        "narrativeqa",
        "qasper",
        "dureader",
        "samsum",
    }


def test_qa_f1():
    assert qa_f1("The cat sat", "a cat") == pytest.approx(2 / 3)
    assert qa_f1("", "cat") == qa_f1("cat", "") == 0.0


def test_the_best_answer_and_the_first_line():
    assert longbench_score("triviaqa", "\n\nParis\nRome", ["Rome", "Paris"]) == 1.0
    assert longbench_score("hotpotqa", "Paris\nRome", ["Paris"]) == pytest.approx(2 / 3)
    assert longbench_score("trec", "Date\nNumber", ["Date"], ["Date", "Number"]) == 1.0


def test_counts_and_paragraphs():
    assert count("there are 7, or 12", "7") == 0.5
    assert count("seven", "7") == count("", "7") == 0.0
    assert count("17", "7") == 0.0
    assert retrieval("Paragraph 3", "Paragraph 30") == 0.0
    assert retrieval("3", "Paragraph 3") == 1.0
    assert retrieval_zh("段落3，段落4", "段落3") == 0.5
    with pytest.raises(ValueError, match="Paragraph"):
        retrieval("3", "the third")


def test_classification_shares_the_point():
    classes = ["Date", "Number", "Number of people"]
    assert classification("Number of people", "Number of people", classes) == 1.0  # the shorter name is taken out
    assert classification("Number of people", "Number", classes) == 0.5
    assert classification("none", "Date", classes) == 0.0
    with pytest.raises(ValueError, match="all_classes"):
        longbench_score("trec", "Date", ["Date"])


def test_classification_keeps_the_published_rule_that_skips_a_name():
    # both are parts of the right name and named, but the second is never looked at after the first is removed
    assert classification("a b ab", "a b", ["a", "b", "a b"]) == 0.5


def test_code_similarity_takes_the_first_line_of_code():
    assert code_similarity("# comment\n```python\n// other\nx = 1\n", "x = 1") == 1.0
    assert code_similarity("# only a comment", "x") == 0.0
    assert code_similarity("", "") == 1.0


@pytest.mark.parametrize(
    ("one", "other"), [("x = foo(1)", "x = foo(2)"), ("abc", ""), ("return self.a", "yield b"), ("aab" * 90, "ab" * 99)]
)
def test_code_similarity_is_fuzzywuzzys(one, other):
    fuzzy = pytest.importorskip("fuzzywuzzy.fuzz")
    assert code_similarity(one, other) == fuzzy.ratio(one, other) / 100


def test_rouge_l():
    pytest.importorskip("rouge")
    assert rouge_l("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1.0)
    assert rouge_l("a b c d", "a c e") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3), abs=1e-6)
    for prediction, answer in (("", "a"), ("a", ""), ("...", "a")):
        assert rouge_l(prediction, answer) == 0.0


def test_rouge_l_of_a_text_longer_than_the_recursion_limit():
    pytest.importorskip("rouge")
    words = [f"w{number}" for number in range(sys.getrecursionlimit())]
    limit = sys.getrecursionlimit()
    assert rouge_l(" ".join(words), " ".join(words[:20])) == pytest.approx(2 * 20 / (20 + len(words)), rel=1e-3)
    assert sys.getrecursionlimit() == limit


def test_chinese():
    pytest.importorskip("jieba")
    pytest.importorskip("rouge")
    assert qa_f1_zh("北京。", "北京") == 1.0
    assert qa_f1_zh("上海", "北京") == qa_f1_zh("！", "北京") == 0.0
    assert 0.0 < qa_f1_zh("我在北京工作", "北京") < 1.0
    assert rouge_l_zh("我在北京工作", "我在北京工作") == pytest.approx(1.0)
    assert longbench_score("dureader", "上海", ["北京"]) == 0.0


@pytest.mark.parametrize(("name", "score"), [("rouge", rouge_l), ("jieba", qa_f1_zh)])
def test_a_library_that_is_missing_is_named(name, score, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EvaluationError, match=rf"{name}: pip install 'memory-sparse-attention\[longbench\]'"):
        score("x", "x")


def test_mistakes():
    with pytest.raises(ValueError, match="'squad'; there are narrativeqa"):
        longbench_score("squad", "x", ["x"])
    with pytest.raises(ValueError, match="no reference answers"):
        longbench_score("qasper", "x", [])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (C)", "C"),
        ("I think... **The correct answer is (D).**", "D"),
        ("The correct answer is B because", "B"),
        ("The correct answer is A. No: The correct answer is (B)", "B"),
        ("The correct answer is (E)", None),
        ("the correct answer is (A)", None),
        ("(A)", None),
        ("", None),
    ],
)
def test_the_chosen_letter(text, letter):
    assert chosen_letter(text) == letter
