"""What every rank checks: a sharded memory does what one process with all documents does.

Imported by in_ranks.py; each function runs on all ranks at once and takes their :class:`msa.parallel.Ranks`.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import engine_checks
import pytest
import torch
import torch.distributed as dist
from layouts import LENGTHS, NUM_DOCUMENTS, layouts
from scaling import formulas
from tiny import random_tokens, tiny_lm
from torch import Tensor

from msa.encoding import encode_in_batches
from msa.model import DocumentMemory
from msa.ops import Routing, RoutingSpec
from msa.parallel import Ranks, ShardedMemory, empty_memory, encode_across_ranks, shard_of

LAYERS = (2, 3)


@cache
def whole(lm_dtype: torch.dtype = torch.float32) -> DocumentMemory:
    """The memory that one process would hold."""
    return encode_in_batches(tiny_lm().to(lm_dtype), random_tokens(*LENGTHS))


def with_ties() -> DocumentMemory:
    """Routing keys of small integers: every score is exact, and many are equal."""
    generator = torch.Generator().manual_seed(1)
    memory = whole()
    keys = {
        layer: torch.randint(-1, 2, keys.shape, generator=generator).float()
        for layer, keys in memory.routing_keys.items()
    }
    return dataclasses.replace(memory, routing_keys=keys)


def sharded(memory: DocumentMemory, layout: list[list[int]], ranks: Ranks) -> ShardedMemory:
    mine = torch.tensor(layout[ranks.rank], dtype=torch.int64)
    contiguous = [i for each in layout for i in each] == list(range(memory.num_documents))
    return ShardedMemory(memory.select(mine), ranks, None if contiguous else layout[ranks.rank])


def queries(num_tokens: int = 6, *, integers: bool = False) -> tuple[Tensor, Tensor]:
    """Three rows, one of which routes with a few tokens only."""
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(3, num_tokens, 6, 8, generator=generator)
    if integers:
        query = query.round().clamp(-1, 1)
    mask = torch.ones(3, num_tokens, dtype=torch.bool)
    mask[1, 2:] = False
    return query, mask


def doc_masks() -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(NUM_DOCUMENTS, generator=generator) < 0.6
    return [None, some, torch.rand(3, NUM_DOCUMENTS, generator=generator) < 0.4, torch.zeros_like(some)]


def assert_same_scores(found: Routing, expected: Routing) -> None:
    """Float32 products of a shard's keys may end in another last bit than those of all keys."""
    for name in ("scores", "doc_scores", "chunk_scores"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=2e-6, rtol=0)
    assert found.doc_scores.dtype == found.scores.dtype == torch.float32


def check_routing(ranks: Ranks) -> None:
    query, mask = queries()
    for layout in layouts(ranks.world):
        view = sharded(whole(), layout, ranks)
        assert view.num_documents == NUM_DOCUMENTS
        assert torch.equal(view.chunk_offsets, whole().chunk_offsets)
        for doc_mask in doc_masks():
            for top_k in (1, 3, 20):
                expected = whole().route(3, query, mask, RoutingSpec(), top_k, doc_mask)
                found = view.route(3, query, mask, RoutingSpec(), top_k, doc_mask)
                assert torch.equal(found.doc_indices, expected.doc_indices)
                assert_same_scores(found, expected)


def check_routing_with_ties(ranks: Ranks) -> None:
    """Exact arithmetic: the scores are equal to the bit, and the lower of two equal documents wins."""
    query, mask = queries(integers=True)
    memory, spec = with_ties(), RoutingSpec(similarity="dot", head_reduce="max")
    for layout in layouts(ranks.world):
        view = sharded(memory, layout, ranks)
        for doc_mask in doc_masks():
            expected = memory.route(2, query, mask, spec, 4, doc_mask)
            found = view.route(2, query, mask, spec, 4, doc_mask)
            for name in ("scores", "doc_scores", "chunk_scores"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), name
            order = expected.doc_scores.sort(dim=1, descending=True, stable=True).indices[:, :4]
            order[expected.doc_scores.gather(1, order) == float("-inf")] = -1
            assert torch.equal(found.doc_indices, order)
    assert len(expected.chunk_scores.unique()) < expected.chunk_scores.numel() / 3  # there were ties


