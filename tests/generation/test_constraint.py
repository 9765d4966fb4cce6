"""Constrained ids: whatever is drawn among the allowed tokens is a list of distinct existing ids, and it can end."""

import math
import random
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msa.generation.constraint import IdConstraint, IdTrie, id_pieces

CHARACTERS = dict(enumerate("[]0123456789"))
MERGED = ["][", "12", "[1", "7]", "00", "]["[::-1], "[[", "123", "0]["]
PIECES = {**CHARACTERS, **dict(enumerate(MERGED, start=len(CHARACTERS)))}
END = [100]  # a closing token
LONG_END = [101, 102, 103]  # a closing string of several tokens

numbers = st.sets(st.integers(1, 3000), min_size=1, max_size=12)


def follow(constraint, pick, closing, most=400):
    """Generate by picking among the allowed tokens until a closing sequence is complete; returns what stands before."""
    generated = []
    for _ in range(most):
        allowed = constraint.allowed(generated)
        assert allowed
        assert len(allowed) == len(set(allowed))
        generated.append(pick(allowed))
        for sequence in closing:
            if generated[-len(sequence) :] == sequence:
                return generated[: -len(sequence)]
    raise AssertionError(f"no end after {most} tokens: {generated[-20:]}")


def assert_well_formed(written, existing, taken=(), pieces=PIECES):
    text = "".join(pieces[token] for token in written)  # no token but pieces before the end
    assert re.fullmatch(r"(\[[1-9][0-9]*\])*", text)
    found = [int(digits) for digits in re.findall(r"\d+", text)]
    assert len(found) == len(set(found))
    assert set(found) <= set(existing) - set(taken)
    return found


@given(numbers, st.randoms(use_true_random=False), st.data())
def test_random_writing_is_well_formed(existing, rng, data):
    taken = data.draw(st.sets(st.sampled_from(sorted(existing))))
    closing = [END, LONG_END]
    constraint = IdConstraint(IdTrie(existing), PIECES, closing, taken)
    assert_well_formed(follow(constraint, rng.choice, closing), existing, taken)


@given(numbers, st.permutations(sorted(PIECES)))
def test_stubborn_writing_is_well_formed_and_uses_every_id(existing, order):
    """A model that never wants to end, and prefers the same tokens always, has written every id when it must."""
    order = [*order, *END]
    constraint = IdConstraint(IdTrie(existing), PIECES, [END])
    written = follow(constraint, lambda allowed: min(allowed, key=order.index), [END])
    assert set(assert_well_formed(written, existing)) == existing


@given(numbers, st.data())
def test_every_list_of_distinct_ids_can_be_written(existing, data):
    """Character by character, and with the merged tokens greedily."""
    wanted = data.draw(st.lists(st.sampled_from(sorted(existing)), unique=True))
    text = "".join(f"[{number}]" for number in wanted)
    constraint = IdConstraint(IdTrie(existing), PIECES, [END, LONG_END])
    for longest in (1, 3):
        generated, rest = [], text
        while rest:
            allowed = constraint.allowed(generated)
            fitting = [t for t in allowed if t in PIECES and rest.startswith(PIECES[t]) and len(PIECES[t]) <= longest]
            generated.append(max(fitting, key=lambda token: len(PIECES[token])))
            rest = rest[len(PIECES[generated[-1]]) :]
        assert {END[0], LONG_END[0]} <= set(constraint.allowed(generated))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_closing_strings_that_repeat_themselves_can_be_finished(shape, rng):
    closing = [[200 + token for token in shape]]
    constraint = IdConstraint(IdTrie([4, 17]), PIECES, closing)
    assert_well_formed(follow(constraint, rng.choice, closing), [4, 17])


@given(st.randoms(use_true_random=False))
def test_closing_strings_that_share_tokens_are_not_mixed_up(rng):
    closing = [[101, 102], [103, 101, 104], [105]]
    constraint = IdConstraint(IdTrie([4, 17]), PIECES, closing)
    assert_well_formed(follow(constraint, rng.choice, closing), [4, 17])


@given(st.randoms(use_true_random=False))
def test_a_closing_string_may_begin_like_an_id(rng):
    """``[none]``, say, where the bracket is a token of its own."""
    closing = [[0, 150, 1]]
    constraint = IdConstraint(IdTrie([4, 17]), PIECES, closing)
    assert {PIECES.get(token, "none") for token in constraint.allowed([0])} == {"1", "4", "none"}
    assert_well_formed(follow(constraint, rng.choice, closing), [4, 17])


def names(constraint, text):
    by_piece = {piece: token for token, piece in PIECES.items()}
    allowed = constraint.allowed([by_piece[character] for character in text])
    return sorted(PIECES.get(token, str(token)) for token in allowed)


def test_steps_by_hand():
    constraint = IdConstraint(IdTrie([4, 17, 123]), PIECES, [END], taken=[4])
    assert names(constraint, "") == ["100", "[", "[1"]
    assert names(constraint, "[") == ["1", "12", "123"]
    assert names(constraint, "[1") == ["2", "7", "7]"]
    assert names(constraint, "[17") == ["]", "]["]
    assert names(constraint, "[17][") == ["1", "12", "123"]
    assert names(constraint, "[17][12") == ["3"]
    assert names(constraint, "[17][123") == ["]"]  # nothing is left to open a bracket for
    assert names(constraint, "[17][123]") == ["100"]


