"""Rows to copy: what is learnt stands earlier in the row, at distances that differ."""

import pytest
import torch

from msa.training.data.copies import CopyConfig, copy_rows
from msa.training.data.steps import IGNORED

VOCABULARY = range(100, 900)
CONFIG = CopyConfig(questions=40, tokens=24, quoted_tokens=30, min_span=3, max_span=9, few_tokens=0.5)


@pytest.fixture(scope="module")
def rows():
    return copy_rows(CONFIG, VOCABULARY, "seed")


def test_a_batch_is_a_pure_function_of_its_seed(rows):
    again = copy_rows(CONFIG, VOCABULARY, "seed")
    assert torch.equal(rows.input_ids, again.input_ids)
    assert torch.equal(rows.answer_labels, again.answer_labels)
    assert not torch.equal(rows.input_ids, copy_rows(CONFIG, VOCABULARY, "other").input_ids)


def test_every_learnt_token_follows_its_predecessor_earlier_in_the_row(rows):
    assert rows.input_ids.shape == (40, 54)
    assert set(rows.input_ids.flatten().tolist()) <= set(VOCABULARY)
    distances = set()
    for ids, labels in zip(rows.input_ids.tolist(), rows.answer_labels.tolist(), strict=True):
        learnt = [place for place, label in enumerate(labels) if label != IGNORED]
        assert learnt
        for place in learnt:
            assert labels[place] == ids[place]
            pair = (ids[place - 1], ids[place])
            earlier = [at for at in range(1, min(place, CONFIG.tokens)) if (ids[at - 1], ids[at]) == pair]
            assert earlier, f"{pair} at {place} is not in the original"
            distances.update(place - at for at in earlier)
    assert len(distances) > 20


def test_the_original_and_the_first_token_of_a_span_are_not_learnt(rows):
    learnt = rows.answer_labels != IGNORED
    assert not learnt[:, : CONFIG.tokens // 2].any()
    # spans of 3 to 9 tokens: at most 8 in a row are learnt
    for row in learnt.int().tolist():
        runs = "".join(map(str, row)).split("0")
        assert max(map(len, runs)) <= CONFIG.max_span - 1
    assert not (rows.id_labels != IGNORED).any()
    assert rows.positives == [[]] * 40


def test_some_rows_are_made_of_few_tokens():
    def kinds(share):
        ids = copy_rows(CopyConfig(questions=30, few_tokens=share), VOCABULARY, "s").input_ids
        return [len(set(row.tolist())) for row in ids]

    assert max(kinds(1.0)) <= 20
    assert min(kinds(0.0)) > 15
    assert len(set(copy_rows(CopyConfig(few_tokens=1.0), [7, 8, 9], "s").input_ids.flatten().tolist())) == 3


@pytest.mark.parametrize(
    "change", [{"questions": 0}, {"min_span": 1}, {"max_span": 21}, {"min_span": 9, "max_span": 8}]
)
def test_rows_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match="copying needs|questions must be"):
        CopyConfig(**{"tokens": 40, **change})