def check_few_documents(ranks: Ranks) -> None:
    """Fewer documents than ranks, and none at all."""
    query, mask = queries()
    for num_documents in (0, 1, 2):
        memory = whole().select(torch.arange(num_documents))
        for layout in layouts(ranks.world, num_documents):
            view = sharded(memory, layout, ranks)
            found = view.route(2, query, mask, RoutingSpec(), 3)
            assert found.doc_indices.shape == found.scores.shape == (3, 3)
            assert found.doc_scores.shape == (3, num_documents)
            assert found.chunk_scores.shape == (3, int(memory.chunk_offsets[-1]))
            assert bool((found.doc_indices[:, num_documents:] == -1).all())
            selected = view.fetch(2, found.doc_indices)
            if num_documents:
                assert torch.equal(found.doc_indices, memory.route(2, query, mask, RoutingSpec(), 3).doc_indices)
                assert torch.equal(selected.slot, memory.fetch(2, found.doc_indices).slot)
            else:
                assert selected.keys.shape == (3, 0, 2, 8)


def check_fetch(ranks: Ranks) -> None:
    wanted = [
        torch.tensor([[6, 0, 10], [3, 6, -1], [-1, -1, -1]]),
        torch.tensor([[4, -1]]),
        torch.full((2, 3), -1),
        torch.tensor([[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        memory = whole(dtype)
        for layout in layouts(ranks.world):
            view = sharded(memory, layout, ranks)
            for doc_indices in wanted:
                for layer in LAYERS:
                    expected, found = memory.fetch(layer, doc_indices), view.fetch(layer, doc_indices)
                    real = expected.slot >= 0
                    assert torch.equal(found.slot, expected.slot)
                    assert found.keys.dtype == dtype
                    assert found.keys.shape == expected.keys.shape == found.values.shape
                    assert torch.equal(found.keys[real], expected.keys[real])
                    assert torch.equal(found.values[real], expected.values[real])


def check_rank_0_decides(ranks: Ranks) -> None:
    """Ranks whose own queries have drifted away still decide as rank 0 does."""
    query, mask = queries()
    view = sharded(whole(), next(layouts(ranks.world)), ranks)
    found = view.route(3, query + ranks.rank, mask, RoutingSpec(), 3)
    assert torch.equal(found.doc_indices, whole().route(3, query, mask, RoutingSpec(), 3).doc_indices)


def check_forward(ranks: Ranks) -> None:
    """Prefill with a prefix, left padding and a routing mask, and two decoded tokens."""
    ids = torch.tensor(random_tokens(9, 9, 9, seed=5))
    attention_mask = torch.ones_like(ids)
    attention_mask[1, :4] = 0
    routing_mask = attention_mask.clone()
    routing_mask[2, 5:] = 0
    for settings in ({}, {"routing_bias": True}, {"decouple_router": False, "router_layers": [0, 2, 3]}):
        lm = tiny_lm(**settings)
        memory = encode_in_batches(lm, random_tokens(*LENGTHS))
        prefix = lm.encode_prefix(torch.tensor([1, 2, 3]))
        for layout in layouts(ranks.world):
            with torch.inference_mode():
                outputs = []
                for view in (memory, sharded(memory, layout, ranks)):
                    first = lm(ids, attention_mask, routing_mask, memory=view, prefix=prefix, doc_mask=doc_masks()[1])
                    rest = lm(ids[:, :2], cache=first.cache)
                    outputs.append((first, rest.logits))
            (expected, then), (found, found_then) = outputs
            for layer, routing in expected.routing.items():
                assert torch.equal(found.routing[layer].doc_indices, routing.doc_indices)
            # the bias of selected documents is made of scores, which may differ in their last bit
            tolerance = 1e-4 if settings.get("routing_bias") else 0
            torch.testing.assert_close(found.logits, expected.logits, atol=tolerance, rtol=0)
            torch.testing.assert_close(found_then, then, atol=tolerance, rtol=0)


def check_encoding(ranks: Ranks) -> None:
    """Batches are one process's own, so the result is too, to the bit."""
    lm = tiny_lm()
    documents = random_tokens(*LENGTHS, *LENGTHS, seed=2)
    for batch_tokens in (8, 33, 4096):
        memory = encode_across_ranks(lm, documents, ranks, batch_tokens=batch_tokens)
        if ranks.rank:
            assert memory is None
            continue
        expected = encode_in_batches(lm, documents, batch_tokens=batch_tokens)
        assert set(memory.tensors()) == set(expected.tensors())
        for name, tensor in expected.tensors().items():
            assert torch.equal(memory.tensors()[name], tensor), name
    for wrong in ([], [[1], []]):
        with pytest.raises(ValueError, match="document|nothing"):
            encode_across_ranks(lm, wrong, ranks)


def check_bad_positions(ranks: Ranks) -> None:
    mine = whole().select(torch.arange(2))
    first = list(range(2 * ranks.rank, 2 * ranks.rank + 2))
    for wrong in (first[::-1], [i + 1 for i in first], first[:1], [0, 0]):
        with pytest.raises(ValueError, match="positions"):
            ShardedMemory(mine, ranks, wrong)
    assert ShardedMemory(empty_memory(tiny_lm()), ranks, []).num_documents == 0


def check_part_of_the_ranks(ranks: Ranks) -> None:
    """The last ranks form a group of their own; its rank 0 is not the world's."""
    members = list(range(ranks.world // 2, ranks.world))
    group = dist.new_group(members)
    if ranks.rank not in members:
        return
    few = Ranks(group)
    layout = [list(shard_of(range(NUM_DOCUMENTS), rank, few.world)) for rank in range(few.world)]
    query, mask = queries()
    expected = whole().route(3, query, mask, RoutingSpec(), 3)
    view = sharded(whole(), layout, few)
    found = view.route(3, query + few.rank, mask, RoutingSpec(), 3)
    assert torch.equal(found.doc_indices, expected.doc_indices)
    keys = view.fetch(3, found.doc_indices).keys
    assert torch.equal(keys[:, 0], whole().fetch(3, expected.doc_indices).keys[:, 0])


def check_traffic(ranks: Ranks) -> None:
    """What docs/scaling.md says is received in one router layer is what is received."""
    query, mask = queries()
    query, mask = query[:1], mask[:1]
    layout = [list(shard_of(range(NUM_DOCUMENTS), rank, ranks.world)) for rank in range(ranks.world)]
    view = sharded(whole(), layout, ranks)
    before = ranks.received_bytes
    routing = view.route(3, query, mask, RoutingSpec(), 3)
    routed = ranks.received_bytes - before
    chunks = whole().chunk_offsets.diff()
    others = [i for rank, each in enumerate(layout) for i in each if rank != ranks.rank]
    shape = formulas.Shape(
        name="tiny", num_layers=4, num_router_layers=2, num_heads=6, num_key_value_heads=2, head_dim=8
    )
    expected = formulas.score_bytes(len(others), int(chunks[others].sum()))
    expected += sum(8 * min(3, len(each)) for rank, each in enumerate(layout) if rank != ranks.rank)
    expected += formulas.query_bytes(shape, 6, value_bytes=4) if ranks.rank else 0
    assert routed == expected
    view.fetch(3, routing.doc_indices)
    won = sum(int(chunks[i]) for i in routing.doc_indices[0].tolist() if i in others)
    assert ranks.received_bytes - before - routed == formulas.content_bytes(shape, won, num_layers=1, value_bytes=4)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in [*globals().items(), *vars(engine_checks).items()]
    if name.startswith("check_")
}
