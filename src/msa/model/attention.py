"""Memory Sparse Attention: the projections of one layer, and the three ways a text passes through it.

A layer projects and leaves *what to attend to* to a reader given to ``forward``:

* :class:`DocumentReader`: documents attend causally to themselves; router layers keep their pooled chunks (stage 1);
* :class:`PrefixReader`: the template prefix attends to itself; every layer keeps its keys and values;
* :class:`QuestionReader`: a question attends to [prefix | selected content K/V | local] (stages 2 and 3).

Axes: B rows, T tokens, H hidden, Hq query heads, Hkv key/value heads, D head_dim, N documents, C chunks, k selected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from msa.model.cache import KVCache, LayerCache
from msa.model.configuration_msa import MSAConfig
from msa.model.fusion import FusedLinear
from msa.model.memory_view import DocumentMemory, MemoryView, SelectedMemory
from msa.model.positions import apply_rope, question_positions
from msa.ops import Routing, RoutingSpec, attend_memory
from msa.ops.attend_memory import attend_causal

NEG_INF = float("-inf")


class Reader(Protocol):
    """Decides what the tokens of one forward pass attend to."""

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Normed input ``[B, T, H]`` and projected q ``[B, Hq, T, D]``, k, v ``[B, Hkv, T, D]`` → ``[B, T, Hq, D]``."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in the norm's size; computed in float32 inside."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MemorySparseAttention(nn.Module):
    """Projections of one decoder layer: q, k, v, o, and in router layers the routing query and key (paper §3.2).

    The router projections sit in an ``nn.Sequential`` because that is how published checkpoints name them.
    """

    def __init__(self, config: MSAConfig, layer: int) -> None:
        super().__init__()
        assert isinstance(config.router_layers, list)
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        self.layer = layer
        self.is_router = layer in config.router_layers
        self.decouple_router = config.decouple_router
        self.rotates = config.no_rope_layers is None or bool(config.no_rope_layers[layer])
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        size, q_size, kv_size = (
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(size, kv_size, bias=config.attention_bias)
        # Llama's biases include the output's, Qwen2's do not
        self.o_proj = nn.Linear(q_size, size, bias=config.attention_bias and config.backbone != "qwen2")
        if config.backbone == "qwen3":
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.normed = config.backbone == "qwen3"
        if self.is_router and config.decouple_router:
            self.router_q_proj = nn.Sequential(nn.Linear(size, q_size, bias=False))
            self.router_k_proj = nn.Sequential(nn.Linear(size, kv_size, bias=False))
        if self.is_router and config.routing_bias:
            self.routing_alpha = nn.Parameter(torch.ones(()))
        self.bias_temperature = config.routing_bias_temperature or config.routing_temperature
        self.fused_qkv = FusedLinear()

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], reader: Reader) -> Tensor:
        """Normed hidden states ``[B, T, H]`` → attention output ``[B, T, H]``; ``reader`` decides the context."""
        q, k, v = self.project(hidden, rope)
        return self.o_proj(reader.attend(self, hidden, q, k, v).flatten(2))

    def project(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normed hidden states ``[B, T, H]`` → q ``[B, Hq, T, D]``, k and v ``[B, Hkv, T, D]``, RoPE applied if any."""
        return self.heads_of(self.fused_qkv(hidden, [self.q_proj, self.k_proj, self.v_proj]), rope)

    def heads_of(self, joined: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`project` returns, of the projections side by side ``[B, T, (Hq + 2·Hkv)·D]``."""
        num_heads, num_kv_heads = self.num_heads, self.num_kv_heads
        heads = joined.view(*joined.shape[:2], num_heads + 2 * num_kv_heads, self.head_dim)
        qk, v = heads.split_with_sizes((num_heads + num_kv_heads, num_kv_heads), dim=2)
        if self.normed:
            q, k = qk.split_with_sizes((num_heads, num_kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        qk = qk.transpose(1, 2)
        q, k = (apply_rope(qk, *rope) if self.rotates else qk).split_with_sizes((num_heads, num_kv_heads), dim=1)
        return q, k, v.transpose(1, 2)

    def routing_query(self, hidden: Tensor, q: Tensor) -> Tensor:
        """Qᴿ of the tokens, ``[B, T, Hq, D]``: no norm, no RoPE; undecoupled routers use the attention's queries."""
        if not self.decouple_router:
            return q.transpose(1, 2)
        return self.router_q_proj(hidden).unflatten(-1, (-1, self.head_dim))

    def routing_key(self, pooled_hidden: Tensor, pooled_k: Tensor) -> Tensor:
        """K̄ᴿ ``[C, Hkv, D]`` of pooled hidden states ``[C, H]``: the map is linear, so pooling comes first."""
        if not self.decouple_router:
            return pooled_k
        return self.router_k_proj(pooled_hidden).unflatten(-1, (-1, self.head_dim))


@dataclass
class DocumentReader:
    """Stage 1: a batch of documents, each attending causally to itself alone; pooled chunks pile up in ``memory``.

    ``pool`` makes chunk means ``[C, *F]`` of token states ``[N, L, *F]``. It may overwrite the states' padding: real
    tokens come before it and never see it.
    """

    pool: Callable[[Tensor], Tensor]
    memory: DocumentMemory

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Reader`."""
        if attention.is_router:
            self.keep(attention, hidden, k, v)
        return attend_causal(q, k, v)

    def keep(self, attention: MemorySparseAttention, hidden: Tensor, k: Tensor, v: Tensor) -> None:
        """Pool one router layer's keys, values and routing keys into ``memory``."""
        layer = attention.layer
        keys = self.pool(k.transpose(1, 2))
        self.memory.keys[layer] = keys
        self.memory.values[layer] = self.pool(v.transpose(1, 2))
        pooled_hidden = self.pool(hidden) if attention.decouple_router else hidden
        self.memory.routing_keys[layer] = attention.routing_key(pooled_hidden, keys)


@dataclass
class PrefixMemory:
    """Keys and values of the template prefix, per layer ``[Hkv, T0, D]``; reused by every question."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens T0 of the prefix."""
        return self.keys[0].shape[1] if self.keys else 0


@dataclass
class PrefixReader:
    """The template prefix: causal over itself; every layer's keys and values are kept."""

    prefix: PrefixMemory

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Reader`."""
        self.prefix.keys.append(k[0])
        self.prefix.values.append(v[0])
        return attend_causal(q, k, v)


@dataclass(kw_only=True, eq=False)
class QuestionReader:
    """Stages 2 and 3: routes over the memory in router layers and attends to [prefix | selected | local] (Eq. 3-4).

    Attributes:
        spec, top_k, doc_mask: see :func:`msa.ops.route`.
        attention_mask: ``[B, T]``, 0 on padding; None: no padding.
        routing_mask: ``[B, T]``, 1 on the tokens that route; None: every real token.
        memory, prefix: what there is to attend to; both optional.
        cache: state of earlier tokens of the same rows; then nothing is routed and no prefix is added again.
        keep_cache: whether to leave a cache behind, in ``new_cache`` where there was none.
        attend_selected: False: route, but attend to prefix and local only (a routing pass).
        routing: router layer → what it selected.
    """

    spec: RoutingSpec
    top_k: int
    doc_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    routing_mask: Tensor | None = None
    memory: MemoryView | None = None
    prefix: PrefixMemory | None = None
    cache: KVCache | None = None
    keep_cache: bool = True
    attend_selected: bool = True
    routing: dict[int, Routing] = field(init=False, default_factory=dict)
    new_cache: KVCache | None = field(init=False)
    _local_bias: Tensor | None = field(init=False, default=None)
    _bias_by_context: dict[int, Tensor | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.attention_mask is not None:
            mask = self.attention_mask.bool()
            self.attention_mask = None if bool(mask.all()) else mask
        if self.routing_mask is not None:
            real = True if self.attention_mask is None else self.attention_mask
            self.routing_mask = self.routing_mask.bool() & real
        self.new_cache = KVCache() if self.keep_cache and self.cache is None else None
        if self.cache is not None:  # both are in it already
            self.memory = self.prefix = None

    def positions(self, input_ids: Tensor) -> Tensor:
        """Global positions ``[B, T]``: from T0 + k over a memory, from T0 without one, on from the cache (§3.2)."""
        real = torch.ones_like(input_ids) if self.attention_mask is None else self.attention_mask
        if self.cache is not None:
            return question_positions(real, 0) + self.cache.next_position[:, None]
        before = 0 if self.prefix is None else self.prefix.num_tokens
        return question_positions(real, before + (self.top_k if self.memory is not None else 0))

    def cache_after(self, positions: Tensor) -> KVCache | None:
        """The cache once all layers have read ``positions`` ``[B, T]``; None unless ``keep_cache``."""
        cache = self.cache if self.cache is not None else self.new_cache
        if cache is None or not self.keep_cache:
            return None
        mask, num_tokens = self.attention_mask, positions.shape[1]
        if mask is not None or cache.local_mask is not None:
            earlier = cache.num_local - num_tokens
            cache.local_mask = self._local_columns(earlier, num_tokens, positions.device)
        # rows end at their last real token's position: padding repeats its neighbour's
        cache.next_position = positions.amax(1) + 1
        if mask is not None:  # a row that only got padding stays where it was
            cache.next_position = torch.where(mask.any(1), cache.next_position, positions[:, 0])
        return cache

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Reader`."""
        if self.cache is not None:
            layer = self.cache.layers[attention.layer]
            keys, values = layer.append(k, v)
            return attend_memory(q, keys, values, self._bias(q, layer.num_context, layer.context_bias))
        selected, context_bias = self.select(attention, hidden, q)
        keys, values, num_context = self._context(attention.layer, selected, k, v)
        if self.new_cache is not None:
            self.new_cache.layers.append(LayerCache.start(keys, values, num_context, context_bias))
        if num_context == 0 and self.attention_mask is None:
            return attend_causal(q, k, v)
        return attend_memory(q, keys, values, self._bias(q, num_context, context_bias))

    def select(
        self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor
    ) -> tuple[SelectedMemory | None, Tensor | None]:
        """Route in a router layer; the winners' content K/V and the bias ``[B, context]`` of prefix and chunks."""
        if self.memory is None or not attention.is_router or self.memory.num_documents == 0:
            return None, None
        mask = self.routing_mask
        if mask is None:
            mask = self.attention_mask
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        routing = self.memory.route(
            attention.layer, attention.routing_query(hidden, q), mask, self.spec, self.top_k, self.doc_mask
        )
        self.routing[attention.layer] = routing
        if not self.attend_selected:
            return None, None
        selected = self.memory.fetch(attention.layer, routing.doc_indices)
        padding = selected.slot < 0
        biased = hasattr(attention, "routing_alpha")
        if not biased and not bool(padding.any()):
            return selected, None
        if biased:
            # α·(s_i − max s)/τ; zeros stand in for the −inf of missing documents, whose difference has no gradient
            known = routing.scores.masked_fill(routing.doc_indices < 0, 0.0)
            scores = known.gather(1, selected.slot.clamp(min=0)) - known[:, :1]
            bias = attention.routing_alpha.float() * scores / attention.bias_temperature
        else:
            bias = torch.zeros_like(padding, dtype=torch.float32)
        bias = bias.masked_fill(padding, NEG_INF)
        if self.prefix is not None:
            bias = nn.functional.pad(bias, (self.prefix.num_tokens, 0))
        return selected, bias.to(q.dtype)

    def _context(self, layer: int, selected: SelectedMemory | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Columns [prefix | selected | local] ``[B, Hkv, S, D]`` and how many of them are not local."""
        keys, values = [k], [v]
        if selected is not None:
            keys.insert(0, selected.keys.transpose(1, 2).to(k.dtype))
            values.insert(0, selected.values.transpose(1, 2).to(v.dtype))
        if self.prefix is not None:
            keys.insert(0, self.prefix.keys[layer].expand(k.shape[0], -1, -1, -1).to(k.dtype))
            values.insert(0, self.prefix.values[layer].expand(v.shape[0], -1, -1, -1).to(v.dtype))
        if len(keys) == 1:
            return k, v, 0
        joined = torch.cat(keys, dim=2)
        return joined, torch.cat(values, dim=2), joined.shape[2] - k.shape[2]

    def _bias(self, q: Tensor, num_context: int, context_bias: Tensor | None) -> Tensor | None:
        """Bias ``[B or 1, 1, T, S]`` of context and local columns; None where every token sees everything."""
        if context_bias is None and num_context in self._bias_by_context:
            return self._bias_by_context[num_context]
        num_tokens = q.shape[2]
        if self._local_bias is None:
            self._local_bias = self._causal_bias(num_tokens, q)
        local = self._local_bias
        if context_bias is not None:
            context = context_bias[:, None, None, :].expand(-1, 1, num_tokens, -1)
            return torch.cat((context, local.expand(context.shape[0], -1, -1, -1)), dim=3)
        unmasked = (
            num_tokens == 1 and self.attention_mask is None and (self.cache is None or self.cache.local_mask is None)
        )
        bias = None if unmasked else nn.functional.pad(local, (num_context, 0))
        self._bias_by_context[num_context] = bias
        return bias

    def _causal_bias(self, num_tokens: int, like: Tensor) -> Tensor:
        """Bias ``[B or 1, 1, T, L]`` over the L local columns, earlier ones in the cache included."""
        device = like.device
        # the first layer's append has already counted the new tokens
        earlier = 0 if self.cache is None else self.cache.num_local - num_tokens
        columns = torch.arange(earlier + num_tokens, device=device)
        rows = torch.arange(earlier, earlier + num_tokens, device=device)[:, None]
        allowed = (columns <= rows)[None]
        real = self._local_columns(earlier, num_tokens, device)
        if real is not None:
            # a padding token sees itself, so that its softmax is defined
            allowed = allowed & (real[:, None, :] | (columns == rows))
        return torch.zeros(allowed.shape, dtype=like.dtype, device=device).masked_fill_(~allowed, NEG_INF)[:, None]

    def _local_columns(self, earlier: int, num_tokens: int, device: torch.device) -> Tensor | None:
        """Bool ``[B, L]`` of the local columns that are no padding; None if none is."""
        before = None if self.cache is None else self.cache.local_mask
        if before is None and self.attention_mask is None:
            return None
        batch = (before if before is not None else self.attention_mask).shape[0]  # type: ignore[union-attr]
        ones = torch.ones(batch, earlier + num_tokens, dtype=torch.bool, device=device)
        if before is not None:
            ones[:, :earlier] = before
        if self.attention_mask is not None:
            ones[:, earlier:] = self.attention_mask
        return ones
