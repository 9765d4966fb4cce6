"""Every way while the documents grow: each document once, a batch at a time."""

import re

import pytest
from tiny import tiny_model

from msa.errors import EvaluationError
from msa.evaluation import growth
from msa.evaluation.alternatives import make as make_row
from msa.evaluation.growth import read_growth
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.side_by_side import SideBySide
from msa.memory import Memory

WAYS = ("one", "two")


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


def side_by_side(memory, make, log, folder, **options):
    return SideBySide(make=make, growing=memory, log=log, folder=folder, say=lambda message: None, **options)


def test_documents_are_taken_in_once_and_only_for_questions_that_are_left(make, made, log, tmp_path):
    small, large = growing(1000, 2000), growing(1000, 2000, 4000)
    records = side_by_side(small, make, log, tmp_path).run(WAYS[:1])
    assert [record.size_tokens for record in records] == [1000] * 11 + [2000] * 11
    assert (len(made), made[0].closed, small.read) == (1, True, [1000, 2000])
    assert [len(record.text.split()) for record in records[::11]] == [
        small.num_documents(1000),
        small.num_documents(2000),
    ]
    small.read.clear()
    assert side_by_side(small, make, log, tmp_path).run(WAYS[:1]) == records
    assert (len(made), small.read) == (1, [])
    more = side_by_side(large, make, log, tmp_path).run(WAYS)
    assert [way.name for way in made[1:]] == ["one", "two"]
    assert [record for record in more if record.answerer == "one"][:22] == records
    assert all(len(way.documents) == large.num_documents(4000) for way in made[1:])
    assert [(record.size_tokens, record.answerer) for record in more[::11]] == [
        (size, name) for size in large.sizes for name in WAYS
    ]
    noted = [(entry["way"], entry["size"], entry["documents"]) for entry in read_growth(tmp_path)]
    first, second, third = (large.num_documents(size) for size in large.sizes)
    of_two = [("two", 1000, first), ("two", 2000, second - first), ("two", 4000, third - second)]
    assert noted == [("one", 1000, first), ("one", 2000, second - first), ("one", 4000, third), *of_two]


def test_no_more_than_a_batch_is_handed_over_at_a_time(make, made, log, tmp_path, monkeypatch):
    memory = growing(2000)
    longest = max(len(text) for _, text in memory.documents(2000))
    monkeypatch.setattr(growth.batches, "__defaults__", (3 * longest,))
    side_by_side(memory, make, log, tmp_path).run(WAYS[:1])
    assert len(made[0].batches) > 5
    assert max(made[0].batches) <= 4
    assert sum(made[0].batches) == memory.num_documents(2000)


def test_limits_ask_the_first_questions_only(make, log, tmp_path):
    memory = growing(1000)
    records = side_by_side(memory, make, log, tmp_path, limits={"two": 3}).run(WAYS)
    asked = [record.question_id for record in records if record.answerer == "two"]
    assert asked == [question.id for question in memory.base_questions()[:3]]
    assert len(records) == 14


def test_a_way_that_fails_is_closed_and_what_it_answered_is_kept(make, made, log, tmp_path):
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
        side_by_side(growing(1000), failing, log, tmp_path).run(WAYS)
    assert made[-1].closed
    assert len(log.records) == 1


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=4096)


def rows_of(model):
    return lambda name, **options: make_row(name, model, **options)


def test_rows_of_ours_share_a_memory_that_is_encoded_once(model, log, tmp_path):
    memory = growing(1000, 2000)
    run = side_by_side(memory, rows_of(model), log, tmp_path, limits=dict.fromkeys(("msa", "msa-int8", "msa-dot"), 1))
    records = run.run(["msa", "msa-dot", "msa-int8"])
    assert [(record.answerer, record.size_tokens) for record in records] == [
        (name, size) for size in memory.sizes for name in ("msa", "msa-dot", "msa-int8")
    ]
    assert all(record.tokens_seen for record in records)
    noted = {(entry["way"], entry["size"]): entry for entry in read_growth(tmp_path)}
    assert list(noted) == [("memory", 1000), ("memory", 2000), ("memory-dot", 1000), ("memory-dot", 2000)]
    for name in ("memory", "memory-dot"):
        first, second = noted[name, 1000], noted[name, 2000]
        assert first["encoded_tokens"] == first["tokens"]
        assert first["encoded_tokens"] + second["encoded_tokens"] == second["tokens"]
        with Memory.open(tmp_path / name, model) as there:
            assert {one.id: one.text for one in there.list()} == {
                key: text for size in memory.sizes for key, text in memory.documents(size)
            }
    with pytest.raises(EvaluationError, match="more than the 17 of 1,000 tokens"):
        side_by_side(memory, rows_of(model), log, tmp_path).run(["msa-one-round"])
