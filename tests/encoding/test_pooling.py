"""Pooling a batch in place: the same numbers as the plain reference, whatever the padding holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_tokens, tiny_lm

from msa.documents.batching import pad_right
from msa.encoding.encoder import encode_batch
from msa.encoding.pooling import ChunkMeans
from msa.ops import pool_chunks
from msa.ops.pool_chunks.naive import pool_chunks_naive

CPU = torch.device("cpu")
BATCHES = {
    "one token": random_tokens(1),
    "one document": random_tokens(11),
    "equal lengths, whole chunks": random_tokens(8, 8, 8),
    "equal lengths, a rest": random_tokens(7, 7),
    "shorter than a chunk": random_tokens(3, 1, 2),
    "mixed": random_tokens(9, 3, 14, 1, 8, 3, 20, 2, 16),
}


def named_tensors(memory):
    return {"chunk_offsets": memory.chunk_offsets, **memory.tensors()}


@pytest.mark.parametrize("documents", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_batch_equals_the_plain_reference_to_the_bit(documents, dtype, decoupled):
    lm = tiny_lm(decouple_router=decoupled).to(dtype)
    memory = encode_batch(lm, documents)
    with torch.inference_mode():
        expected = lm.encode_documents(*pad_right(documents))
    ours, theirs = named_tensors(memory), named_tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=6),
    st.sampled_from([1, 2, 5, 64, 500]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_means_equal_both_references(lengths, chunk_size, dtype, heads_first):
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (len(lengths), 3, max(lengths), 8) if heads_first else (len(lengths), max(lengths), 3, 8)
    states = torch.randn(shape, generator=generator).to(dtype)
    if heads_first:
        states = states.transpose(1, 2)  # as attention has keys and values
    sizes = torch.tensor(lengths)
    fast, naive = pool_chunks(states, sizes, chunk_size), pool_chunks_naive(states, sizes, chunk_size)
    ours = ChunkMeans(sizes, chunk_size, CPU).take(states)
    assert torch.equal(ours, fast)
    torch.testing.assert_close(ours, naive, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_becomes_zero_and_real_tokens_stay(poison):
    sizes = torch.tensor([5, 2, 7])
    states = torch.arange(3 * 7 * 2.0).view(3, 7, 2)
    real = torch.arange(7) < sizes[:, None]
    before = states[real].clone()
    states[~real] = poison
    means = ChunkMeans(sizes, 4, CPU).take(states)
    assert torch.equal(means, pool_chunks_naive(states, sizes, 4))
    assert torch.equal(states[real], before)
    assert (states[~real] == 0).all()


def test_what_padding_holds_never_reaches_a_document():
    lm = tiny_lm()
    alone = [encode_batch(lm, [ids]) for ids in BATCHES["mixed"]]
    memory = encode_batch(lm, BATCHES["mixed"])
    for index, expected in enumerate(alone):
        own = memory.select(torch.tensor([index]))
        for name, tensor in named_tensors(expected).items():
            torch.testing.assert_close(named_tensors(own)[name], tensor, rtol=1e-3, atol=1e-4)


def test_no_gradients_are_kept():
    memory = encode_batch(tiny_lm(), BATCHES["mixed"])
    assert not any(tensor.requires_grad for tensor in memory.tensors().values())
