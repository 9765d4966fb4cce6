"""Routing over blocks of keys: in pieces as in one, halved and int8 as near the exact selection as they claim."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msa.ops import ExactKeys, HalfKeys, QuantizedKeys, RoutingSpec, halve_keys, quantize_keys, route
from msa.ops.route import route_naive
from msa.ops.route.blocks import as_blocks, dequantize
from msa.ops.route.types import reduce_chunks

from .test_route import COUNTS, SPEC_NAMES, SPECS, LargestTensor, assert_same, random_inputs

FORMS = {
    "exact": lambda keys, similarity: ExactKeys(keys),
    "bfloat16": halve_keys,
    "float16": lambda keys, similarity: halve_keys(keys, similarity, torch.float16),
    "int8": quantize_keys,
}
COMPACT = ["bfloat16", "float16", "int8"]
SPLITS = {
    "one": [111],
    "halves": [60, 51],
    "single chunks": [1] * 111,
    "empty blocks": [0, 5, 0, 0, 105, 1, 0],
}


def in_blocks(keys, sizes, form="exact", similarity="cosine"):
    return [FORMS[form](part, similarity) for part in keys.split(sizes)]


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("tile", [1, 7, None], ids=["tile1", "tile7", "whole"])
@pytest.mark.parametrize("spec", SPECS[::3], ids=SPEC_NAMES[::3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_score_exactly_as_one_tensor(sizes, tile, spec, dtype):
    query, mask, keys, offsets = random_inputs(dtype=dtype)
    ours = route(query, mask, in_blocks(keys, sizes), offsets, spec, 3, tile_chunks=tile)
    assert_same(ours, route(query, mask, keys, offsets, spec, 3, tile_chunks=tile), rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_stored_keys_are_left_as_they_were(grad):
    query, mask, keys, offsets = random_inputs()
    before = keys.clone()
    with torch.set_grad_enabled(grad):
        route(query, mask, in_blocks(keys, [60, 51]), offsets, RoutingSpec(), 3, tile_chunks=20)
    assert torch.equal(keys, before)


def test_gradients_reach_every_block():
    query, mask, keys, offsets = random_inputs()
    gradients = []
    for split in (False, True):
        q, k = query.clone().requires_grad_(), keys.clone().requires_grad_()
        routing = route(q, mask, in_blocks(k, [60, 0, 51]) if split else k, offsets, RoutingSpec(), 3, tile_chunks=50)
        routing.doc_scores[mask.any(1)].square().sum().backward()
        gradients.append((q.grad, k.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("form", COMPACT)
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_equals_the_reference_on_the_same_values(form, sizes, spec):
    query, mask, keys, offsets = random_inputs()
    blocks = in_blocks(keys, sizes, form, spec.similarity)
    for doc_mask in (None, torch.tensor([True, False, True, False, False, True, False])):
        ours = route(query, mask, blocks, offsets, spec, 4, doc_mask, tile_chunks=50)
        assert ours.scores.dtype == torch.float32
        assert_same(ours, route_naive(query, mask, blocks, offsets, spec, 4, doc_mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS[::5], ids=SPEC_NAMES[::5])
def test_forms_may_be_mixed(spec):
    query, mask, keys, offsets = random_inputs()
    parts = zip(FORMS.values(), keys.split([30, 20, 40, 21]), strict=True)
    blocks = [form(part, spec.similarity) for form, part in parts]
    ours = route(query, mask, blocks, offsets, spec, 3, tile_chunks=25)
    assert_same(ours, route_naive(query, mask, blocks, offsets, spec, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_fewer_documents_than_k(form):
    query, mask, keys, offsets = random_inputs([2, 3])
    blocks = in_blocks(keys, [1, 4], form)
    routing = route(query, mask, blocks, offsets, RoutingSpec(), 5, torch.tensor([True, False]))
    assert routing.doc_indices[0].tolist() == [0, -1, -1, -1, -1]
    assert routing.doc_indices[1].tolist() == [-1] * 5


@pytest.mark.parametrize("form", FORMS)
def test_no_chunks(form):
    query, mask, keys, offsets = random_inputs([])
    for blocks in ([], in_blocks(keys, [0, 0], form)):
        routing = route(query, mask, blocks, offsets, RoutingSpec(), 3)
        assert routing.doc_indices.tolist() == [[-1] * 3] * 4
        assert routing.chunk_scores.shape == (4, 0)
        assert_same(routing, route_naive(query, mask, blocks, offsets, RoutingSpec(), 3))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_keys_are_near_the_exact_ones(similarity, dtype):
    keys = (10 * torch.randn(3000, 3, 17)).to(dtype)
    exact = dequantize([ExactKeys(keys)], similarity)
    largest = exact.abs().amax((1, 2), keepdim=True)
    int8 = quantize_keys(keys, similarity)
    assert int8.keys.abs().amax((1, 2)).eq(127).all()
    assert ((dequantize([int8], similarity) - exact).abs() <= largest * 0.5001 / 127).all()
    for dtype, steps in ((torch.bfloat16, 2**8), (torch.float16, 2**11)):
        half = dequantize([halve_keys(keys, similarity, dtype)], similarity)
        assert ((half - exact).abs() <= exact.abs() / steps + 1e-7).all()


def test_a_chunk_of_zeros():
    query, mask, keys, offsets = random_inputs()
    keys[5] = 0
    for form in COMPACT:
        routing = route(query, mask, in_blocks(keys, [111], form), offsets, RoutingSpec(), 3)
        assert routing.chunk_scores[0, 5] == 0
        assert not routing.chunk_scores.isnan().any()


@pytest.mark.parametrize("prepare", [halve_keys, quantize_keys])
def test_preparing_never_copies_everything_to_float32(prepare):
    keys = torch.randn(200_000, 2, 8).bfloat16()
    with LargestTensor() as largest:
        prepared = prepare(keys, "cosine")
    assert largest.floats <= 1024 * 1024 < keys.numel()
    assert torch.equal(prepared.keys[-100:], prepare(keys[-100:], "cosine").keys)


class Recall:
    """Mean share of the exact ``top_k`` documents among those selected."""

    def __init__(self):
        self.shares = []

    def add(self, ours, exact):
        for row, wanted in zip(ours.doc_indices.tolist(), exact.doc_indices.tolist(), strict=True):
            wanted = {doc for doc in wanted if doc >= 0}
            if wanted:
                self.shares.append(len(wanted & set(row)) / len(wanted))

    @property
    def mean(self):
        return sum(self.shares) / len(self.shares)


@pytest.mark.parametrize(
    "spec", [RoutingSpec(), RoutingSpec(similarity="dot", head_reduce="max")], ids=["paper", "dot"]
)
@pytest.mark.parametrize("form", COMPACT)
def test_recall_of_the_best_sixteen(form, spec):
    recall = Recall()

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**31),
        documents=st.integers(1, 1500),
        chunks=st.integers(1, 4),
        kv_heads=st.sampled_from([1, 2, 3, 8]),
        group=st.integers(1, 4),
        head_dim=st.sampled_from([32, 64, 128]),
        tokens=st.integers(1, 16),
    )
    def ask(seed, documents, chunks, kv_heads, group, head_dim, tokens):
        draw = torch.Generator().manual_seed(seed)
        query = torch.randn(4, tokens, kv_heads * group, head_dim, generator=draw)
        keys = torch.randn(documents * chunks, kv_heads, head_dim, generator=draw)
        offsets = torch.arange(0, documents * chunks + 1, chunks)
        mask = torch.ones(4, tokens, dtype=torch.bool)
        blocks = [FORMS[form](part, spec.similarity) for part in keys.split(700)]
        recall.add(route(query, mask, blocks, offsets, spec, 16), route(query, mask, keys, offsets, spec, 16))

    ask()
    assert len(recall.shares) >= 100
    assert recall.mean >= 0.99


@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
@pytest.mark.parametrize("counts", [[2] * 600, [1] * 900, [5, 0, 300, 0, 40, 1]], ids=["pairs", "ones", "long"])
def test_a_second_look_at_stored_keys(spec, counts):
    """Coarse keys, made coarser still: the selection becomes the exact one; only some blocks keep stored keys."""
    query, mask, keys, offsets = random_inputs(counts)
    blocks = []
    for part in keys.split([1, 0, 100, sum(counts) - 101]):
        coarse = quantize_keys(part, spec.similarity)
        rounded = (coarse.keys / 16).round().to(torch.int8)
        blocks.append(QuantizedKeys(rounded, coarse.scale * 16, spec.similarity, stored=part))
    exact = route(query, mask, keys, offsets, spec, 8)
    plain, again = Recall(), Recall()
    plain.add(route(query, mask, [replace(block, stored=None) for block in blocks], offsets, spec, 8), exact)
    ours = route(query, mask, blocks, offsets, spec, 8)
    again.add(ours, exact)
    assert again.mean >= max(0.9, plain.mean)
    for row in (0, 2, 3):
        for doc, score in zip(ours.doc_indices[row].tolist(), ours.scores[row].tolist(), strict=True):
            if doc >= 0 and counts[doc] == 1:
                assert score == pytest.approx(float(exact.doc_scores[row, doc]), rel=1e-5, abs=1e-6)
    assert ours.doc_indices[1].tolist() == [-1] * 8
    doc_mask = torch.rand(len(counts)) < 0.5
    masked = route(query, mask, blocks, offsets, spec, 8, doc_mask)
    assert all(doc_mask[doc] for doc in masked.doc_indices.flatten().tolist() if doc >= 0)
    assert not masked.chunk_scores.isnan().any()


def test_a_second_look_where_nothing_may_be_selected():
    query, mask, keys, offsets = random_inputs()
    blocks = [replace(quantize_keys(keys, "cosine"), stored=keys)]
    nothing = torch.zeros(len(COUNTS), dtype=torch.bool)
    assert (route(query, mask, blocks, offsets, RoutingSpec(), 3, nothing).doc_indices == -1).all()
    assert (route(query, torch.zeros_like(mask), blocks, offsets, RoutingSpec(), 3).doc_indices == -1).all()


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_documents_from_chunks(reduction):
    """Against a loop, with a tie, documents without chunks, and gradients."""
    counts = [0, 2, 0, 3, 1, 0]
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    scores = torch.randn(2, 6)
    scores[0, :2] = 1.0
    results = []
    for how in ("ours", "loop"):
        x = scores.clone().requires_grad_()
        if how == "ours":
            docs = reduce_chunks(x, offsets, reduction)
        else:
            columns = [
                (part.amax(1) if reduction == "max" else part.mean(1))
                if part.shape[1]
                else torch.full((2,), -torch.inf)
                for part in x.split(counts, dim=1)
            ]
            docs = torch.stack(columns, dim=1)
        docs.masked_fill(docs == -torch.inf, 0).square().sum().backward()
        results.append((docs, x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wrong_blocks_are_refused():
    query, mask, keys, offsets = random_inputs()
    prepared = quantize_keys(keys, "dot")
    for run in (route, route_naive):
        with pytest.raises(ValueError, match="prepared for dot, the spec asks for cosine"):
            run(query, mask, [prepared], offsets, RoutingSpec(), 3)
        with pytest.raises(ValueError, match=f"chunk_offsets end at {sum(COUNTS)}, but there are 100 chunks"):
            run(query, mask, [ExactKeys(keys[:100])], offsets, RoutingSpec(), 3)
    with pytest.raises(ValueError, match=r"same \[Hkv, D\], got \(2, 19\), \(2, 20\)"):
        as_blocks([ExactKeys(keys), ExactKeys(keys[..., :19])], query)
    with pytest.raises(ValueError, match="must be bfloat16 or float16, got torch.float32"):
        HalfKeys(keys)
    with pytest.raises(ValueError, match="must be int8 with float32 scales"):
        QuantizedKeys(prepared.keys, prepared.scale[:3])
    with pytest.raises(ValueError, match="stored keys must have the shape"):
        replace(prepared, stored=keys[:3])
    for prepare in (halve_keys, quantize_keys):
        with pytest.raises(ValueError, match="similarity must be one of cosine, dot, got 'euclid'"):
            prepare(keys, "euclid")
