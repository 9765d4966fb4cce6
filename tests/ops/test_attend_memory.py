"""Attention over an explicit context against its plain reference."""

import pytest
import torch

from msa.ops import attend_memory
from msa.ops.attend_memory import attend_causal, attend_memory_naive

HEADS = [(4, 4), (6, 2), (6, 1)]


def random_inputs(heads=(6, 2), tokens=5, columns=63, head_dim=20, dtype=torch.float32):
    torch.manual_seed(0)
    query = torch.randn(3, heads[0], tokens, head_dim, dtype=dtype)
    return query, *torch.randn(2, 3, heads[1], columns, head_dim, dtype=dtype).unbind()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (1, 111), (7, 63)])
@pytest.mark.parametrize("shape", [None, (3, 6, -1, -1), (3, 1, -1, -1), (1, 1, 1, -1)], ids=str)
def test_equals_the_reference(heads, tokens, columns, shape):
    query, keys, values = random_inputs(heads, tokens, columns)
    bias = None
    if shape is not None:
        shape = (shape[0], min(shape[1], heads[0]), abs(tokens * shape[2]) if shape[2] < 0 else 1, columns)
        bias = torch.randn(shape)
    out = attend_memory(query, keys, values, bias)
    assert out.shape == (3, tokens, heads[0], 20)
    torch.testing.assert_close(out, attend_memory_naive(query, keys, values, bias), rtol=1e-4, atol=1e-5)


def test_hidden_columns_do_not_exist():
    query, keys, values = random_inputs()
    hidden = torch.zeros(63, dtype=torch.bool)
    hidden[5:31] = True
    bias = torch.randn(3, 1, 5, 63)
    expected = attend_memory(query, keys[:, :, ~hidden], values[:, :, ~hidden], bias[..., ~hidden])
    bias[..., hidden] = float("-inf")
    torch.testing.assert_close(attend_memory(query, keys, values, bias), expected, rtol=1e-4, atol=1e-5)
    keys[:, :, hidden] = 1e4
    torch.testing.assert_close(attend_memory(query, keys, values, bias), expected, rtol=1e-4, atol=1e-5)


def test_order_of_columns_does_not_matter():
    query, keys, values = random_inputs()
    bias, order = torch.randn(3, 1, 5, 63), torch.randperm(63)
    shuffled = attend_memory(query, keys[:, :, order], values[:, :, order], bias[..., order])
    torch.testing.assert_close(attend_memory(query, keys, values, bias), shuffled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_gradients_equal_the_reference(heads):
    bias = torch.randn(3, 1, 5, 63)
    bias[..., ::7] = float("-inf")
    gradients = []
    for attend in (attend_memory, attend_memory_naive):
        leaves = [leaf.requires_grad_() for leaf in (*random_inputs(heads), bias.clone())]
        out = attend(*leaves)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert gradients[0][3].any()  # of the bias: the routing bias learns through it
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_bfloat16(biased):
    inputs = random_inputs(dtype=torch.bfloat16)
    bias = torch.randn(3, 1, 5, 63).bfloat16() if biased else None
    out = attend_memory(*inputs, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, attend_memory_naive(*inputs, bias), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_causal_attention_hides_later_tokens(heads):
    query, keys, values = random_inputs(heads, tokens=9, columns=9)
    bias = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    expected = attend_memory_naive(query, keys, values, bias)
    torch.testing.assert_close(attend_causal(query, keys, values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_gradients_of_groups_with_a_bias_on_a_gpu(heads):
    """There keys and values of groups are repeated while gradients are asked for."""
    query, keys, values = random_inputs(heads, tokens=7, columns=64, head_dim=16)
    leaves = [tensor.cuda().requires_grad_() for tensor in (query, keys, values, torch.randn(3, 1, 7, 64))]
    expected = torch.autograd.grad(attend_memory_naive(*leaves).square().sum(), leaves)
    out = attend_memory(*leaves)
    torch.testing.assert_close(out, attend_memory_naive(*leaves), rtol=1e-3, atol=1e-4)
    for got, wanted in zip(torch.autograd.grad(out.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
