"""Prompts that are read in one pass get what they get alone."""

import pytest
import torch
from tiny import random_tokens, tiny_lm

from msa.documents.batching import pad_right
from msa.generation import prefill as prefill_module
from msa.generation.decoding import Decoding, Prompt
from msa.generation.prefill import Prefill, pass_together, prefill, prefill_together

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
DOCUMENTS = random_tokens(9, 3, 14, 1, 8, 30, seed=1)
QUESTIONS = random_tokens(11, 4, 7, 1, seed=3)


def routes_of(ids):
    """All but the first and the last, if there are others."""
    return [len(ids) < 3 or 0 < place < len(ids) - 1 for place in range(len(ids))]


@pytest.fixture(scope="module", params=["plain", "biased"])
def given(request):
    lm = tiny_lm(routing_bias=request.param == "biased", router_layers=[1, 2, 3])
    with torch.no_grad():
        memory = lm.encode_documents(*pad_right(DOCUMENTS))
        prefix = lm.encode_prefix(torch.tensor(random_tokens(3, seed=2)[0]))
    return lm, {"memory": memory, "prefix": prefix}


def prefills(context, masks=(None, None, None, None)):
    return [
        Prefill(ids=[ids], routes=[routes_of(ids)], doc_mask=mask, **context)
        for ids, mask in zip(QUESTIONS, masks, strict=True)
    ]


def mask_without(*hidden):
    mask = torch.ones(len(DOCUMENTS), dtype=torch.bool)
    mask[[*hidden]] = False
    return mask


MASKS = (mask_without(0, 2), None, mask_without(*range(len(DOCUMENTS)))[None], mask_without(5))


@pytest.mark.parametrize("masks", [(None,) * 4, MASKS], ids=["all documents", "some documents"])
def test_rows_of_one_pass_get_what_they_get_alone(given, masks):
    lm, context = given
    wanted = prefills(context, masks)
    for each, ours in zip(wanted, prefill_together(lm, wanted), strict=True):
        alone = prefill(lm, each)
        torch.testing.assert_close(ours.logits, alone.logits, **CLOSE)
        assert torch.equal(ours.cache.next_position, alone.cache.next_position)
        assert ours.cache.local_mask is None
        assert [*ours.routing] == [*alone.routing]
        for layer, routing in alone.routing.items():
            assert torch.equal(ours.routing[layer].doc_indices, routing.doc_indices)
            torch.testing.assert_close(ours.routing[layer].doc_scores, routing.doc_scores, **CLOSE)
        token = torch.tensor([[5]])
        with torch.inference_mode():
            after = [lm(token, cache=done.cache).logits for done in (ours, alone)]
        torch.testing.assert_close(*after, **CLOSE)


def test_without_a_memory(given):
    lm, _ = given
    wanted = prefills({})
    for each, ours in zip(wanted, prefill_together(lm, wanted), strict=True):
        torch.testing.assert_close(ours.logits, prefill(lm, each).logits, **CLOSE)
        assert ours.routing == {}


def test_what_belongs_into_one_pass(given, monkeypatch):
    lm, context = given
    wanted = prefills(context)
    assert pass_together(lm, wanted) == wanted
    others = [prefills({**context, name: None})[1] for name in ("memory", "prefix")]
    assert pass_together(lm, [wanted[0], *others, *wanted[1:]]) == wanted
    assert pass_together(lm, [others[0], *wanted]) == others[:1]
    weights = sum(weight.numel() for weight in lm.model.layers.parameters())
    monkeypatch.setattr(prefill_module, "_SMALL_PASS_ELSEWHERE", 22 * weights)
    assert pass_together(lm, wanted) == wanted[:2]  # two rows of 11 tokens
    assert pass_together(lm, wanted[1:]) == wanted[1:]  # three of 7
    monkeypatch.setattr(prefill_module, "_SMALL_PASS_ELSEWHERE", 1)
    assert pass_together(lm, wanted) == wanted[:1]


def test_a_decoding_that_prefills_later(given):
    lm, context = given
    prompts = [Prompt(ids=ids, routes=routes_of(ids), max_new_tokens=5) for ids in QUESTIONS]
    now, later = (Decoding(lm, prompts, **context, later=wait) for wait in (False, True))
    assert now.coming is None
    assert later.coming is not None
    with pytest.raises(RuntimeError, match="advance"):
        _ = later.routing
    assert [*later.run()] == [*now.run()]
    assert later.routing.keys() == now.routing.keys()


@pytest.mark.parametrize("goes_on", ["by its routing", "by the next token"])
def test_whoever_goes_on_is_told_that_the_prefill_failed(given, goes_on):
    lm, context = given
    decoding = Decoding(lm, [Prompt(ids=QUESTIONS[0])], **context, later=True)
    steps = decoding.steps()
    assert next(steps) is None
    decoding.fail(ValueError("unreadable"))
    with pytest.raises(ValueError, match="unreadable"):
        _ = decoding.routing if goes_on == "by its routing" else next(steps)
