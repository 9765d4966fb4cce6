"""Encoding many documents in batches: the same as one by one, in the order given."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_tokens, tiny_lm

from msa.documents.batching import length_buckets, pad_left, pad_right, tight_buckets
from msa.encoding import encode_in_batches
from msa.encoding.encoder import BATCH_TOKENS, batch_tokens_for, batches_of
from msa.model import DocumentMemory, MSAConfig

DOCUMENTS = random_tokens(9, 3, 14, 1, 8, 3, 20, 2)


@pytest.mark.parametrize("batch_tokens", [1, 10, 24, 4096])
def test_equals_one_by_one_in_the_order_given(lm, batch_tokens):
    memory = encode_in_batches(lm, DOCUMENTS, batch_tokens=batch_tokens)
    with torch.no_grad():
        alone = [lm.encode_documents(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in DOCUMENTS]
    expected = DocumentMemory.concatenate(alone)
    assert memory.chunk_offsets.tolist() == expected.chunk_offsets.tolist() == [0, 3, 4, 8, 9, 11, 12, 17, 18]
    for layer in lm.config.router_layers:
        for name in ("keys", "values", "routing_keys"):
            ours, theirs = getattr(memory, name)[layer], getattr(expected, name)[layer]
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_batches_are_bounded_and_progress_is_told(lm, monkeypatch):
    shapes, told = [], []
    run = type(lm.model).read_until

    def watched(self, ids, *rest):
        shapes.append(ids.shape)
        return run(self, ids, *rest)

    monkeypatch.setattr(type(lm.model), "read_until", watched)
    encode_in_batches(lm, DOCUMENTS, batch_tokens=16, progress=told.append)
    assert all(rows * tokens <= 16 or rows == 1 for rows, tokens in shapes)
    assert any(rows > 1 for rows, _ in shapes)
    assert len(told) == len(shapes)
    assert sum(told) == sum(map(len, DOCUMENTS))


def test_batches_suit_the_device():
    assert batch_tokens_for(tiny_lm()) == BATCH_TOKENS
    for width, tokens in ((1536, 65536), (9728, 10347), (65536, 8192)):
        config = MSAConfig(intermediate_size=width)
        on_gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16, config=config)
        assert batch_tokens_for(on_gpu) == tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for():
    lm = tiny_lm().to("cuda", torch.bfloat16)
    expected = encode_in_batches(lm, DOCUMENTS, batch_tokens=24)
    torch.cuda.set_sync_debug_mode("error")
    try:
        memory = encode_in_batches(lm, DOCUMENTS, batch_tokens=24)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, tensor in expected.tensors().items():
        assert torch.equal(memory.tensors()[name], tensor), name


@pytest.mark.parametrize("batch_tokens", [10, 40, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_reference_over_the_same_batches_to_the_bit(batch_tokens, dtype):
    lm = tiny_lm().to(dtype)
    memory = encode_in_batches(lm, DOCUMENTS, batch_tokens=batch_tokens)
    for bucket in batches_of([len(ids) for ids in DOCUMENTS], batch_tokens, lm.device):
        with torch.inference_mode():
            expected = lm.encode_documents(*pad_right([DOCUMENTS[i] for i in bucket]))
        ours = memory.select(torch.tensor(bucket))
        assert torch.equal(ours.chunk_offsets, expected.chunk_offsets)
        for name, tensor in expected.tensors().items():
            assert torch.equal(ours.tensors()[name], tensor), name


@pytest.mark.parametrize(
    ("documents", "message"), [([], "nothing to encode"), ([[1], [2, 3], []], "document 2 has no")]
)
def test_nothing_to_encode_is_refused(lm, documents, message):
    with pytest.raises(ValueError, match=message):
        encode_in_batches(lm, documents)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_buckets_hold_every_index_once_and_keep_their_size(lengths, batch_tokens):
    buckets = length_buckets(lengths, batch_tokens)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[index] for index in bucket) <= batch_tokens
    flat = [lengths[index] for bucket in buckets for index in bucket]
    assert flat == sorted(lengths)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_tight_buckets_cut_buckets_where_padding_begins_to_weigh(lengths, batch_tokens, max_padding):
    buckets = length_buckets(lengths, batch_tokens)
    tight = tight_buckets(lengths, batch_tokens, max_padding)
    assert [index for group in tight for index in group] == [index for group in buckets for index in group]
    ends = {group[-1] for group in tight}
    assert ends >= {bucket[-1] for bucket in buckets}  # no group crosses a bucket's end
    for group in tight:
        padded = len(group) * lengths[group[-1]]
        assert padded - sum(lengths[index] for index in group) <= max_padding * padded
    if max_padding == 1.0:
        assert tight == buckets


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_a_share_of_the_buckets_is_cut_as_all_of_them_are(lengths, batch_tokens):
    """What lets several processes encode the batches that one would."""
    share = [index for bucket in length_buckets(lengths, batch_tokens)[::2] for index in bucket]
    own = tight_buckets([lengths[index] for index in share], batch_tokens, 0.1)
    everything = tight_buckets(lengths, batch_tokens, 0.1)
    assert [[share[place] for place in group] for group in own] == [g for g in everything if g[0] in share]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_keeps_every_token(rows):
    ids, lengths = pad_right(rows)
    assert [line[:length].tolist() for line, length in zip(ids, lengths, strict=True)] == rows
    ids, mask = pad_left(rows)
    assert [line[real].tolist() for line, real in zip(ids, mask, strict=True)] == rows
    assert mask[:, -1].all()