def test_weighed_steps_by_hand():
    trie = IdTrie(np.array([17, 4, 123]), np.log([3.0, 4.0, 1.0]))
    constraint = IdConstraint(trie, CHARACTERS, [END])
    by_piece = {piece: token for token, piece in CHARACTERS.items()}

    def shares(text):
        weighed = constraint.weighed([by_piece[character] for character in text])
        return {CHARACTERS.get(token, "end"): round(math.exp(share), 6) for token, share in weighed.items()}

    assert shares("") == {"[": 1.0, "end": 1.0}
    assert shares("[") == {"1": 0.5, "4": 0.5}
    assert shares("[1") == {"2": 0.25, "7": 0.75}
    assert shares("[17") == {"]": 1.0}
    assert shares("[17][") == {"1": 0.2, "4": 0.8}


def test_nothing_to_write_ends_at_once():
    for constraint in (
        IdConstraint(IdTrie([]), PIECES, [END]),
        IdConstraint(IdTrie([4]), PIECES, [END], taken=[4]),
    ):
        assert constraint.allowed([]) == END


def test_a_begun_closing_string_is_finished():
    constraint = IdConstraint(IdTrie([4]), PIECES, [LONG_END])
    assert constraint.allowed([101]) == [102]
    assert constraint.allowed([0, 6, 1, 101, 102]) == [103]


def test_taken_numbers_that_do_not_exist_are_ignored():
    constraint = IdConstraint(IdTrie([4]), PIECES, [END], taken=[40, 9])
    assert names(constraint, "[") == ["4"]


@given(numbers, st.integers(0, 40000))
def test_trie(existing, probe):
    trie, digits = IdTrie(existing), str(probe)
    assert trie.has(digits) == (probe in existing)
    assert trie.continues(digits) == any(str(number).startswith(digits) for number in existing)
    some = sorted(existing)[::2]
    left = existing - set(some)
    assert trie.continues(digits, some) == any(str(number).startswith(digits) for number in left)


@example({7: 0.0, 12: -1.0}, 0)
@given(st.dictionaries(st.integers(1, 3000), st.floats(-8, 0), min_size=1, max_size=12), st.integers(0, 4000))
def test_weights_under_a_prefix_are_sums(scores, probe):
    trie = IdTrie(np.array([*scores]), np.array([*scores.values()]))
    best = max(scores.values())
    weights = {number: math.exp(score - best) for number, score in scores.items()}
    some = sorted(scores)[::2]
    for digits in ("", str(probe)):
        under = sum(weight for number, weight in weights.items() if str(number).startswith(digits))
        left_out = sum(weights[number] for number in some if str(number).startswith(digits))
        assert trie.weight(digits) == pytest.approx(under, abs=1e-9)
        assert trie.weight(digits, some) == pytest.approx(under - left_out, abs=1e-9)
    assert trie.weight_of(probe) == pytest.approx(weights.get(probe, 0.0), abs=1e-9)
    assert IdTrie([*scores]).weight("") == len(scores)


@given(st.dictionaries(st.integers(1, 3000), st.floats(-8, 0), min_size=2, max_size=12), st.data())
def test_steps_of_an_id_weigh_as_much_as_its_document_among_those_left(scores, data):
    """Character by character, and with the merged tokens; taken and written ones are not left."""
    taken = data.draw(st.sampled_from(sorted(scores)))
    first, *more = data.draw(st.permutations(sorted(set(scores) - {taken})))
    trie = IdTrie(np.array([*scores]), np.array([*scores.values()]))
    constraint = IdConstraint(trie, PIECES, [END, LONG_END], [taken])
    weights = {number: math.exp(score) for number, score in scores.items() if number != taken}
    expected = math.log(weights[first] / sum(weights.values()))
    text = f"[{first}]"
    if more:
        expected += math.log(weights[more[0]] / (sum(weights.values()) - weights[first]))
        text += f"[{more[0]}]"
    for longest in (1, 3):
        generated, rest, total = [], text, 0.0
        while rest:
            weighed = constraint.weighed(generated)
            assert list(weighed) == constraint.allowed(generated)
            fitting = [t for t in weighed if t in PIECES and rest.startswith(PIECES[t]) and len(PIECES[t]) <= longest]
            generated.append(max(fitting, key=lambda token: len(PIECES[token])))
            total += weighed[generated[-1]]
            rest = rest[len(PIECES[generated[-1]]) :]
        assert total == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("digits", ["04", "0", "9" * 40])
def test_trie_of_odd_strings(digits):
    trie = IdTrie([4, 17])
    assert not trie.has(digits)
    assert not trie.continues(digits)
    assert not trie.has("")
    assert not trie.has("4a")


def test_large_numbers():
    trie = IdTrie([10**17, 10**18 - 1])
    assert trie.has(str(10**17))
    assert trie.continues("9")
    assert not trie.continues("8")


def test_pieces_of_a_tokenizer(tokenizer):
    pieces = id_pieces(tokenizer)
    assert sorted(pieces.values()) == sorted("[]0123456789")
    assert all(tokenizer.convert_ids_to_tokens(index) == piece for index, piece in pieces.items())


def test_random_writing_with_a_real_tokenizer(model):
    closing = [[model.protocol.reference_end_id], model.protocol.template_ids("<End-of-Retrieve>")]
    assert len(closing[1]) > 1
    constraint = IdConstraint(IdTrie([4, 17, 170]), id_pieces(model.tokenizer), closing)
    rng = random.Random(0)
    ends = set()
    for _ in range(40):
        generated = []
        while not any(generated[-len(sequence) :] == sequence for sequence in closing):
            generated.append(rng.choice(constraint.allowed(generated)))
        text = model.protocol.decode_all(generated)
        match = re.fullmatch(r"((?:\[(?:4|17|170)\])*)(<\|object_ref_end\|>|<End-of-Retrieve>)", text)
        ends.add(match[2])
    assert len(ends) == 2
