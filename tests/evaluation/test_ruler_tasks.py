"""RULER's parameters and words, transcribed from its repository and not from our code; keys and values; scores."""

import itertools
from dataclasses import dataclass

import pytest

import msa.evaluation.ruler.tokens as tokens
from msa.errors import EvaluationError
from msa.evaluation.ruler import NIAH, TASKS, VtTask, Words, find_task, ruler_words, score, string_match_all
from msa.evaluation.ruler.score import string_match_part
from msa.evaluation.ruler.tasks import niah_answer_prefix, niah_head, niah_question, vt_answer_prefix, vt_question
from msa.evaluation.ruler.tokens import Numbered
from msa.training.data.words import is_held_out

TABLE = """
niah_single_1   noise  words numbers 1 1 1
niah_single_2   essay  words numbers 1 1 1
niah_single_3   essay  words uuids   1 1 1
niah_multikey_1 essay  words numbers 4 1 1
niah_multikey_2 needle words numbers 1 1 1
niah_multikey_3 needle uuids uuids   1 1 1
niah_multivalue essay  words numbers 1 4 1
niah_multiquery essay  words numbers 1 1 4
"""
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} "
    "mentioned in the provided text? The special magic {type_needle_v} for {query} mentioned in the provided text are"
)


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=lambda row: row.split()[0])
def test_parameters(row):
    name, haystack, key, value, *numbers = row.split()
    task = TASKS[name]
    assert (task.name, task.haystack, task.key, task.value) == (name, haystack, key, value)
    assert [task.num_keys, task.num_values, task.num_queries] == list(map(int, numbers))
    assert task.tokens_to_generate == 128
    assert task.hidden_keys == max(task.num_keys, task.num_queries)


def test_the_tasks_are_these_and_variable_tracking():
    assert list(NIAH) == [row.split()[0] for row in TABLE.strip().splitlines()]
    assert list(TASKS) == [*NIAH, "vt"]
    assert TASKS["vt"] == VtTask(name="vt", haystack="noise", num_chains=1, num_hops=4, tokens_to_generate=30)
    with pytest.raises(ValueError, match=r"niah_single_1.*found 'niah'"):
        find_task("niah")


@pytest.mark.parametrize("name", NIAH)
def test_prompts_are_rulers_template_after_rulers_replacements(name):
    task = TASKS[name]
    keys = [f"big-key{number}" for number in range(task.num_queries)]
    template, kind = TEMPLATE, task.value
    if task.num_queries * task.num_values == 1:
        template, kind = template.replace("Some", "A").replace("are all", "is").replace("are", "is"), kind[:-1]
    query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    wanted = template.format(type_needle_v=kind, context="CONTEXT", query=query)
    assert niah_head(task) + "\nCONTEXT\n" + niah_question(task, keys) + niah_answer_prefix(task, keys) == wanted
    assert task.needle("a-b", "17") == f"One of the special magic {task.value} for a-b is: 17."


def test_words_of_variable_tracking():
    assert vt_question("12345") == "Find all variables that are assigned the value 12345 in the text above."
    assert vt_answer_prefix(TASKS["vt"], "12345") == (
        " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assgined the "
        "value 12345, they are: "
    )


def test_words_are_those_of_a_known_version():
    words = ruler_words()
    assert (len(words.adjectives), len(words.nouns), words.note) == (910, 6782, "") or words.note
    # adjective-noun pairs are told apart by their text, hyphens and all
    nouns = set(words.nouns)
    for adjective in words.adjectives:
        for end in (i for i, letter in enumerate(adjective) if letter == "-"):
            if adjective[:end] in words.adjectives:
                assert not [noun for noun in nouns if f"{adjective[end + 1 :]}-{noun}" in nouns]


def test_other_lists_are_said_to_be_other(monkeypatch, caplog):
    monkeypatch.setattr(tokens, "WORD_LISTS", {"1.0": ("0", "1")})
    assert "lists differ from those RULER has been used with (versions 1.0)" in ruler_words().note
    assert "lists differ" in caplog.text


def test_without_wonderwords_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tokens, "files", missing)
    with pytest.raises(EvaluationError, match=r"pip install 'memory-sparse-attention\[eval\]'"):
        ruler_words()


def test_held_out_words_were_never_seen_in_training():
    words = ruler_words(held_out=True)
    assert all(is_held_out(word) for word in (*words.adjectives, *words.nouns))
    assert "kept out of training" in words.note


@pytest.mark.parametrize("kind", ["words", "numbers", "uuids", "variables", "assigned"])
def test_numbered_tokens_never_meet(kind):
    made = Numbered(kind, ruler_words(), "a")
    found = [made[n] for n in itertools.chain(range(20_000), range(-20_000, 0))]
    assert len(set(found)) == len(found)
    assert found[7] == Numbered(kind, ruler_words(), "a")[7] != Numbered(kind, ruler_words(), "b")[7]


def test_numbered_tokens_use_all_there_is_and_no_more():
    words = Words(("a", "b", "c"), ("x", "y"))
    made = Numbered("words", words, "a")
    assert {made[n] for n in range(6)} == {f"{a}-{n}" for a in "abc" for n in "xy"}
    for number in (6, -7):
        with pytest.raises(ValueError, match="more than 6 distinct words"):
            made[number]


@dataclass
class Answer:
    task: str
    text: str
    answers: tuple[str, ...]


def test_scores_are_those_of_rulers_own_functions():
    answers = [
        Answer("one", "it is 1234567.", ("1234567",)),
        Answer("one", "", ("7654321",)),
        Answer("one", "ABC-Def", ("abc-DEF",)),
        Answer("one", "123456", ("1234567",)),
        Answer("four", "1 and 2\x00 and 3", ("1", "2", "3", "4")),
        Answer("four", "4", ("1", "2", "3", "4")),
    ]
    found = score(answers)
    assert [(t.task, t.score, t.samples, t.empty) for t in found.tasks] == [("one", 50.0, 4, 1), ("four", 50.0, 2, 0)]
    assert found.average == 50.0
    assert all(0 <= one.low < one.score < one.high <= 100 for one in (*found.tasks,))
    assert found.low < 50 < found.high
    assert found == score(answers)


def test_all_right_is_not_certain():
    found = score([Answer(task, "x", ("x",)) for task in ("a", "b") for _ in range(20)])
    assert (found.average, found.high) == (100.0, 100.0)
    assert 80 < found.tasks[0].low < 90
    assert found.tasks[0].low < found.low < 100  # two tasks know more than one


def test_each_task_weighs_the_same():
    many = [Answer("a", "x", ("x",))] * 99 + [Answer("b", "", ("x",))]
    assert score(many).average == 50.0


def test_matching():
    assert string_match_all("one TWO", ["two", "three"]) == 0.5
    assert string_match_part("one TWO", ["two", "three"]) == 1.0
    assert string_match_part("one", ["two", "three"]) == 0.0
    assert string_match_all("a\x01b", ["a\nb"]) == 1.0  # control characters become line breaks, as in RULER


def test_nothing_to_score():
    with pytest.raises(EvaluationError, match="no answers"):
        score([])
    with pytest.raises(EvaluationError, match="no references"):
        score([Answer("a", "x", ())])
