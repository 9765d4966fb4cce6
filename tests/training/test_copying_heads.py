"""The start of a network from nothing: heads that look back, heads that copy, and nothing else changed."""

import pytest
import torch
from watching import Watching

from msa.model import MSAConfig
from msa.training.copying_heads import start_copying_heads
from msa.training.tiny import fresh_network

SHAPE = {
    "backbone": "llama",
    "hidden_size": 192,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "vocab_size": 500,
    "chunk_size": 8,
    "tie_word_embeddings": True,
}


def fresh(copying_heads=True, seed=0, **changes):
    config = MSAConfig(**{**SHAPE, **changes})
    return fresh_network(config, seed=seed, copying_heads=copying_heads)


@torch.no_grad()
def attention_over_a_repeated_span(lm):
    """Attention weights over 40 random tokens and 20 of them again: token 40 + i is token 10 + i."""
    drawn = torch.randint(500, (40,), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([drawn, drawn[10:30]])[None]
    reader = Watching()
    lm.model(ids, torch.arange(60)[None], reader)
    return reader.weights


def test_each_head_of_the_first_layer_sees_the_token_so_many_back():
    weights = attention_over_a_repeated_span(fresh())[0]
    for head in range(6):
        by_distance = [float(weights[head].diagonal(-distance)[10:].mean()) for distance in range(12)]
        assert max(range(12), key=by_distance.__getitem__) == head + 1
        assert by_distance[head + 1] > 0.5


def on_what_followed(copying_heads):
    """Mean attention of layers 1 and 2 on what followed the current token, over a few networks: ``[6]`` heads."""
    found = []
    for seed in range(3):
        weights = attention_over_a_repeated_span(fresh(copying_heads, seed=seed))
        found += [weights[layer][:, 40 + i, 11 + i] for layer in (1, 2) for i in range(19)]
    return torch.stack(found).mean(0)


def test_heads_of_the_next_layers_find_what_followed_the_current_token():
    started, others = on_what_followed(True).split([4, 2])
    assert started.min() > 2 * on_what_followed(False).mean()
    assert started.min() > 2 * others.max()


def test_the_constant_part_of_embeddings_does_not_reach_routers():
    lm = fresh()
    mean = lm.model.embed_tokens.weight.mean(0)
    constant = mean / mean.norm()
    for layer in lm.config.router_layers:
        attention = lm.model.layer(layer).self_attn
        for weight in (attention.router_q_proj[0].weight, attention.router_k_proj[0].weight):
            # the mean of 500 embeddings is the constant up to noise
            assert (weight @ constant).norm() < 0.25 * weight.norm() / 192**0.5 * 32**0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1, "router_layers": [0]},
        {"num_hidden_layers": 2},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 8, "num_key_value_heads": 8},  # more head dimensions than the residual stream
    ],
)
def test_any_shape_starts_finite(changes):
    lm = fresh(**changes)
    with torch.no_grad():
        out = lm(torch.arange(30)[None] + 5)
    assert torch.isfinite(out.logits).all()


def test_the_same_generator_makes_the_same_start():
    one, other = (fresh(copying_heads=False) for _ in range(2))
    for lm in (one, other):
        start_copying_heads(lm, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
