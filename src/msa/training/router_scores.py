"""Scores of one layer's routers over cached states, and the recall they reach.

Scores are those of :func:`msa.ops.route` (Eq. 2: cosine, mean over heads, best question token, best chunk), in its
collapsed form.

Axes: N documents, C chunks, Q questions, B questions of a step, n documents of a step, T question tokens, H hidden,
Hq query heads, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msa.errors import TrainingError
from msa.model import MSAForCausalLM
from msa.ops import RoutingSpec
from msa.ops.route.types import reduce_chunks
from msa.training.metrics import RECALLS, recall_at
from msa.training.router_states import LayerStates, RouterStates

_BLOCK_TOKENS = 1024  # question tokens scored against the whole pool at a time


@dataclass(frozen=True)
class RouterMaps:
    """One layer's routers.

    Attributes:
        query: ``[Hq·D, H]`` float32.
        key: ``[Hkv·D, H]`` float32.
        head_dim: D.
    """

    query: Tensor
    key: Tensor
    head_dim: int

    def queries(self, tokens: Tensor) -> Tensor:
        """Token states ``[T, H]`` → collapsed routing queries ``[T, Hkv·D]``: unit heads, summed per group, over Hq."""
        num_kv_heads = self.key.shape[0] // self.head_dim
        heads = (tokens.float() @ self.query.T).unflatten(1, (num_kv_heads, -1, self.head_dim))
        unit = torch.nn.functional.normalize(heads, dim=-1)
        return unit.sum(2).flatten(1) * (self.head_dim / self.query.shape[0])

    def keys(self, chunks: Tensor) -> Tensor:
        """Pooled states ``[C, H]`` → unit routing keys of all key/value heads ``[C, Hkv·D]``."""
        heads = (chunks.float() @ self.key.T).unflatten(1, (-1, self.head_dim))
        return torch.nn.functional.normalize(heads, dim=-1).flatten(1)


def router_maps(lm: MSAForCausalLM, layer: int) -> RouterMaps:
    """The routers of one layer of a model, as float32 copies.

    Raises:
        ValueError: the model does not train with the paper's scores, or its routers are not separate projections.
    """
    config, attention = lm.config, lm.model.layer(layer).self_attn
    if not config.decouple_router or config.routing_spec(training=True) != RoutingSpec():
        raise ValueError("router warm-up trains decoupled routers with the paper's reductions: cosine, mean, max, max")
    q_weight, k_weight = (projection[0].weight for projection in (attention.router_q_proj, attention.router_k_proj))
    assert isinstance(q_weight, Tensor)
    assert isinstance(k_weight, Tensor)
    return RouterMaps(
        q_weight.detach().float().cpu().clone(), k_weight.detach().float().cpu().clone(), attention.head_dim
    )


@torch.no_grad()
def set_router_maps(lm: MSAForCausalLM, layer: int, maps: RouterMaps) -> None:
    """Write routers into one layer of a model, in its dtype."""
    attention = lm.model.layer(layer).self_attn
    for projection, weight in ((attention.router_q_proj, maps.query), (attention.router_k_proj, maps.key)):
        projection[0].weight.copy_(weight)  # type: ignore[operator]


def rows_of(states: Tensor, offsets: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of some documents or questions, one after the other, and how many each has ``[n]``.

    >>> rows_of(torch.arange(5), torch.tensor([0, 2, 3, 5]), torch.tensor([2, 0]))
    (tensor([3, 4, 0, 1]), tensor([2, 2]))
    """
    counts = offsets[items + 1] - offsets[items]
    first = offsets[items] - (counts.cumsum(0) - counts)
    return states[torch.repeat_interleave(first, counts) + torch.arange(int(counts.sum()))], counts


