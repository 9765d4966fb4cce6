"""The fast products of one decoded token: same values as the plain ones, and the process left as it was."""

import threading

import pytest
import torch
from tiny import tiny_lm
from torch import nn

from msa.model.fusion import FusedLinear, OneRowProducts


@pytest.mark.parametrize("bias", [False, True])
def test_fused_layers_equal_separate_ones(bias):
    torch.manual_seed(0)
    layers = [nn.Linear(8, size, bias=bias) for size in (4, 6)]
    fused, x = FusedLinear(), torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = fused(x, layers)
        fused.fuse(layers)
        torch.testing.assert_close(fused(x, layers), expected)


def test_a_replaced_layer_is_noticed():
    layers = [nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)]
    fused, x = FusedLinear(), torch.randn(1, 8)
    fused.fuse(layers)
    layers[1] = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        torch.testing.assert_close(fused(x, layers), torch.cat([layer(x) for layer in layers], dim=-1))


def test_one_row_products_equal_float32():
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64, dtype=torch.bfloat16), torch.randn(1, 64, dtype=torch.bfloat16)
    with torch.no_grad(), OneRowProducts():
        out = nn.functional.linear(x, weight)
    torch.testing.assert_close(out.float(), x.float() @ weight.float().T, rtol=1e-2, atol=1e-2)


def test_one_row_products_put_the_process_back():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with OneRowProducts():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    with OneRowProducts():
        pass
    assert not torch.backends.mkldnn.enabled, "another thread still computes one row"
    leave.set()
    thread.join()
    assert torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError), OneRowProducts():
        raise RuntimeError
    assert torch.backends.mkldnn.enabled


def test_a_token_alone_has_the_logits_of_the_whole_text():
    lm = tiny_lm().to(torch.bfloat16)
    ids = torch.randint(5, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = lm(ids).logits[:, -1]
        out = lm(ids[:, :-1], use_cache=True)
        token = lm(ids[:, -1:], cache=out.cache).logits[:, -1]
    torch.testing.assert_close(token.float(), whole.float(), rtol=5e-2, atol=5e-2)
