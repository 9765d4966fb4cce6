"""One memory for many questions: the same documents at every size, and needles at the depths that were asked for."""

import itertools
import re
from collections import Counter

import pytest

from msa.evaluation.digests import value_digest
from msa.evaluation.haystack import Essay
from msa.evaluation.ruler import (
    GRID,
    TASKS,
    GrowingMemory,
    Placement,
    Words,
    default_questions,
    density_note,
    shared_memory,
    third,
)
from msa.evaluation.ruler.samples import asked_keys, find_needles
from msa.evaluation.runner import check_questions

SIZES = (20_000, 50_000, 120_000)


def count(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def grown(task, sizes=SIZES, **settings):
    return GrowingMemory(task, sizes, count, **{"num_questions": 33, **settings})


@pytest.fixture(scope="module", params=TASKS)
def memory(request):
    return grown(request.param)


@pytest.fixture(scope="module")
def held(memory):
    """All documents of the largest size, by id, in order."""
    return {name: text for size in SIZES for name, text in memory.documents(size)}


def test_sizes_are_what_was_asked_for(memory, held):
    tokens = 0
    for size in SIZES:
        tokens += sum(count(text) for _, text in memory.documents(size))
        assert 0.95 * size < tokens < 1.05 * size
    assert len(held) == memory.num_documents(SIZES[-1])
    sizes = [count(text) for text in held.values()]
    assert max(sizes) < 800
    assert min(sizes) > 300


def test_every_answer_is_where_the_question_says(memory, held):
    task = memory.task
    needles = {name: find_needles(task, text) for name, text in held.items()}
    for question in memory.questions(SIZES[-1]):
        holders = {name for name in held if any(answer in held[name] for answer in question.answers)}
        assert holders == set(question.positives)
        if task.name == "vt":
            found = [n for name in question.positives for n in needles[name] if n.key in question.answers]
            value = re.search(r"value (\d{5}) in", question.question)[1]
            chain = {needle.key: needle.value for needle in found}
            assert chain[question.answers[0]] == value
            assert [chain[name] for name in question.answers[1:]] == [f"VAR {name}" for name in question.answers[:-1]]
            assert tuple(needle.key for needle in found) == question.answers  # in the order of the documents
        else:
            keys = asked_keys(question.question)
            found = [n for name in question.positives for n in needles[name] if n.key in keys]
            assert Counter(needle.value for needle in found) == Counter(question.answers)


def test_keys_and_values_never_meet(memory, held):
    found = [needle for text in held.values() for needle in find_needles(memory.task, text)]
    values = Counter(needle.value for needle in found)
    assert max(values.values()) == 1
    each = getattr(memory.task, "num_values", 1)
    assert set(Counter(needle.key for needle in found).values()) == {each}
    questions = memory.questions(SIZES[-1])
    assert len({question.id for question in questions}) == len({question.question for question in questions})


def test_a_memory_only_grows(memory):
    again = grown(memory.task.name, SIZES[:2])
    for size in SIZES[:2]:
        assert list(again.documents(size)) == list(memory.documents(size))
        assert again.questions(size) == memory.questions(size)
    assert again.base_questions() == memory.base_questions() == memory.questions(SIZES[0])
    for small, large in itertools.pairwise(SIZES):
        assert memory.questions(large)[: len(memory.questions(small))] == memory.questions(small)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "vt"])
def test_depths_of_the_first_size_are_those_of_the_grid(task):
    memory = grown(task)
    here = memory.depth_map(SIZES[0])
    assert {depth: len(questions) for depth, questions in here.items()} == dict.fromkeys(GRID, 3)
    for depth, questions in here.items():
        for question in questions:
            assert abs(memory.depth(question.id, SIZES[0])[0] - depth) <= 5


def test_every_depth_is_covered_at_every_size():
    memory = grown("niah_single_1")
    for size in SIZES:
        assert min(len(questions) for questions in memory.depth_map(size).values()) >= 3
        fresh = [question for question in memory.questions(size) if question.metadata["size"] == size]
        depths = [memory.depth(question.id, size)[0] for question in fresh]
        assert max(depths) == 100
        assert [question.metadata["depth"] for question in fresh] == [round(depth, 2) for depth in depths]
        names = [name for part in SIZES[: SIZES.index(size) + 1] for name, _ in memory.documents(part)]
        for question, depth in zip(fresh, depths, strict=True):
            assert names.index(question.positives[0]) == round(depth / 100 * (len(names) - 1))
    first = memory.base_questions()[-1].id
    assert [memory.depth(first, size)[0] for size in SIZES] == sorted(
        (memory.depth(first, size)[0] for size in SIZES), reverse=True
    )


def test_needles_of_a_question_stand_apart():
    memory = grown("niah_multivalue")
    for question in memory.base_questions():
        depths = sorted(memory.depth(question.id, SIZES[0]))
        assert min(new - old for old, new in itertools.pairwise(depths)) > 8


