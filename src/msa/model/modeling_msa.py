"""The decoder: one readable network for Llama, Mistral, Qwen2 and Qwen3 backbones with a memory in its upper layers.

Axes: B rows, T tokens, H hidden, V vocabulary, N documents, L padded document length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from msa.model.attention import (
    DocumentReader,
    MemorySparseAttention,
    PrefixMemory,
    PrefixReader,
    QuestionReader,
    Reader,
    RMSNorm,
)
from msa.model.cache import KVCache
from msa.model.configuration_msa import MSAConfig
from msa.model.fusion import FusedLinear, OneRowProducts
from msa.model.losses import labelled_token_loss, next_token_loss, routing_loss_over_layers
from msa.model.memory_view import DocumentMemory, MemoryView
from msa.model.positions import RotaryEmbedding, question_positions
from msa.ops import Routing, chunk_offsets_of, pool_chunks


@dataclass
class MSAOutput(ModelOutput):
    """What a forward pass returns; what was not asked for is None.

    Attributes:
        logits: ``[B, T, V]`` (or the last ``logits_to_keep`` tokens).
        routing: router layer → :class:`msa.ops.Routing`; empty without a memory or when continuing from a cache.
        cache: pass it to the next call with the next token(s).
        loss: weighted sum of the losses below; lm_loss, answer_loss, aux_loss: each unweighted.
        hidden_states: input of every layer and the final normed states, ``num_layers + 1`` of ``[B, T, H]``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    routing: dict[int, Routing] | None = None
    cache: KVCache | None = None
    lm_loss: Tensor | None = None
    answer_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: MSAConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self.act = ACT2FN[config.hidden_act]
        self.fused_gate_up = FusedLinear()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` → ``[B, T, H]``."""
        gate, up = self.fused_gate_up(x, [self.gate_proj, self.up_proj]).chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


class MSADecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: MSAConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = MemorySparseAttention(config, layer)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], reader: Reader) -> Tensor:
        """Residual stream ``[B, T, H]`` → ``[B, T, H]``."""
        x = x + self.self_attn(self.input_layernorm(x), rope, reader)
        return x + self.mlp(self.post_attention_layernorm(x))


class MSADecoder(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: MSAConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MSADecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = RotaryEmbedding(config)
        self.checkpoint_layers = False  # training: compute each layer again in the backward pass

    def forward(
        self, input_ids: Tensor, positions: Tensor, reader: Reader, collect: list[Tensor] | None = None
    ) -> Tensor:
        """Token ids and positions ``[B, T]`` → final normed states ``[B, T, H]``; ``collect`` takes layer inputs."""
        x = self.embed_tokens(input_ids)
        rope = self.rope(positions, x.dtype)
        for layer in self.layers:
            if collect is not None:
                collect.append(x)
            x = self._through(layer, x, rope, reader)
        x = self.norm(x)
        if collect is not None:
            collect.append(x)
        return x

    def _through(self, layer: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor], reader: Reader) -> Tensor:
        if self.checkpoint_layers and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(layer, x, rope, reader, use_reentrant=False)
        else:
            out = layer(x, rope, reader)
        return out

    def layer(self, index: int) -> MSADecoderLayer:
        """One decoder layer, typed."""
        layer = self.layers[index]
        assert isinstance(layer, MSADecoderLayer)
        return layer

    def read_until(self, input_ids: Tensor, positions: Tensor, reader: Reader, last: int) -> tuple[Tensor, Any]:
        """Run layers 0..last − 1 and project in layer ``last``: all that a pass needs that ends in its router.

        Returns:
            The normed input ``[B, T, H]`` of layer ``last`` and its (q, k, v).
        """
        x = self.embed_tokens(input_ids)
        rope = self.rope(positions, x.dtype)
        for layer in self.layers[:last]:
            x = self._through(layer, x, rope, reader)
        top = self.layer(last)
        hidden = top.input_layernorm(x)
        return hidden, top.self_attn.project(hidden, rope)


class MSAForCausalLM(PreTrainedModel):
    """Decoder with a memory inside its attention and a language-model head (paper §3)."""

    config_class = MSAConfig
    base_model_prefix = "model"
    _no_split_modules = ["MSADecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MSAConfig) -> None:
        super().__init__(config)
        self.model = MSADecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # published checkpoints carry the routing loss's temperature as a tensor; it is not trained
        self.temperature = nn.Parameter(torch.tensor(float(config.routing_temperature)), requires_grad=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, MemorySparseAttention) and hasattr(module, "routing_alpha"):
            nn.init.ones_(module.routing_alpha)
        elif module is self:
            nn.init.constant_(self.temperature, float(self.config.routing_temperature))

    def add_routing_bias(self, start: float = 1.0) -> None:
        """Give every router layer a routing bias that begins at ``start``; one that has it already keeps its own."""
        self.config.routing_bias = True
        for index in self.config.router_layers:
            attention = self.model.layer(index).self_attn
            if not hasattr(attention, "routing_alpha"):
                like = attention.q_proj.weight
                attention.routing_alpha = nn.Parameter(torch.full((), start, device=like.device, dtype=like.dtype))

    def fuse_projections(self) -> None:
        """Join q/k/v and gate/up of every layer for faster inference; outputs and tensor names stay the same."""
        for index in range(len(self.model.layers)):
            attention, mlp = self.model.layer(index).self_attn, self.model.layer(index).mlp
            attention.fused_qkv.fuse([attention.q_proj, attention.k_proj, attention.v_proj])
            mlp.fused_gate_up.fuse([mlp.gate_proj, mlp.up_proj])

    def separate_projections(self) -> None:
        """Undo :meth:`fuse_projections`, before training."""
        for index in range(len(self.model.layers)):
            attention, mlp = self.model.layer(index).self_attn, self.model.layer(index).mlp
            attention.fused_qkv.separate([attention.q_proj, attention.k_proj, attention.v_proj])
            mlp.fused_gate_up.separate([mlp.gate_proj, mlp.up_proj])

    def read_documents(self, input_ids: Tensor, lengths: Tensor) -> tuple[DocumentMemory, Tensor]:
        """:meth:`encode_documents` through all layers: also the final states ``[N, L, H]``, for losses on documents."""
        reader = self._document_reader(lengths, input_ids.device, None)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return reader.memory, self.model(input_ids, positions, reader)

    def encode_documents(self, input_ids: Tensor, lengths: Tensor) -> DocumentMemory:
        """Stage 1: run documents through the decoder, each alone, and keep their pooled chunks (paper §3.1).

        Differentiable; wrap in ``torch.inference_mode()`` when building a memory. Layers above the last router layer
        are not computed: nothing of a document is kept there.

        Args:
            input_ids: ``[N, L]`` right-padded token ids; what stands in the padding does not matter.
            lengths: ``[N]`` tokens per document, each in 1..L.

        Returns:
            :class:`DocumentMemory` with C chunks in all.

        Raises:
            ValueError: a length outside 1..L.
        """
        return self.encode_pooled(input_ids, lengths, None)

    def encode_pooled(
        self, input_ids: Tensor, lengths: Tensor, pool: Callable[[Tensor], Tensor] | None
    ) -> DocumentMemory:
        """:meth:`encode_documents` with chunk means by ``pool`` (see :class:`msa.model.attention.DocumentReader`).

        None: by :func:`msa.ops.pool_chunks`, which gradients pass through.
        """
        reader = self._document_reader(lengths, input_ids.device, pool)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        last = self.config.router_layers[-1]
        hidden, (_, k, v) = self.model.read_until(input_ids, positions, reader, last)
        reader.keep(self.model.layer(last).self_attn, hidden, k, v)
        return reader.memory

    def _document_reader(
        self, lengths: Tensor, device: torch.device, pool: Callable[[Tensor], Tensor] | None
    ) -> DocumentReader:
        chunk_size = self.config.chunk_size
        offsets = chunk_offsets_of(lengths, chunk_size).to(device)
        memory = DocumentMemory(keys={}, values={}, routing_keys={}, chunk_offsets=offsets)
        return DocumentReader(pool or partial(pool_chunks, lengths=lengths.to(device), chunk_size=chunk_size), memory)

    def encode_prefix(self, prefix_ids: Tensor) -> PrefixMemory:
        """Keys and values of the template prefix, token ids ``[T0]`` at positions 0..T0 − 1."""
        prefix = PrefixMemory()
        positions = torch.arange(prefix_ids.shape[0], device=prefix_ids.device)[None]
        self.model(prefix_ids[None], positions, PrefixReader(prefix))
        return prefix

    def route(
        self,
        input_ids: Tensor,
        memory: MemoryView,
        attention_mask: Tensor | None = None,
        routing_mask: Tensor | None = None,
        prefix: PrefixMemory | None = None,
        doc_mask: Tensor | None = None,
        top_k: int | None = None,
    ) -> dict[int, Routing]:
        """A routing pass: every router layer's scores without attending to anything selected.

        This is what a selection shared by all layers (their mean score) needs before any layer attends; also the
        cheapest way to search. Arguments and result as in :meth:`forward`; layers above the last router are skipped.
        """
        reader, positions = self._question_reader(
            input_ids, attention_mask, routing_mask, None, memory, prefix, None, top_k, doc_mask, False, False, False
        )
        last = self.config.router_layers[-1]
        hidden, (q, _, _) = self.model.read_until(input_ids, positions, reader, last)
        reader.select(self.model.layer(last).self_attn, hidden, q)
        return reader.routing

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        routing_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        memory: MemoryView | None = None,
        prefix: PrefixMemory | None = None,
        cache: KVCache | None = None,
        top_k: int | None = None,
        labels: Tensor | None = None,
        answer_labels: Tensor | None = None,
        doc_sample: Tensor | None = None,
        positives: list[list[int]] | None = None,
        doc_mask: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        labelled_only: bool = False,
        output_hidden_states: bool = False,
    ) -> MSAOutput:
        """Questions (and what follows them) over a memory: prefill, decode or training step.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding (left or right); None: none.
            routing_mask: ``[B, T]``, 1 on the tokens that route; None: every real token.
            position_ids: ``[B, T]``; None: counted from T0 + top_k with a memory, from T0 without, on from the cache.
            memory: documents to route over, for instance from :meth:`encode_documents`.
            prefix: from :meth:`encode_prefix`.
            cache: from an earlier call on the same rows; memory and prefix are in it already.
            top_k: documents selected per router layer; None: ``config.top_k_docs``.
            labels: ``[B, T]`` next-token targets, −100 where there is none (shifted inside).
            answer_labels: as ``labels``, for the separately weighted loss on answers.
            doc_sample: ``[N]`` the row each document of an in-batch memory belongs to; None: all rows see all.
            positives: per row the indices of its relevant documents; asks for the routing loss.
            doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
            use_cache: keep a cache; None: only when no gradient is asked for.
            logits_to_keep: compute logits for the last so many tokens; 0: all.
            labelled_only: return no logits; the losses compute them for labelled tokens alone, in pieces.
            output_hidden_states: also return every layer's input.

        Returns:
            :class:`MSAOutput`.

        Raises:
            ValueError: ``positives`` without a memory, or not one list per row.
        """
        training = labels is not None or positives is not None
        if use_cache is None:
            use_cache = not torch.is_grad_enabled() and not training
        if doc_sample is not None:
            own = doc_sample[None, :] == torch.arange(input_ids.shape[0], device=doc_sample.device)[:, None]
            doc_mask = own if doc_mask is None else own & doc_mask
        reader, positions = self._question_reader(
            input_ids,
            attention_mask,
            routing_mask,
            position_ids,
            memory,
            prefix,
            cache,
            top_k,
            doc_mask,
            use_cache,
            True,
            training,
        )
        collected: list[Tensor] | None = [] if output_hidden_states else None
        with self._products(input_ids):
            states = self.model(input_ids, positions, reader, collected)
            logits = None
            if not labelled_only:
                logits = self.lm_head(states[:, -logits_to_keep:] if logits_to_keep else states)
        return self._with_losses(
            states,
            MSAOutput(
                logits=logits,
                routing=reader.routing,
                cache=self._updated_cache(reader, positions, use_cache),
                hidden_states=None if collected is None else tuple(collected),
            ),
            labels,
            answer_labels,
            positives,
        )

    def _products(self, input_ids: Tensor) -> AbstractContextManager[None]:
        """How the products of this pass are computed: one or two bf16 tokens on a CPU have faster kernels."""
        few_rows = input_ids.numel() <= 2 and input_ids.device.type == "cpu" and self.dtype == torch.bfloat16
        return OneRowProducts() if few_rows and not torch.is_grad_enabled() else nullcontext()

    def _question_reader(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        routing_mask: Tensor | None,
        position_ids: Tensor | None,
        memory: MemoryView | None,
        prefix: PrefixMemory | None,
        cache: KVCache | None,
        top_k: int | None,
        doc_mask: Tensor | None,
        keep_cache: bool,
        attend_selected: bool,
        training: bool,
    ) -> tuple[QuestionReader, Tensor]:
        """The reader of a question pass and its global positions ``[B, T]``."""
        top_k = self.config.top_k_docs if top_k is None else top_k
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and bool(mask.all()):
            mask = None
        if position_ids is None:
            real = torch.ones_like(input_ids) if mask is None else mask
            start = 0 if prefix is None else prefix.num_tokens
            position_ids = question_positions(real, start + (top_k if memory is not None else 0))
            if cache is not None:
                position_ids = question_positions(real, 0) + cache.next_position[:, None]
        reader = QuestionReader(
            attention_mask=mask,
            routing_mask=None if routing_mask is None else routing_mask.bool() & (True if mask is None else mask),
            memory=memory,
            prefix=prefix,
            cache=cache,
            keep_cache=keep_cache,
            attend_selected=attend_selected,
            spec=self.config.routing_spec(training=training),
            top_k=top_k,
            doc_mask=doc_mask,
        )
        return reader, position_ids

    def _updated_cache(self, reader: QuestionReader, positions: Tensor, use_cache: bool) -> KVCache | None:
        """The cache after this pass: local mask and next positions moved on."""
        cache = reader.cache if reader.cache is not None else reader.new_cache
        if cache is None or not use_cache:
            return None
        mask, tokens = reader.attention_mask, positions.shape[1]
        if mask is not None or cache.local_mask is not None:
            earlier = cache.layers[0].length - cache.layers[0].num_context - tokens
            cache.local_mask = reader._local_columns(earlier, tokens, positions.device)
        # rows end at their last real token's position: padding repeats its neighbour's
        cache.next_position = positions.amax(1) + 1
        if mask is not None:  # a row that only got padding stays where it was
            cache.next_position = torch.where(mask.any(1), cache.next_position, positions[:, 0])
        return cache

    def _with_losses(
        self,
        states: Tensor,
        out: MSAOutput,
        labels: Tensor | None,
        answer_labels: Tensor | None,
        positives: list[list[int]] | None,
    ) -> MSAOutput:
        """Add the losses that were asked for and their weighted sum (paper §3.4: L = α·L_LLM + β·L_aux)."""
        config, terms = self.config, []
        assert out.routing is not None

        def token_loss(targets: Tensor) -> Tensor:
            if out.logits is None:
                return labelled_token_loss(states, self.lm_head, targets)
            return next_token_loss(out.logits, targets)

        if labels is not None:
            out.lm_loss = token_loss(labels)
            terms.append(config.lm_loss_weight * out.lm_loss)
        if answer_labels is not None:
            out.answer_loss = token_loss(answer_labels)
            terms.append(config.answer_loss_weight * out.answer_loss)
        if positives is not None:
            # routers in the lower half get no routing loss, as in the published trainer
            upper = {layer: routing for layer, routing in out.routing.items() if layer >= config.num_hidden_layers // 2}
            out.aux_loss = routing_loss_over_layers(upper, positives, self.temperature, config.routing_loss)
            terms.append(config.routing_loss_weight * out.aux_loss)
        if terms:
            out.loss = torch.stack(terms).sum()
        return out
