"""Chunk mean pooling against its plain reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operations import Operations

from msa.ops import ChunkPooling, chunk_offsets_of, pool_chunks
from msa.ops.pool_chunks.naive import pool_chunks_naive


def random_states(lengths, features, dtype, padding=3):
    torch.manual_seed(0)
    return torch.randn(len(lengths), max(lengths) + padding, *features).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("features", [(), (5,), (2, 20), (3, 2, 7)], ids=str)
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 64, 200])
def test_equals_the_reference(dtype, features, chunk_size):
    lengths = [63, 1, 111, 64, 7]
    states = random_states(lengths, features, dtype)
    pooled = pool_chunks(states, torch.tensor(lengths), chunk_size)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, pool_chunks_naive(states, torch.tensor(lengths), chunk_size))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40))
def test_any_lengths(lengths, chunk_size):
    sizes = torch.tensor(lengths)
    states = random_states(lengths, (3,), torch.float32)
    torch.testing.assert_close(pool_chunks(states, sizes, chunk_size), pool_chunks_naive(states, sizes, chunk_size))
    offsets = chunk_offsets_of(sizes, chunk_size)
    assert offsets.diff().tolist() == [len(range(0, length, chunk_size)) for length in lengths]


def test_float64_is_summed_in_float64():
    states = torch.tensor([[[1e9], [1.0], [-1e9]]], dtype=torch.float64)
    assert pool_chunks(states, torch.tensor([3]), 3).item() == pytest.approx(1 / 3)


def test_bfloat16_is_summed_in_float32():
    states = torch.full((1, 512, 1), 1.0, dtype=torch.bfloat16)
    states[0, 0] = 256.0  # in bfloat16 256 + 1 is 256
    assert pool_chunks(states, torch.tensor([512]), 512).item() == torch.tensor(767 / 512).bfloat16().item()


def test_padding_is_never_read():
    lengths = torch.tensor([5, 2])
    states = random_states([5, 2], (4,), torch.float32).requires_grad_()
    poisoned = states.detach().clone()
    poisoned[0, 5:], poisoned[1, 2:] = float("nan"), float("inf")
    poisoned.requires_grad_()
    clean, dirty = pool_chunks(states, lengths, 3), pool_chunks(poisoned, lengths, 3)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    weights = torch.randn_like(clean)
    (clean * weights).sum().backward()
    (dirty * weights).sum().backward()
    torch.testing.assert_close(poisoned.grad, states.grad, rtol=0, atol=0)
    assert not poisoned.grad[1, 2:].any()


@pytest.mark.parametrize("features", [(5,), (2, 20)], ids=str)
def test_gradients_equal_the_reference(features):
    lengths = torch.tensor([63, 1, 11])
    states = random_states(lengths.tolist(), features, torch.float32)
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    pooled, expected = pool_chunks(ours, lengths, 4), pool_chunks_naive(theirs, lengths, 4)
    weights = torch.randn_like(pooled)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_document_does_not_see_its_neighbours():
    states = random_states([10, 6, 9], (3,), torch.float32)
    together = pool_chunks(states, torch.tensor([10, 6, 9]), 4)
    alone = [pool_chunks(states[i : i + 1], torch.tensor([n]), 4) for i, n in enumerate([10, 6, 9])]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


def test_no_documents():
    assert chunk_offsets_of(torch.zeros(0, dtype=torch.int64), 4).tolist() == [0]
    assert pool_chunks(torch.zeros(0, 5, 3), torch.zeros(0, dtype=torch.int64), 4).shape == (0, 3)


@pytest.mark.parametrize(
    ("lengths", "chunk_size", "message"),
    [([3, 2], 0, "chunk_size"), ([3, 0], 2, "at least one token"), ([6, 2], 2, "6 tokens does not fit states of 5")],
)
def test_bad_arguments_are_refused(lengths, chunk_size, message):
    with pytest.raises(ValueError, match=message):
        pool_chunks(torch.zeros(2, 5, 3), torch.tensor(lengths), chunk_size)


def test_many_layers_are_pooled_without_reading_anything_back():
    lengths = torch.tensor([5, 2, 9])
    layers = [random_states([5, 2, 9], (2, 4), torch.float32).requires_grad_() for _ in range(2)]
    pooling = ChunkPooling(lengths, layers[0].shape[1], 4, torch.device("cpu"))
    with Operations() as operations:
        pooled = [pooling(states) for states in layers]
        torch.stack(pooled).sum().backward()
    assert all(torch.equal(one, pool_chunks(states, lengths, 4)) for one, states in zip(pooled, layers, strict=True))
    # each of these would wait for a GPU
    computed = {name.split(".")[1] for name in operations.counts}
    assert not computed & {"item", "_local_scalar_dense", "nonzero", "masked_select", "index", "index_put"}