def test_a_question_of_a_larger_size_is_not_in_a_smaller():
    memory = grown("niah_single_1")
    with pytest.raises(ValueError, match="no question 'niah_single_1-0000"):
        memory.depth(memory.questions(SIZES[1])[-1].id, SIZES[0])
    with pytest.raises(ValueError, match="no question 'x'"):
        memory.depth("x", SIZES[0])
    with pytest.raises(ValueError, match="found 5"):
        list(memory.documents(5))


def test_a_hundred_million_tokens_are_made_while_they_are_read():
    essay = Essay(("One", "two", "three", "four.", "Five", "six", "seven.") * 50, "e", "")
    memory = GrowingMemory("niah_single_2", (10_000, 100_000_000), count, num_questions=11, essay=essay)
    assert memory.num_documents(100_000_000) == 195_312
    assert len(list(itertools.islice(memory.documents(100_000_000), 10))) == 10
    assert any("repeated about" in note for note in memory.notes)


def test_shared_memory_is_one_set_of_one_size():
    questions = shared_memory("niah_multikey_2", 20_000, count, num_questions=20)
    check_questions(questions)
    assert len(questions.questions) == 22  # as many at each of 11 depths
    assert "one memory for all questions" in questions.notes[0]
    assert questions == shared_memory("niah_multikey_2", 20_000, count, num_questions=20)
    assert questions.documents != shared_memory("niah_multikey_2", 20_000, count, num_questions=20, seed=1).documents


def test_crowded_needles_share_documents():
    questions = shared_memory("niah_single_1", 20_000, count, num_questions=400)
    holders = Counter(name for question in questions.questions for name in question.positives)
    assert len(questions.questions) == 407
    assert len(holders) > 30
    assert max(holders.values()) < 22
    with pytest.raises(ValueError, match=r"\d+ needles of \d+ tokens would go into one document of 512"):
        shared_memory("niah_single_1", 20_000, count, num_questions=2000)


def test_words_that_do_not_suffice_are_said_not_to():
    words = Words(tuple(f"a{n}" for n in range(30)), tuple(f"n{n}" for n in range(30)))
    with pytest.raises(ValueError, match="distinct words, there are 900"):
        grown("niah_multikey_2", words=words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ()}, "growing sizes"),
        ({"sizes": (50_000, 20_000)}, "growing sizes"),
        ({"sizes": (0, 20_000)}, "growing sizes"),
        ({"depths": ()}, "growing depths"),
        ({"depths": (0, 101)}, "growing depths"),
        ({"depths": (50, 50)}, "growing depths"),
        ({"depths": (50,), "task": "niah_multivalue"}, "hides 4 needles a question"),
        ({"sizes": (512,)}, "at least one document for each of 11 depths"),
        ({"num_questions": 0}, "at least one question"),
        ({"document_tokens": 0}, "at least one question and one token"),
        ({"task": "niah"}, "found 'niah'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        grown(**{"task": "niah_single_1", **settings})


def test_thirds():
    assert [third(depth) for depth in (0, 33, 34, 66, 67, 100)] == ["begin", "begin", "middle", "middle", "end", "end"]


@pytest.mark.parametrize(
    ("task", "digest"),
    [("niah_single_2", "7dbb8573f38a8592"), ("niah_multikey_1", "cfa7ae687dfd9de3"), ("vt", "87509b76327df219")],
)
def test_stored_runs_can_be_gone_on_from(task, digest):
    """Their records name these documents: where needles stand may not change."""
    placement = Placement(task, SIZES, num_questions=33)
    places = [[placed.id, placed.places, placed.holders] for own in placement.by_size for placed in own]
    assert value_digest(places) == digest


def test_density_counts_all_needles_of_a_document(memory, held):
    needles = {name: len(find_needles(memory.task, text)) for name, text in held.items()}
    filler = min(needles.values())  # lines of needles are the haystack of some tasks
    for question in memory.questions(SIZES[-1]):
        assert memory.placement.density(question.id) >= 1
        if not filler:
            assert memory.placement.density(question.id) == max(needles[name] for name in question.positives)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_1", "vt"])
def test_by_default_no_document_of_the_first_size_holds_two_needles(task):
    number = default_questions(task, SIZES[1])
    assert max(Placement(task, SIZES[1:2], num_questions=number).needles.values()) == 1
    assert max(Placement(task, SIZES[1:2], num_questions=number + 11).needles.values()) > 1
    assert default_questions(task, 6_000) == 11


def test_crowded_questions_are_named():
    assert density_note(Placement("niah_single_1", SIZES, num_questions=22)) == ""
    note = density_note(Placement("niah_single_1", SIZES, num_questions=110))
    assert "of the 110 questions of 20,000 tokens, none has a document of its own" in note
    assert "their documents hold 3 to 5 needles each, while" in note
    assert note in grown("niah_single_1", num_questions=110).notes
