"""When a pass leaves a cache behind, and which attention masks go with one."""

import pytest
import torch
from tiny import random_tokens, tiny_lm

from msa.documents.batching import pad_left, pad_right

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
DOCUMENTS = random_tokens(9, 3, 14, seed=1)
PREFIX = torch.tensor(random_tokens(3, seed=2)[0])
QUESTION = random_tokens(11, seed=3)[0]
QUESTIONS, PADDING = pad_left(random_tokens(7, 4, seed=4))
STEP = torch.tensor([[5], [6]])


@pytest.fixture
def own_lm():
    """A network that tests may put into training mode."""
    return tiny_lm(routing_bias=True)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_lower_level_snippet_as_it_stands(lm, gradients):
    """As the public description of the lower level has it: nothing there says that gradients must be off."""
    with torch.set_grad_enabled(gradients):
        input_ids = torch.tensor([QUESTION])
        docs = lm.encode_documents(*pad_right(DOCUMENTS))
        prefix = lm.encode_prefix(PREFIX)
        out = lm(
            input_ids, attention_mask=None, routing_mask=None, position_ids=None, memory=docs, prefix=prefix,
            cache=None, top_k=None,
        )  # fmt: skip
        for token in (5, 6, 7):
            whole = lm(
                input_ids, routing_mask=(torch.arange(input_ids.shape[1]) < 11)[None], memory=docs, prefix=prefix
            )
            torch.testing.assert_close(out.logits[:, -1], whole.logits[:, -1], **CLOSE)
            input_ids = torch.cat((input_ids, torch.tensor([[token]])), dim=1)
            out = lm(torch.tensor([[token]]), cache=out.cache)
    assert out.cache is not None


def test_gradients_pass_through_a_cache(own_lm):
    """The step after the question reaches what the question's pass computed."""
    docs = own_lm.encode_documents(*pad_right(DOCUMENTS))
    docs.values[3].retain_grad()
    out = own_lm(torch.tensor([QUESTION]), memory=docs, prefix=own_lm.encode_prefix(PREFIX))
    own_lm(STEP[:1], cache=out.cache).logits.sum().backward()
    assert docs.values[3].grad.abs().sum() > 0


@pytest.mark.parametrize("asked", ["labels", "answer_labels", "positives", "nothing"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_keeps_no_cache(own_lm, asked, checkpointed):
    """A copy of every layer's keys and values that nobody asked for, and that checkpointed layers would add to twice."""
    own_lm.train()
    own_lm.model.checkpoint_layers = checkpointed
    ids = torch.tensor([QUESTION])
    asks = {"labels": {"labels": ids}, "answer_labels": {"answer_labels": ids}, "positives": {"positives": [[1]]}}
    out = own_lm(ids, memory=own_lm.encode_documents(*pad_right(DOCUMENTS)), **asks.get(asked, {}))
    assert out.cache is None
    (out.logits.sum() if out.loss is None else out.loss).backward()


@pytest.mark.parametrize("asked", ["labels", "answer_labels"])
def test_a_loss_keeps_no_cache_unless_it_is_wanted(lm, asked):
    ids = torch.tensor([QUESTION])
    assert lm(ids, **{asked: ids}).cache is None
    assert lm(ids, **{asked: ids}, use_cache=True).cache is not None
    assert lm(ids, use_cache=False).cache is None


def test_without_gradients_a_network_in_training_mode_keeps_one(own_lm):
    own_lm.train()
    with torch.no_grad():
        assert own_lm(torch.tensor([QUESTION])).cache is not None


@torch.no_grad()
def prefilled(lm, **inputs):
    docs = lm.encode_documents(*pad_right(DOCUMENTS))
    return lm(QUESTIONS, memory=docs, prefix=lm.encode_prefix(PREFIX), **inputs)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_mask_may_cover_the_tokens_in_the_cache(lm, padded):
    """As transformers passes it: of all tokens so far."""
    mask = PADDING if padded else torch.ones_like(PADDING)
    first, second = (prefilled(lm, attention_mask=mask) for _ in range(2))
    for token in (5, 6):
        step = torch.tensor([[token], [token + 1]])
        mask = torch.cat((mask, torch.ones(2, 1, dtype=mask.dtype)), dim=1)
        first, second = lm(step, cache=first.cache), lm(step, cache=second.cache, attention_mask=mask.long())
        assert torch.equal(first.logits, second.logits)


@torch.no_grad()
def test_a_mask_over_all_may_hide_new_tokens(lm):
    steps = STEP.repeat(1, 2)
    new = torch.tensor([[1, 1], [0, 1]])
    first, second = (prefilled(lm, attention_mask=PADDING) for _ in range(2))
    first = lm(steps, cache=first.cache, attention_mask=new)
    second = lm(steps, cache=second.cache, attention_mask=torch.cat((PADDING.long(), new), dim=1))
    assert torch.equal(first.logits[0], second.logits[0])
    assert torch.equal(first.logits[1, 1], second.logits[1, 1])


@torch.no_grad()
def test_a_mask_that_hides_other_earlier_tokens_is_refused(lm):
    mask = torch.ones(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="attention_mask hides other earlier tokens"):
        lm(STEP, cache=prefilled(lm, attention_mask=PADDING).cache, attention_mask=mask)
    mask[1, 2] = 0
    with pytest.raises(ValueError, match="columns of the new tokens alone"):
        lm(STEP, cache=prefilled(lm).cache, attention_mask=mask)


@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (2, 9), (1, 1), (2,), (2, 1, 1)], ids=str)
@torch.no_grad()
def test_a_mask_of_another_shape_is_refused_with_a_cache(lm, shape):
    with pytest.raises(
        ValueError, match=r"attention_mask must be \[2, 1\] \(or \[2, 8\], with the tokens in the cache"
    ):
        lm(STEP, cache=prefilled(lm).cache, attention_mask=torch.ones(shape))


@pytest.mark.parametrize("name", ["attention_mask", "routing_mask"])
@pytest.mark.parametrize("shape", [(2, 6), (2, 8), (1, 7), (7,)], ids=str)
@torch.no_grad()
def test_a_mask_of_another_shape_is_refused(lm, name, shape):
    mask = {name: torch.ones(shape, dtype=torch.bool)}
    message = rf"{name} must be \[2, 7\], a number for each token of input_ids; found \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=message):
        prefilled(lm, **mask)
    with pytest.raises(ValueError, match=message):
        lm.route(QUESTIONS, lm.encode_documents(*pad_right(DOCUMENTS)), **mask)
