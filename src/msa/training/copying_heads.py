"""A start for networks from nothing: heads that see the token before, and heads that copy what followed it.

Copying needs two heads in series (an induction head): one tells each token its predecessors, the next one finds the
place whose predecessors are the current tokens. Out of random weights both take thousands of steps to form on a CPU,
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


# scales of the keys that compare tokens and of what is copied; found by trial, as is the sharpness
_MATCH, _COPY = 8.0, 8.0
# how many tokens in a row the heads of one key/value head compare, in turn
_ORDERS = (2, 3)


@dataclass(frozen=True)
class _Predecessors:
    """What the first layer tells each token: ``reads`` ``[D, H]`` of the token m + 1 back, at ``writes[m]``."""

    reads: Tensor
    writes: list[Tensor]


@torch.no_grad()
def start_copying_heads(lm: MSAForCausalLM, generator: torch.Generator) -> None:
    """Change a fresh network's embeddings and attention in place; made for RoPE without query/key norms.

    Every embedding gets a constant vector in common. The first layer's queries and keys are made of it alone, with
    phases whose product under RoPE peaks at a distance of m tokens for head m. The next two layers' heads, except for
    the last key/value head's, match the last two or three tokens against those before a place, and write what stands
    there. Elsewhere the constant is projected out, so that it does not drown what differs between tokens.
    """
    embeddings = lm.model.embed_tokens.weight
    constant = torch.randn(embeddings.shape[1], generator=generator) * 0.5
    embeddings += constant
    predecessors = _see_predecessors(lm, constant, generator)
    for layer in range(1, min(3, lm.config.num_hidden_layers)):
        _copy_followers(lm, layer, predecessors, constant, generator)
    for layer in range(1, lm.config.num_hidden_layers):
        attention = lm.model.layer(layer).self_attn
        projections = [attention.q_proj, attention.k_proj]
        if hasattr(attention, "router_q_proj"):
            projections += [*attention.router_q_proj, *attention.router_k_proj]
        for projection in projections:
            projection.weight.copy_(_without(projection.weight, constant))


def _see_predecessors(lm: MSAForCausalLM, constant: Tensor, generator: torch.Generator) -> _Predecessors:
    """The first layer: head m (from 1) attends m tokens back; each writes to its own part of the residual stream."""
    config, attention = lm.config, lm.model.layer(0).self_attn
    dim, group_size = attention.head_dim, attention.num_heads // attention.num_kv_heads
    fast = min(_FAST_PAIRS, dim // 2)
    frequencies = _rope_frequencies(config, dim)[:fast]
    # root-mean-square norm: unit Gaussians and the constant of half their size
    along = constant / constant.norm() ** 2 * 1.25**0.5
    scale = (_SHARPNESS * dim**0.5) ** 0.5
    room = _orthonormal(config.hidden_size, config.hidden_size, generator)
    reads = _without(_orthonormal(dim, config.hidden_size, generator), constant)
    key = torch.zeros(dim)
    key[:fast] = scale
    for kv in range(attention.num_kv_heads):
        attention.k_proj.weight[_rows(kv, dim)] = key[:, None] * along
        attention.v_proj.weight[_rows(kv, dim)] = reads
    writes = []
    for head in range(group_size * attention.num_kv_heads):
        phases = frequencies * (head + 1)
        query = torch.zeros(dim)
        query[:fast], query[dim // 2 : dim // 2 + fast] = scale * phases.cos(), -scale * phases.sin()
        attention.q_proj.weight[_rows(head, dim)] = query[:, None] * along
        part = torch.arange(head * dim, (head + 1) * dim) % config.hidden_size
        # heads beyond those that are compared write nothing at first: their room is another head's
        writes.append(room[part] * (1.0 if head < max(_ORDERS) else 0.0))
        attention.o_proj.weight[:, _rows(head, dim)] = writes[-1].T
    return _Predecessors(reads, writes)


def _copy_followers(
    lm: MSAForCausalLM, layer: int, predecessors: _Predecessors, constant: Tensor, generator: torch.Generator
) -> None:
    """Heads that match the last tokens against those before a place, and write the token that stands there."""
    attention = lm.model.layer(layer).self_attn
    dim, group_size = attention.head_dim, attention.num_heads // attention.num_kv_heads
    pairs = dim // 2
    # only slow pairs of RoPE can compare contents over a distance
    slow = torch.cat([torch.arange(pairs // 2, pairs), torch.arange(pairs // 2, pairs) + pairs])
    slow = slow[torch.randperm(len(slow), generator=generator)]
    # the current token, then the tokens before it as the first layer has told them
    recent = [predecessors.reads, *predecessors.writes]
    for kv in range(max(attention.num_kv_heads - 1, 1)):
        order = min(_ORDERS[kv % len(_ORDERS)], len(predecessors.writes))
        copied = _without(_orthonormal(dim, attention.q_proj.in_features, generator), constant)
        attention.v_proj.weight[_rows(kv, dim)] = copied
        for back, part in enumerate(slow.chunk(order)):
            chosen = torch.randperm(dim, generator=generator)[: len(part)]
            attention.k_proj.weight[kv * dim + part] = _MATCH * predecessors.writes[back][chosen]
            for head in range(kv * group_size, (kv + 1) * group_size):
                gain = 2.5 if back == 0 else 1.25  # the last token counts most
                attention.q_proj.weight[head * dim + part] = gain * recent[back][chosen]
        for head in range(kv * group_size, (kv + 1) * group_size):
            attention.o_proj.weight[:, _rows(head, dim)] = _COPY * copied.T


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
