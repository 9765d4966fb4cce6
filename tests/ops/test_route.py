"""The lean routing scorer against the equation written as it reads."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msa.ops import RoutingSpec, route
from msa.ops.route import route_naive
from msa.ops.route.types import CHUNK_REDUCTIONS, HEAD_REDUCTIONS, QUERY_REDUCTIONS, SIMILARITIES

SPECS = [
    RoutingSpec(similarity=similarity, scale=scale, head_reduce=head, query_reduce=query, chunk_reduce=chunk)
    for (similarity, scale), head, query, chunk in itertools.product(
        zip(SIMILARITIES, (1.0, 20**-0.5), strict=True), HEAD_REDUCTIONS, QUERY_REDUCTIONS, CHUNK_REDUCTIONS
    )
]
SPEC_NAMES = [f"{s.similarity}-{s.head_reduce}-{s.query_reduce}-{s.chunk_reduce}" for s in SPECS]
COUNTS = [3, 1, 7, 2, 50, 1, 47]  # chunks per document; 111 in all


def random_inputs(counts=COUNTS, heads=(6, 2), tokens=13, head_dim=20, dtype=torch.float32):
    torch.manual_seed(0)
    query = torch.randn(4, tokens, heads[0], head_dim).to(dtype)
    keys = torch.randn(sum(counts), heads[1], head_dim).to(dtype)
    mask = torch.rand(4, tokens) < 0.5
    mask[1] = False  # a row that does not route
    mask[2] = True
    return query, mask, keys, torch.tensor([0, *itertools.accumulate(counts)])


def assert_same(ours, theirs, **tolerance):
    torch.testing.assert_close(ours.chunk_scores, theirs.chunk_scores, **tolerance)
    torch.testing.assert_close(ours.doc_scores, theirs.doc_scores, **tolerance)
    torch.testing.assert_close(ours.scores, theirs.scores, **tolerance)
    assert ours.doc_indices.tolist() == theirs.doc_indices.tolist()


@pytest.mark.parametrize("tile", [1, 7, None], ids=["tile1", "tile7", "whole"])
@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_equals_the_reference(spec, tile):
    inputs = random_inputs()
    ours = route(*inputs, spec, 3, tile_chunks=tile)
    assert ours.scores.dtype == torch.float32
    assert_same(ours, route_naive(*inputs, spec, 3))


def test_one_score_by_hand():
    """One row, one token, two heads over one key head: the mean of two cosines."""
    query = torch.tensor([[[[3.0, 4.0], [0.0, 2.0]]]])
    keys = torch.tensor([[[1.0, 0.0]], [[0.0, 5.0]], [[-1.0, 0.0]]])
    routing = route(query, torch.ones(1, 1, dtype=torch.bool), keys, torch.tensor([0, 2, 3]), RoutingSpec(), 2)
    torch.testing.assert_close(routing.chunk_scores, torch.tensor([[0.3, 0.9, -0.3]]))
    torch.testing.assert_close(routing.doc_scores, torch.tensor([[0.9, -0.3]]))
    assert routing.doc_indices.tolist() == [[0, 1]]


@pytest.mark.parametrize("spec", SPECS[::5], ids=SPEC_NAMES[::5])
@pytest.mark.parametrize("heads", [(4, 4), (6, 1), (3, 3)], ids=str)
@pytest.mark.parametrize(("tokens", "counts"), [(1, [1]), (63, [64, 47]), (111, [1] * 5)])
def test_odd_sizes(spec, heads, tokens, counts):
    inputs = random_inputs(counts, heads, tokens)
    assert_same(route(*inputs, spec, 2, tile_chunks=9), route_naive(*inputs, spec, 2))


@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_a_row_without_routing_tokens_selects_nothing(spec):
    query, mask, keys, offsets = random_inputs()
    for now in (mask, torch.zeros_like(mask)):
        routing = route(query, now, keys, offsets, spec, 3)
        assert routing.doc_indices[1].tolist() == [-1, -1, -1]
        assert (routing.scores[1] == float("-inf")).all()
        assert (routing.doc_scores[1] == float("-inf")).all()
    assert (routing.doc_indices == -1).all()


def test_only_marked_tokens_route():
    query, mask, keys, offsets = random_inputs()
    before = route(query, mask, keys, offsets, RoutingSpec(), 3)
    query[~mask] = 1e3 * torch.randn(int((~mask).sum()), 6, 20)
    assert_same(route(query, mask, keys, offsets, RoutingSpec(), 3), before)


@pytest.mark.parametrize("spec", SPECS[::5], ids=SPEC_NAMES[::5])
@pytest.mark.parametrize("per_row", [False, True])
def test_masked_documents_are_never_selected(spec, per_row):
    inputs = random_inputs()
    doc_mask = torch.tensor([True, False, True, False, False, True, False])
    if per_row:
        doc_mask = torch.stack([doc_mask, ~doc_mask, ~doc_mask, torch.zeros_like(doc_mask)])
    routing = route(*inputs, spec, 4, doc_mask)
    assert_same(routing, route_naive(*inputs, spec, 4, doc_mask))
    rows = doc_mask if per_row else doc_mask.expand(4, -1)
    for row, (chosen, allowed) in enumerate(zip(routing.doc_indices.tolist(), rows, strict=True)):
        wanted = 0 if row == 1 else min(4, int(allowed.sum()))
        found = [doc for doc in chosen if doc >= 0]
        assert len(set(found)) == wanted
        assert all(allowed[doc] for doc in found)
        assert chosen == found + [-1] * (4 - wanted)


def test_fewer_documents_than_k():
    inputs = random_inputs([2, 3])
    routing = route(*inputs, RoutingSpec(), 5)
    assert_same(routing, route_naive(*inputs, RoutingSpec(), 5))
    assert sorted(routing.doc_indices[0].tolist()) == [-1, -1, -1, 0, 1]
    assert routing.scores[0, 2:].tolist() == [float("-inf")] * 3


@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_no_documents(spec):
    inputs = random_inputs([])
    routing = route(*inputs, spec, 3)
    assert routing.doc_indices.tolist() == [[-1] * 3] * 4
    assert routing.doc_scores.shape == (4, 0)


@pytest.mark.parametrize("spec", SPECS[::3], ids=SPEC_NAMES[::3])
def test_bfloat16_is_scored_in_float32(spec):
    inputs = random_inputs(dtype=torch.bfloat16)
    routing = route(*inputs, spec, 3)
    assert routing.scores.dtype == torch.float32
    assert_same(routing, route_naive(*inputs, spec, 3))


@pytest.mark.parametrize("tile", [7, None], ids=["tile7", "whole"])
@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_gradients_equal_the_reference(spec, tile):
    query, mask, keys, offsets = random_inputs()
    gradients = []
    for function, more in ((route, {"tile_chunks": tile}), (route_naive, {})):
        q, k = query.clone().requires_grad_(), keys.clone().requires_grad_()
        scores = function(q, mask, k, offsets, spec, 3, **more).doc_scores
        seen = scores.masked_fill(scores == float("-inf"), 0.0)  # as the losses do
        (seen * torch.linspace(-1, 1, seen.numel()).view_as(seen)).sum().backward()
        gradients.append((q.grad, k.grad))
        assert not q.grad[~mask].any()
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned, and the most of float32."""

    numel = 0
    floats = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
                self.floats = max(self.floats, leaf.numel() if leaf.dtype == torch.float32 else 0)
        return out


