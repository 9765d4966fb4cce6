"""A start for networks from nothing: heads that see the token before, and heads that copy what followed it.

Copying needs two heads in series (an induction head): one tells each token its predecessor, the next one finds the
place whose predecessor is the current token. Out of random weights both take thousands of steps to form on a CPU,
because neither is of use without the other; begun like this they copy within a hundred. In the spirit of mimetic
initialisation (arXiv 2305.09828): only the start is made, everything is trained.

Axes: H hidden size, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa.model import MSAConfig, MSAForCausalLM

# attention logits between the token a head should see and that one's neighbours: about 0.7 of this
_SHARPNESS = 7.5
# pairs of RoPE dimensions, fastest first, that tell neighbours apart
_FAST_PAIRS = 6


@dataclass(frozen=True)
class _Predecessor:
    """Where the first layer leaves the token before: ``reads`` ``[D, H]`` of it, at ``writes`` ``[D, H]``."""

    reads: Tensor
    writes: Tensor


@torch.no_grad()
def start_copying_heads(lm: MSAForCausalLM, generator: torch.Generator) -> None:
    """Change a fresh network's embeddings and attention in place; made for RoPE without query/key norms.

    Every embedding gets a constant vector in common. The first layer's queries and keys are made of it alone, with
    phases whose product under RoPE peaks at a distance of m tokens for head m. The next two layers' heads, except for
    the last key/value head's, match the current token against predecessors and write what they find as it was read.
    Elsewhere the constant is projected out, so that it does not drown what differs between tokens.
    """
    embeddings = lm.model.embed_tokens.weight
    constant = torch.randn(embeddings.shape[1], generator=generator) * 0.5
    embeddings += constant
    predecessor = _see_predecessors(lm, constant, generator)
    for layer in range(1, min(3, lm.config.num_hidden_layers)):
        _copy_followers(lm, layer, predecessor, constant, generator)
    for layer in range(1, lm.config.num_hidden_layers):
        attention = lm.model.layer(layer).self_attn
        projections = [attention.q_proj, attention.k_proj]
        if hasattr(attention, "router_q_proj"):
            projections += [*attention.router_q_proj, *attention.router_k_proj]
        for projection in projections:
            projection.weight.copy_(_without(projection.weight, constant))


def _see_predecessors(lm: MSAForCausalLM, constant: Tensor, generator: torch.Generator) -> _Predecessor:
    """The first layer: head m (from 1) attends m tokens back; each writes to its own part of the residual stream."""
    config, attention = lm.config, lm.model.layer(0).self_attn
    dim, group_size = attention.head_dim, attention.num_heads // attention.num_kv_heads
    fast = min(_FAST_PAIRS, dim // 2)
    frequencies = _rope_frequencies(config, dim)[:fast]
    # root-mean-square norm: unit Gaussians and the constant of half their size
    along = constant / constant.norm() ** 2 * 1.25**0.5
    scale = (_SHARPNESS * dim**0.5) ** 0.5
    room = _orthonormal(config.hidden_size, config.hidden_size, generator)
    key = torch.zeros(dim)
    key[:fast] = scale
    first: _Predecessor | None = None
    reads = torch.zeros(0)
    for head in range(attention.num_heads):
        rows, kv_rows = _rows(head, dim), _rows(head // group_size, dim)
        if head % group_size == 0:
            reads = _without(_orthonormal(dim, config.hidden_size, generator), constant)
            attention.k_proj.weight[kv_rows] = key[:, None] * along
            attention.v_proj.weight[kv_rows] = reads
        phases = frequencies * (head + 1)
        query = torch.zeros(dim)
        query[:fast], query[dim // 2 : dim // 2 + fast] = scale * phases.cos(), -scale * phases.sin()
        attention.q_proj.weight[rows] = query[:, None] * along
        part = torch.arange(head * dim, (head + 1) * dim) % config.hidden_size
        writes = room[part] * (2.0 if head == 0 else 1.0)
        attention.o_proj.weight[:, rows] = writes.T
        first = first or _Predecessor(reads, writes)
    assert first is not None
    return first


def _copy_followers(
    lm: MSAForCausalLM, layer: int, predecessor: _Predecessor, constant: Tensor, generator: torch.Generator
) -> None:
    """Heads whose key is a token's predecessor, whose query is the current token, and that write the token found."""
    attention = lm.model.layer(layer).self_attn
    dim, group_size = attention.head_dim, attention.num_heads // attention.num_kv_heads
    pairs = dim // 2
    # only slow pairs of RoPE can compare contents over a distance
    slow = torch.cat([torch.arange(pairs // 2, pairs), torch.arange(pairs // 2, pairs) + pairs])
    for kv in range(max(attention.num_kv_heads - 1, 1)):
        chosen = torch.randperm(dim, generator=generator)[: len(slow)]
        copied = _without(_orthonormal(dim, attention.q_proj.in_features, generator), constant)
        attention.k_proj.weight[kv * dim + slow] = 2.0 * predecessor.writes[chosen]
        attention.v_proj.weight[_rows(kv, dim)] = copied
        for head in range(kv * group_size, (kv + 1) * group_size):
            attention.q_proj.weight[head * dim + slow] = 2.5 * predecessor.reads[chosen]
            attention.o_proj.weight[:, _rows(head, dim)] = 1.5 * copied.T


def _rope_frequencies(config: MSAConfig, dim: int) -> Tensor:
    """Radians per token of each pair of dimensions, fastest first."""
    theta = (config.rope_parameters or {}).get("rope_theta", 10_000.0)
    return float(theta) ** (-torch.arange(dim // 2) / (dim // 2))


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q.T


def _without(rows: Tensor, direction: Tensor) -> Tensor:
    """Rows with what lies along ``direction`` taken out."""
    unit = direction / direction.norm()
    return rows - (rows @ unit)[:, None] * unit


def _rows(head: int, dim: int) -> slice:
    return slice(head * dim, (head + 1) * dim)
