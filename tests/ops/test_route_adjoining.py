"""Blocks laid side by side and joined: the same keys, scores and selections, and nothing copied by joining."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msa.ops.route import ExactKeys, RoutingSpec, halve_keys, measure_keys, quantize_keys, route
from msa.ops.route.adjoining import JoinedRows, adjoined, laid_side_by_side

SIZES = [5, 0, 9, 1, 6]
FORMS = {
    "exact": lambda keys: ExactKeys(keys),
    "measured": lambda keys: measure_keys(keys.bfloat16(), "cosine"),
    "measured for dot": lambda keys: measure_keys(keys.bfloat16(), "dot"),
    "half": lambda keys: halve_keys(keys, "cosine"),
    "int8": lambda keys: quantize_keys(keys, "cosine"),
    "int8 with stored keys": lambda keys: replace(quantize_keys(keys, "cosine"), stored=keys),
}


def blocks_of(form, sizes=SIZES):
    generator = torch.Generator().manual_seed(3)
    return [FORMS[form](torch.randn(size, 2, 8, generator=generator)) for size in sizes]


@pytest.mark.parametrize("form", FORMS)
def test_one_block_over_all_scores_as_they_do(form):
    blocks = blocks_of(form)
    moved = laid_side_by_side(blocks)
    joined = adjoined(moved)
    assert len(adjoined(blocks)) == len(blocks)
    assert len(joined) == 1
    assert joined[0].keys.data_ptr() == moved[0].keys.data_ptr()
    generator = torch.Generator().manual_seed(4)
    query, mask = torch.randn(3, 4, 4, 8, generator=generator), torch.ones(3, 4, dtype=torch.bool)
    spec = RoutingSpec(similarity="dot" if "dot" in form else "cosine")
    offsets = torch.tensor([0, 2, 5, 6, 14, 15, 21])
    expected, found = (route(query, mask, each, offsets, spec, 3) for each in (blocks, joined))
    for name, tensor in vars(expected).items():
        assert torch.equal(vars(found)[name], tensor), name


def test_what_does_not_lie_side_by_side_stays_apart():
    first, second = laid_side_by_side(blocks_of("int8", [2, 3])), laid_side_by_side(blocks_of("int8", [4, 1]))
    assert [len(block.keys) for block in adjoined([*first, *second])] == [5, 5]
    assert [len(block.keys) for block in adjoined([first[1], first[0]])] == [3, 2]
    assert [len(block.keys) for block in adjoined([first[0], second[0], first[1]])] == [2, 4, 3]
    exact = laid_side_by_side(blocks_of("exact", [2, 3, 4]))
    assert [len(block.keys) for block in adjoined([exact[0], exact[2]])] == [2, 4]


def test_one_block_or_none_stays_as_it_is():
    (block,) = blocks_of("exact", [3])
    assert laid_side_by_side([block]) == adjoined([block]) == [block]
    assert laid_side_by_side([]) == adjoined([]) == []


def test_blocks_of_different_kinds_are_refused():
    with pytest.raises(ValueError, match="QuantizedKeys"):
        laid_side_by_side([*blocks_of("exact", [2]), *blocks_of("int8", [2])])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.data())
def test_rows_of_several_parts_are_those_of_the_whole(sizes, data):
    whole = torch.randn(sum(sizes), 2, 3)
    parts = JoinedRows(whole.split(sizes))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=9)), dtype=torch.int64)
    assert parts.shape == tuple(whole.shape)
    assert torch.equal(parts[rows], whole[rows])
