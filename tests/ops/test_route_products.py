"""Products of compact numbers: taken where they are right, and left where they are missing, wrong or slow."""

import pytest
import torch

from msa.ops import RoutingSpec, quantize_keys, route
from msa.ops.route import products, route_naive
from msa.ops.route.products import RESULT_DTYPES, fast_product, is_right

from .test_route import assert_same, random_inputs


def plain_int8(rows, keys, out):
    out.copy_(rows.int() @ keys.int().T)


def plain_bfloat16(rows, keys, out):
    out.copy_(rows.float() @ keys.float().T)


PLAIN = {torch.int8: plain_int8, torch.bfloat16: plain_bfloat16}


@pytest.fixture
def _chosen_anew():
    fast_product.cache_clear()
    yield
    fast_product.cache_clear()


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_plain_products_are_right(dtype):
    assert is_right(PLAIN[dtype], dtype)


def test_saturating_sums_are_noticed():
    """As on processors that add pairs of products in 16 bits."""

    def saturating(rows, keys, out):
        pairs = (rows.int()[:, None] * keys.int()[None]).unflatten(2, (-1, 2)).sum(3)
        out.copy_(pairs.clamp(-32768, 32767).sum(2))

    def rounding(rows, keys, out):
        """Adds up in bfloat16."""
        out.zero_()
        for i in range(rows.shape[1]):
            out.add_(rows[:, i, None] * keys[None, :, i])

    assert not is_right(saturating, torch.int8)
    assert not is_right(rounding, torch.bfloat16)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_a_product_that_fails_is_not_taken(error):
    def failing(rows, keys, out):
        raise error("not on this machine")

    assert not is_right(failing, torch.int8)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 17, 33), (13, 192, 257), (64, 40, 1), (3, 1024, 500)], ids=str)
def test_this_machines_product(dtype, shape):
    product = fast_product(dtype)
    if product is None:
        pytest.skip(f"no fast product of {dtype} on this machine")
    rows, length, chunks = shape
    a = (torch.randn(rows, length) * 40).clamp(-127, 127).to(dtype)
    b = (torch.randn(chunks, length) * 40).clamp(-127, 127).to(dtype)
    out = torch.empty(rows, chunks, dtype=RESULT_DTYPES[dtype])
    product(a, b, out)
    exact = a.double() @ b.double().T
    allowed = 0.0 if dtype == torch.int8 else exact.abs() * 2**-8 + 1e-5 * a.double().norm() * b.double().norm()
    assert ((out.double() - exact).abs() <= allowed).all()


@pytest.mark.usefixtures("_chosen_anew")
def test_without_the_private_product_float32_scores(monkeypatch):
    query, mask, keys, offsets = random_inputs([400] * 200, tokens=40)
    blocks = [quantize_keys(keys, "cosine")]
    monkeypatch.delattr(torch, "_int_mm")
    assert fast_product(torch.int8) is None
    found = route(query, mask, blocks, offsets, RoutingSpec(), 5)
    assert_same(found, route_naive(query, mask, blocks, offsets, RoutingSpec(), 5), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_chosen_anew")
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_a_slow_product_is_not_taken(monkeypatch, dtype):
    monkeypatch.setitem(products._PRODUCTS, dtype, PLAIN[dtype])
    lost, won = [2.0, 1.0], [1.0, 2.0]
    # what else runs may spoil some contests, and says nothing
    for contests, taken in ((lost * 4, None), (won, PLAIN[dtype]), (lost * 3 + won, PLAIN[dtype])):
        seconds = iter(contests)
        monkeypatch.setattr(products, "_seconds", lambda work, seconds=seconds: next(seconds))
        fast_product.cache_clear()
        assert fast_product(dtype) is taken


def test_there_is_none_of_other_dtypes():
    assert fast_product(torch.float16) is None