def document_scores(queries: Tensor, token_counts: Tensor, keys: Tensor, chunk_counts: Tensor) -> Tensor:
    """Eq. 2 in its collapsed form; differentiable.

    Args:
        queries: ``[T, Hkv·D]`` from :meth:`RouterMaps.queries`, question after question.
        token_counts: ``[B]`` tokens per question, each at least 1.
        keys: ``[C, Hkv·D]`` from :meth:`RouterMaps.keys`, document after document.
        chunk_counts: ``[n]`` chunks per document, each at least 1.

    Returns:
        ``[B, n]`` float32.
    """
    tokens = (queries @ keys.T).split(token_counts.tolist())
    chunk_scores = torch.stack([question.amax(0) for question in tokens])
    return reduce_chunks(chunk_scores, torch.nn.functional.pad(chunk_counts.cumsum(0), (1, 0)), "max")


@torch.no_grad()
def score_pool(states: LayerStates, maps: RouterMaps, questions: Sequence[int]) -> Tensor:
    """Scores ``[len(questions), N]`` float32 of every document of the pool."""
    keys, counts = maps.keys(states.chunks), states.chunk_offsets.diff()
    wanted = torch.as_tensor(questions, dtype=torch.int64)
    tokens_before = (states.token_offsets[wanted + 1] - states.token_offsets[wanted]).cumsum(0)
    _, sizes = torch.unique_consecutive(tokens_before // _BLOCK_TOKENS, return_counts=True)
    blocks = []
    for block in wanted.split(sizes.tolist()):
        tokens, token_counts = rows_of(states.tokens, states.token_offsets, block)
        blocks.append(document_scores(maps.queries(tokens), token_counts, keys, counts))
    return torch.cat(blocks)


def recall_table(
    doc_scores: Tensor, relevant: Sequence[Sequence[int]], sources: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Recall@1, 5 and 16 over the pool, per source of question.

    Args:
        doc_scores: ``[Q, N]`` of the whole pool.
        relevant: per question the indices of its relevant documents, at least one.
        sources: per question where it comes from.

    Returns:
        Source → ``questions``, ``recall@1``, …; also ``all``: the mean over questions, and ``mean of sources``.

    Raises:
        TrainingError: a score that is not a number.
    """
    if bool(doc_scores.isnan().any()):
        raise TrainingError("routing scores are not numbers; the states or the routers are not finite")
    rows: dict[str, list[int]] = defaultdict(list)
    for row, source in enumerate(sources):
        rows[source].append(row)
    recalls = {f"recall@{k}": recall_at(doc_scores, relevant, k) for k in RECALLS}
    table = {
        source: {"questions": float(len(of_source))}
        | {name: sum(values[row] for row in of_source) / len(of_source) for name, values in recalls.items()}
        for source, of_source in sorted(rows.items())
    }
    num_sources, total = len(table), float(len(sources))
    means = {name: sum(of_source[name] for of_source in table.values()) / num_sources for name in recalls}
    overall = {name: sum(values) / total for name, values in recalls.items()}
    return table | {"mean of sources": {"questions": total} | means, "all": {"questions": total} | overall}


def evaluate_routers(
    states: RouterStates,
    maps: Mapping[int, RouterMaps],
    relevant: Sequence[Sequence[int]],
    sources: Sequence[str],
    questions: Sequence[int],
) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`recall_table` of every layer (``layer 15``) and of the mean of the layers' scores (``mean``).

    Args:
        states: the cache; one layer of it is in memory at a time.
        maps: router layer → its routers.
        relevant, sources: per question of ``states``.
        questions: whom to ask; those without relevant documents are left out.

    Raises:
        TrainingError: a shard that cannot be read, or a score that is not a number.
    """
    asked = [question for question in questions if relevant[question]]
    wanted, asked_sources = [relevant[i] for i in asked], [sources[i] for i in asked]
    tables, total = {}, torch.zeros(())
    for layer, of_layer in sorted(maps.items()):
        scores = score_pool(states.layer(layer), of_layer, asked)
        tables[f"layer {layer}"] = recall_table(scores, wanted, asked_sources)
        total = total + scores
    return tables | {"mean": recall_table(total / len(maps), wanted, asked_sources)}
