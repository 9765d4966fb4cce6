"""A prefill that begins like an earlier one gives what a whole one gives, and costs less by what it does not repeat."""

import pytest
import torch
from tiny import random_tokens, tiny_lm

from msa.evaluation.cost import Shape, counted_flops
from msa.model.lower_layers import prefill_after

QUESTION, TEXT = 9, 23


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def lm(request):
    return tiny_lm(request.param, router_layers=[2, 3], num_hidden_layers=5)


@pytest.fixture(scope="module")
def memory(lm):
    with torch.inference_mode():
        return lm.encode_documents(torch.tensor(random_tokens(*[12] * 8)), torch.full((8,), 12))


@pytest.fixture(scope="module")
def prefix(lm):
    with torch.inference_mode():
        return lm.encode_prefix(torch.tensor([1, 2, 3]))


def whole(lm, ids, routes, memory, prefix, doc_mask=None):
    with torch.inference_mode():
        return lm(
            torch.tensor([ids]),
            routing_mask=torch.tensor([routes]),
            memory=memory,
            prefix=prefix,
            doc_mask=doc_mask,
            use_cache=True,
            logits_to_keep=1,
        )


def transcript():
    """A question, and the question with a text after it that routes too."""
    (ids,) = random_tokens(QUESTION + TEXT, seed=3)
    return ids[:QUESTION], [True] * QUESTION, ids, [True] * QUESTION + [False] * 3 + [True] * (TEXT - 3)


@pytest.mark.parametrize("with_prefix", [True, False])
def test_it_equals_a_whole_prefill(lm, memory, prefix, with_prefix):
    short, short_routes, ids, routes = transcript()
    given = prefix if with_prefix else None
    mask = torch.arange(8) != 2
    first = prefill_after(lm, short, short_routes, memory, given, None, None)
    lm_cache = first.cache
    with torch.inference_mode():
        for token in (5, 6, 7):  # what the round wrote goes into the same tensors
            lm(torch.tensor([[token]]), cache=lm_cache)
    second = prefill_after(lm, ids, routes, memory, given, mask, first.lower)
    expected = whole(lm, ids, routes, memory, given, mask)
    torch.testing.assert_close(second.logits, expected.logits[:, -1], rtol=1e-4, atol=1e-4)
    for layer, routing in expected.routing.items():
        assert second.routing[layer].doc_indices.tolist() == routing.doc_indices.tolist()
    for mine, theirs in zip(second.cache.layers, expected.cache.layers, strict=True):
        assert (mine.length, mine.num_context) == (theirs.length, theirs.num_context)
        torch.testing.assert_close(
            mine.keys[:, :, : mine.length], theirs.keys[:, :, : theirs.length], rtol=1e-4, atol=1e-4
        )
    with torch.inference_mode():
        step = torch.tensor([[8]])
        mine, theirs = (lm(step, cache=cache).logits for cache in (second.cache, expected.cache))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_what_begins_otherwise_is_computed_whole(lm, memory, prefix):
    short, short_routes, ids, routes = transcript()
    other = [(short[0] + 1) % 256, *short[1:]]
    first = prefill_after(lm, other, short_routes, memory, prefix, None, None)
    second = prefill_after(lm, ids, routes, memory, prefix, None, first.lower)
    expected = whole(lm, ids, routes, memory, prefix)
    torch.testing.assert_close(second.logits, expected.logits[:, -1])
    assert not first.lower.begins(other)  # nothing follows: nothing would be left to compute


def test_it_saves_the_lower_layers_of_what_was_there(lm, memory, prefix):
    short, short_routes, ids, routes = transcript()
    lower = prefill_after(lm, short, short_routes, memory, prefix, None, None).lower
    counted = [
        counted_flops(lambda given=given: prefill_after(lm, ids, routes, memory, prefix, None, given))
        for given in (None, lower)
    ]
    shape, first = Shape.of(lm.config, torch.float32), lm.config.router_layers[0]
    columns = prefix.num_tokens + len(ids)
    saved = 2 * QUESTION * shape.layer_weights + 4 * QUESTION * columns * shape.q_size
    assert counted[0] - counted[1] == first * saved
