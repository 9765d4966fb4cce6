"""Rows of several questions about one text: every answer stands in it, in the words and tokens of the engine."""

import re

import pytest
import torch
from tiny import tiny_tokenizer

from msa.documents import Protocol, ProtocolStrings
from msa.training.data.needles import NOT_IN_MEMORY, NeedleConfig, NeedleWorlds
from msa.training.data.recalls import RecallConfig, recall_rows
from msa.training.data.steps import IGNORED

WORLDS = NeedleWorlds(
    [f"{letter}{other}ing" for letter in "abcdefgh" for other in "klmnop"],
    [f"{letter}{other}one" for letter in "qrstuvwx" for other in "klmnop"],
    ["The grass is green.", "The sky is blue."],
)
PROTOCOL = Protocol(
    ProtocolStrings(answer_request="<think>{question}", answer_lead="", quotation_end="<|object_ref_end|>"),
    tiny_tokenizer(),
)
CONFIG = RecallConfig(rows=30, questions=5, two_hop=0.2, unanswerable=0.3)
NEEDLES = NeedleConfig(key_kinds=("word", "number"), value_kinds=("word", "number"))


@pytest.fixture(scope="module")
def rows():
    return recall_rows(CONFIG, WORLDS, NEEDLES, PROTOCOL, 7, "seed")


def answers_of(ids, labels):
    """(where it begins, quotation, answer) of every run of labels."""
    found, place = [], 0
    while place < len(labels):
        end = place
        while end < len(labels) and labels[end] != IGNORED:
            end += 1
        if end > place:
            assert labels[place:end] == ids[place:end]
            assert ids[end - 1] == PROTOCOL.answer_end_id
            middle = ids.index(PROTOCOL.quotation_end_id, place, end)
            texts = [PROTOCOL.decode(part) for part in (ids[place:middle], ids[middle + 1 : end - 1])]
            found.append((place, *texts))
        place = end + 1
    return found


def test_a_batch_is_a_pure_function_of_its_seed(rows):
    again = recall_rows(CONFIG, WORLDS, NEEDLES, PROTOCOL, 7, "seed")
    assert torch.equal(rows.input_ids, again.input_ids)
    assert torch.equal(rows.answer_labels, again.answer_labels)
    other = recall_rows(CONFIG, WORLDS, NEEDLES, PROTOCOL, 7, "other")
    assert rows.input_ids.shape != other.input_ids.shape or not torch.equal(rows.input_ids, other.input_ids)


def test_what_is_quoted_and_answered_stands_in_the_text_and_what_is_refused_does_not(rows):
    kinds = {"one hop": 0, "two hops": 0, "refused": 0}
    counts = set()
    for ids, labels in zip(rows.input_ids.tolist(), rows.answer_labels.tolist(), strict=True):
        answers = answers_of(ids, labels)
        counts.add(len(answers))
        text = PROTOCOL.decode(ids[: answers[0][0]])
        for _, quotation, answer in answers:
            key = re.fullmatch(r" for (\S+) (?:is|mentioned)(?:: \S+ is)?", quotation)[1]
            assert f" for {key} mentioned" in text or len(answers) > 1
            if answer == f" {NOT_IN_MEMORY}":
                assert quotation == f" for {key} mentioned"
                assert f"for {key} is" not in text
                kinds["refused"] += 1
                continue
            *earlier, last = f"{quotation}:{answer}".split(" is: ")[0:3]
            for first, second in zip([*earlier], [*earlier[1:], last], strict=True):
                assert f"for {first.removeprefix(' for ')} is: {second}." in text
            kinds["two hops" if len(earlier) == 2 else "one hop"] += 1
    assert counts == {2, 3, 4, 5}
    assert min(kinds.values()) > 5, kinds


def test_no_memory_takes_part_and_padding_is_masked(rows):
    assert rows.selectable.shape == (30, 0)
    assert not rows.routing_mask.any()
    assert not (rows.id_labels != IGNORED).any()
    assert bool(((rows.answer_labels != IGNORED) <= rows.attention_mask.bool()).all())
    assert rows.attention_mask.sum(1).max() == rows.input_ids.shape[1]


@pytest.mark.parametrize(
    "settings",
    [{"rows": 0}, {"questions": 1}, {"unanswerable": 1.2}, {"two_hop": 0.6, "unanswerable": 0.6}, {"max_filler": -1}],
)
def test_rows_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="recall needs|must be a number"):
        RecallConfig(**settings)