@pytest.mark.parametrize("head_reduce", HEAD_REDUCTIONS)
def test_scores_never_exist_head_by_head(head_reduce):
    heads, tokens, chunks, tile = 6, 16, 3000, 300
    query, mask = torch.randn(1, tokens, heads, 4), torch.ones(1, tokens, dtype=torch.bool)
    keys, offsets = torch.randn(chunks, 2, 4), torch.arange(0, chunks + 1, 10)
    spec = RoutingSpec(head_reduce=head_reduce)
    with LargestTensor() as lean:
        route(query, mask, keys, offsets, spec, 3, tile_chunks=tile)
    with LargestTensor() as plain:
        route_naive(query, mask, keys, offsets, spec, 3)
    assert plain.numel >= heads * tokens * chunks
    assert lean.numel <= max(tokens * tile, chunks)


@pytest.mark.parametrize("field", ["similarity", "head_reduce", "query_reduce", "chunk_reduce"])
def test_unknown_words_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be one of .*'median'"):
        RoutingSpec(**{field: "median"})


@pytest.mark.parametrize("spec", SPECS[::7], ids=SPEC_NAMES[::7])
def test_mixed_precision_does_not_round_scores(spec):
    """Under autocast products are bfloat16's; those of routing are not, nor are their gradients."""
    query, mask, keys, offsets = random_inputs()
    outcomes = []
    for mixed in (False, True):
        leaves = [query.clone().requires_grad_(), keys.clone().requires_grad_()]
        for leaf in (None, leaves):
            given = leaf or [query, keys]
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                assert (given[0][0, :, 0] @ given[1][:, 0].T).dtype == (torch.bfloat16 if mixed else torch.float32)
                routing = route(given[0], mask, given[1], offsets, spec, 3, tile_chunks=9)
            outcomes.append([routing.chunk_scores.detach(), routing.doc_scores.detach()])
        routing.chunk_scores[[0, 2, 3]].square().sum().backward()
        outcomes[-1] += [leaf.grad for leaf in leaves]
    for plain, under_autocast in zip(outcomes[:2], outcomes[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, under_autocast, strict=True))
