"""The formulas of costs against torch's own count of what really runs."""

import pytest
import torch

from msa.evaluation.cost import (
    Shape,
    counted_flops,
    decode_cost,
    encode_cost,
    fetch_cost,
    linear_fit,
    prefill_cost,
    route_cost,
)
from msa.model import MSAConfig, MSAForCausalLM


@pytest.fixture(scope="module")
def lm():
    config = MSAConfig(
        backbone="qwen3",
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        chunk_size=8,
        top_k_docs=2,
    )
    torch.manual_seed(0)
    return MSAForCausalLM(config).eval()


@pytest.fixture(scope="module")
def shape(lm):
    return Shape.of(lm.config, torch.float32)


@pytest.fixture(scope="module")
def memory(lm):
    with torch.no_grad():
        return lm.encode_documents(torch.randint(0, 97, (12, 24)), torch.full((12,), 24))


@pytest.mark.parametrize("length", [5, 24, 61])
def test_encoding(lm, shape, length):
    ids = torch.randint(0, 97, (3, length))
    counted = counted_flops(lambda: lm.encode_documents(ids, torch.full((3,), length)))
    assert counted == 3 * encode_cost(shape, length).flops


@pytest.mark.parametrize("tokens", [1, 9])
def test_routing(lm, shape, memory, tokens):
    ids = torch.randint(0, 97, (1, tokens))
    assert (
        counted_flops(lambda: lm.route(ids, memory)) == route_cost(shape, tokens, int(memory.chunk_offsets[-1])).flops
    )


def test_prefill_is_routing_and_attending(lm, shape, memory):
    ids = torch.randint(0, 97, (1, 9))
    selected = 2 * 3  # two documents of 24 tokens in chunks of 8
    counted = counted_flops(lambda: lm(ids, memory=memory, logits_to_keep=1))
    routing = counted_flops(lambda: lm.route(ids, memory)) - route_cost(shape, 9, 0).flops
    queries = 2 * 9 * len(shape.router_layers) * shape.hidden * shape.q_size
    assert counted == prefill_cost(shape, 9, selected).flops + routing + queries


def test_decoding(lm, shape, memory):
    with torch.no_grad():
        cache = lm(torch.randint(0, 97, (1, 9)), memory=memory).cache
    counted = counted_flops(lambda: lm(torch.tensor([[5]]), cache=cache))
    assert counted == decode_cost(shape, 10, 6).flops


def test_bytes_follow_from_shapes(shape):
    more = route_cost(shape, 9, 1000).bytes - route_cost(shape, 9, 0).bytes
    assert more == len(shape.router_layers) * 1000 * 2 * 16 * 4
    assert fetch_cost(shape, 5).bytes == len(shape.router_layers) * 5 * 2 * 2 * 16 * 4
    eight = route_cost(shape, 9, 1000, key_bytes=1).bytes - route_cost(shape, 9, 0).bytes
    assert more == 4 * eight


def test_a_bent_curve_is_no_line():
    straight = linear_fit([1, 10, 100, 1000], [5.0, 14.0, 104.0, 1004.0])
    assert straight.worst_residual < 1e-9
    assert straight.r_squared == pytest.approx(1.0)
    bent = linear_fit([1, 10, 100, 1000], [1.0, 100.0, 1e4, 1e6])
    assert bent.worst_residual > 0.5


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 0.0, 2.0], [1.0, -3.0, 2.0]])
def test_what_cannot_be_fitted_is_refused(values):
    with pytest.raises(ValueError, match="three or more points above 0"):
        linear_fit(list(range(1, len(values) + 1)), values)
