"""Router projections without training: whitened by a calibration text, or tied random ones.

Freshly drawn router projections route at chance. Because routing keys are a linear map of pooled hidden states, the
map can be chosen from the states' second moments alone: whitened, their cosine already tells documents apart.

Axes: H hidden, Hq query heads, Hkv key/value heads, D head_dim, g = Hq / Hkv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msa.documents import Protocol
from msa.documents.batching import length_buckets, pad_right
from msa.model.attention import MemorySparseAttention
from msa.model.modeling_msa import MSAForCausalLM
from msa.ops import pool_chunks
from msa.ops.attend_memory import attend_causal

_RIDGE = 0.01  # of the mean eigenvalue, added before inverting
_BATCH_TOKENS = 4096


@dataclass
class SecondMoments:
    """Uncentred second moments Σ x xᵀ of one layer's states, summed ``[H, H]`` in float64, and how many states."""

    chunks: Tensor
    tokens: Tensor
    num_chunks: int = 0
    num_tokens: int = 0

    def to(self, device: str | torch.device) -> SecondMoments:
        """The same on another device."""
        return SecondMoments(self.chunks.to(device), self.tokens.to(device), self.num_chunks, self.num_tokens)


@dataclass
class MomentReader:
    """Reads texts as stage 1 does and accumulates second moments instead of a memory.

    Attributes:
        moments: router layer → :class:`SecondMoments`.
        lengths: tokens per text ``[N]``.
        chunk_size: tokens per chunk.
        token_mask: bool ``[N, T]`` of question tokens; None while documents are read.
    """

    moments: dict[int, SecondMoments]
    lengths: Tensor
    chunk_size: int
    token_mask: Tensor | None = field(default=None)

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`."""
        if attention.is_router:
            moments = self.moments[attention.layer]
            if self.token_mask is None:
                states = pool_chunks(hidden.float(), self.lengths, self.chunk_size)
                moments.chunks += (states.T @ states).double()
                moments.num_chunks += states.shape[0]
            else:
                states = hidden[self.token_mask].float()
                moments.tokens += (states.T @ states).double()
                moments.num_tokens += states.shape[0]
        return attend_causal(q, k, v)


@torch.inference_mode()
def collect_moments(
    lm: MSAForCausalLM,
    protocol: Protocol,
    documents: Sequence[str],
    questions: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> dict[int, SecondMoments]:
    """Second moments of pooled chunk states and of question-token states at every router layer.

    Args:
        lm: the model whose routers are to be initialised.
        protocol: how documents and questions are written for it.
        documents: calibration texts.
        questions: calibration questions; only their routing tokens count.
        progress: called with the number of tokens read since the last call.

    Raises:
        ValueError: no documents or no questions.
    """
    if not documents or not questions:
        raise ValueError("calibration needs at least one document and one question")
    size, device = lm.config.hidden_size, lm.device
    zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
    moments = {layer: SecondMoments(zeros.clone(), zeros.clone()) for layer in lm.config.router_layers}
    encoded = [protocol.document_ids(number, text) for number, text in enumerate(documents, start=1)]
    for batch in length_buckets([len(ids) for ids in encoded], _BATCH_TOKENS):
        ids, lengths = pad_right([encoded[i] for i in batch], device)
        _run(lm, ids, MomentReader(moments, lengths, lm.config.chunk_size))
        if progress:
            progress(int(lengths.sum()))
    turns = [protocol.question_turn(question) for question in questions]
    prefix = protocol.prefix_ids
    for batch in length_buckets([len(turn.ids) for turn in turns], _BATCH_TOKENS):
        ids, lengths = pad_right([prefix + turns[i].ids for i in batch], device)
        mask, _ = pad_right([[0] * len(prefix) + [int(m) for m in turns[i].marked] for i in batch], device)
        _run(lm, ids, MomentReader(moments, lengths, lm.config.chunk_size, mask.bool()))
        if progress:
            progress(int(lengths.sum()))
    return moments


def whitened_routers(lm: MSAForCausalLM, moments: dict[int, SecondMoments], seed: int = 0) -> None:
    """Set W_K = Σ_chunk^(−1/2)·B and W_Q = Σ_token^(−1/2)·B, the latter repeated over each query group.

    B is a random orthonormal basis ``[H, Hkv·D]``, the same on both sides, drawn from ``seed`` and the layer's index.
    """
    for layer, attention in _routers(lm):
        chunks = moments[layer].chunks / max(moments[layer].num_chunks, 1)
        tokens = moments[layer].tokens / max(moments[layer].num_tokens, 1)
        basis = _basis(lm, layer, seed)
        _set(attention, _inverse_sqrt(tokens) @ basis, _inverse_sqrt(chunks) @ basis)


def tied_routers(lm: MSAForCausalLM, seed: int = 0) -> None:
    """Set W_Q = W_K repeated over each query group, an orthonormal random basis: equal states get equal routing."""
    for layer, attention in _routers(lm):
        basis = _basis(lm, layer, seed)
        _set(attention, basis, basis)


def _routers(lm: MSAForCausalLM) -> list[tuple[int, MemorySparseAttention]]:
    return [(layer, lm.model.layer(layer).self_attn) for layer in lm.config.router_layers]


def _basis(lm: MSAForCausalLM, layer: int, seed: int) -> Tensor:
    """Random basis ``[H, Hkv·D]`` with orthonormal columns (rows, where Hkv·D exceeds H), float64."""
    generator = torch.Generator().manual_seed(seed * 1000 + layer)
    size, width = lm.config.hidden_size, lm.config.num_key_value_heads * lm.config.head_dim
    drawn = torch.randn(max(size, width), min(size, width), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(drawn)[0]
    return (basis if size >= width else basis.T).to(lm.device)


def _inverse_sqrt(moment: Tensor) -> Tensor:
    """Σ^(−1/2) of a second moment ``[H, H]``, regularised by a ridge."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0) + values.mean() * _RIDGE
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


@torch.no_grad()
def _set(attention: MemorySparseAttention, query_map: Tensor, key_map: Tensor) -> None:
    """Write maps ``[H, Hkv·D]`` into the projections, the query's repeated for every head of its group."""
    q_weight, k_weight = (projection[0].weight for projection in (attention.router_q_proj, attention.router_k_proj))
    assert isinstance(q_weight, Tensor)
    assert isinstance(k_weight, Tensor)
    group_size = q_weight.shape[0] // k_weight.shape[0]
    per_head = query_map.T.unflatten(0, (-1, attention.head_dim))  # [Hkv, D, H]
    q_weight.copy_(per_head.repeat_interleave(group_size, dim=0).flatten(0, 1))
    k_weight.copy_(key_map.T)


def _run(lm: MSAForCausalLM, ids: Tensor, reader: MomentReader) -> None:
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    lm.model(ids, positions, reader)
