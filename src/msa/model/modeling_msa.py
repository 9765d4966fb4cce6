"""The network: a decoder of one of five families with a memory in the attention of its upper layers (paper §3).

:class:`MSADecoder` is the plain decoder, but for one thing: what a layer's tokens attend to is decided by a *reader*
(attention.py), given to every pass. :class:`MSAForCausalLM` makes each pass with another one:

* :meth:`~MSAForCausalLM.encode_documents`, stage 1: documents, each alone → their pooled K̄, V̄ and K̄ᴿ;
* :meth:`~MSAForCausalLM.encode_prefix`: the transcript's first tokens → their K and V;
* :meth:`~MSAForCausalLM.forward`, stages 2 and 3: questions over both → logits, selections, cache, losses;
* :meth:`~MSAForCausalLM.route`, stage 2 by itself: the selections alone.

Axes: B rows, T tokens, H hidden, V vocabulary, N documents, L padded document length, C chunks, T0 tokens of the
prefix, Hq query heads, Hkv key/value heads, D head_dim, k selected documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from msa.model.cache import KVCache, mask_of_new_tokens
from msa.model.configuration_msa import MSAConfig
from msa.model.fusion import FusedLinear, few_row_products
from msa.model.losses import with_losses
from msa.model.memory_view import DocumentMemory, MemoryView, selectable_documents
from msa.model.positions import RotaryEmbedding
from msa.model.token_pass import TokenPass
from msa.ops import ChunkPooling, Routing, chunk_offsets_of
from msa.ops.transfer import sent


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
    """The feed-forward block: down(act(gate(x)) · up(x))."""

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
    """Embeddings, layers and final norm; nothing in it knows what a memory is."""

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
            return checkpoint(layer, x, rope, reader, use_reentrant=False)
        return layer(x, rope, reader)

    def layer(self, index: int) -> MSADecoderLayer:
        """One decoder layer, typed."""
        layer = self.layers[index]
        assert isinstance(layer, MSADecoderLayer)
        return layer

    def read_until(
        self, input_ids: Tensor, positions: Tensor, reader: Reader, last: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Run layers 0..last − 1 and project in layer ``last``: all that a pass needs that ends in its router.

        Returns:
            The normed input ``[B, T, H]`` of layer ``last``, and its q ``[B, Hq, T, D]``, k and v ``[B, Hkv, T, D]``.
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
        self._token_pass: TokenPass | None = None
        self.post_init()

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

        None: by :class:`msa.ops.ChunkPooling`, which gradients pass through.
        """
        reader, positions = self._document_reader(input_ids, lengths, pool)
        last = self.config.router_layers[-1]
        hidden, (_, k, v) = self.model.read_until(input_ids, positions, reader, last)
        reader.keep(self.model.layer(last).self_attn, hidden, k, v)
        return reader.memory

    def read_documents(self, input_ids: Tensor, lengths: Tensor) -> tuple[DocumentMemory, Tensor]:
        """:meth:`encode_documents` through all layers: also the final states ``[N, L, H]``, for losses on documents."""
        reader, positions = self._document_reader(input_ids, lengths, None)
        return reader.memory, self.model(input_ids, positions, reader)

    def _document_reader(
        self, input_ids: Tensor, lengths: Tensor, pool: Callable[[Tensor], Tensor] | None
    ) -> tuple[DocumentReader, Tensor]:
        """The reader of a batch of documents, and the positions ``[1, L]`` of each: document-wise, from 0."""
        chunk_size, device = self.config.chunk_size, input_ids.device
        lengths = lengths.cpu()  # at once: every later look at them would wait for the device
        offsets = sent(chunk_offsets_of(lengths, chunk_size), device)
        memory = DocumentMemory(keys={}, values={}, routing_keys={}, chunk_offsets=offsets)
        pool = pool or ChunkPooling(lengths, input_ids.shape[1], chunk_size, device)
        return DocumentReader(pool, memory), torch.arange(input_ids.shape[1], device=device)[None]

    def encode_prefix(self, prefix_ids: Tensor) -> PrefixMemory:
        """Keys and values of the template prefix, token ids ``[T0]`` at positions 0..T0 − 1."""
        prefix = PrefixMemory()
        positions = torch.arange(prefix_ids.shape[0], device=prefix_ids.device)[None]
        self.model(prefix_ids[None], positions, PrefixReader(prefix))
        return prefix

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
        """Stages 2 and 3: questions (and what follows them) over a memory, as prefill, decode or training step (§3.2).

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding (left or right); None: none. With a cache also of all its tokens.
            routing_mask: ``[B, T]``, 1 on the tokens that route; None: every real token.
            position_ids: ``[B, T]``; None: counted from T0 + top_k with a memory, from T0 without, on from the cache.
            memory: documents to route over, for instance from :meth:`encode_documents`.
            prefix: from :meth:`encode_prefix`.
            cache: from an earlier call on the same rows; memory and prefix are in it already.
            top_k: documents selected per router layer; None: ``config.top_k_docs``.
            labels, answer_labels: ``[B, T]`` next tokens, −100 where none is learnt (shifted inside); a loss of each.
            doc_sample: ``[N]`` the row each document of an in-batch memory belongs to; None: all rows see all.
            positives: per row the indices of its relevant documents; asks for the routing loss.
            doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
            use_cache: keep a cache; None: unless a loss is asked for, or gradients of a network that trains.
            logits_to_keep: compute logits for the last so many tokens; 0: all.
            labelled_only: return no logits; the losses compute them for labelled tokens alone, in pieces.
            output_hidden_states: also return every layer's input.

        Raises:
            ValueError: ``positives`` without a memory, or not one list per row; a mask of another shape.
        """
        asks_for_loss = any(targets is not None for targets in (labels, answer_labels, positives))
        trains = asks_for_loss or (self.training and torch.is_grad_enabled())
        reader = QuestionReader(
            spec=self.config.routing_spec(training=asks_for_loss),
            top_k=self.config.top_k_docs if top_k is None else top_k,
            doc_mask=selectable_documents(doc_mask, doc_sample, input_ids.shape[0]),
            attention_mask=mask_of_new_tokens("attention_mask", attention_mask, input_ids, cache),
            routing_mask=mask_of_new_tokens("routing_mask", routing_mask, input_ids),
            memory=memory,
            prefix=prefix,
            cache=cache,
            keep_cache=not trains if use_cache is None else use_cache,
        )
        positions = reader.positions(input_ids) if position_ids is None else position_ids
        num_logits = None if labelled_only else logits_to_keep
        states, out = self._run(input_ids, positions, reader, num_logits, output_hidden_states)
        return with_losses(self, states, out, labels, answer_labels, positives)

    def _run(
        self, input_ids: Tensor, positions: Tensor, reader: QuestionReader, num_logits: int | None, collect: bool
    ) -> tuple[Tensor, MSAOutput]:
        """The pass itself: final states ``[B, T, H]``, and all of the output but the losses.

        ``num_logits``: of the last so many tokens; 0: of all; None: none. ``collect``: keep every layer's input.
        """
        layer_inputs: list[Tensor] | None = [] if collect else None
        logits: Tensor | None
        if reader.cache is None:
            self.weights_may_have_changed()
        if layer_inputs is None and num_logits is not None and input_ids.shape[1] == 1:
            states, logits = self.read_token(input_ids, positions, reader)
        else:
            states = self.model(input_ids, positions, reader, layer_inputs)
            logits = None if num_logits is None else self.lm_head(states[:, -num_logits:])
        return states, MSAOutput(
            logits=logits,
            routing=reader.routing,
            cache=reader.cache_after(positions),
            hidden_states=None if layer_inputs is None else tuple(layer_inputs),
        )

    def read_token(self, input_ids: Tensor, positions: Tensor, reader: Reader) -> tuple[Tensor, Tensor]:
        """One token of each row, ids and positions ``[B, 1]``: final states ``[B, 1, H]`` and logits ``[B, 1, V]``.

        By a :class:`TokenPass` where there is one for the weights as they are, else through the modules.
        """
        if self._token_pass is not None and self._token_pass.is_current and not torch.is_grad_enabled():
            return self._token_pass(input_ids, positions, reader)
        with few_row_products(input_ids, self.dtype):
            states = self.model(input_ids, positions, reader)
            return states, self.lm_head(states)

    def weights_may_have_changed(self) -> None:
        """Before a pass that follows no other directly: copies of weights that it may use are compared with them."""
        if self._token_pass is not None:
            self._token_pass.look_again()

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
        """Stage 2 by itself: every router layer's scores without attending to anything selected (§3.2, Eq. 2).

        This is what a selection shared by all layers (their mean score) needs before any layer attends; also the
        cheapest way to search. Arguments and result as in :meth:`forward`; layers above the last router are skipped.
        """
        reader = QuestionReader(
            spec=self.config.routing_spec(),
            top_k=self.config.top_k_docs if top_k is None else top_k,
            doc_mask=doc_mask,
            attention_mask=mask_of_new_tokens("attention_mask", attention_mask, input_ids),
            routing_mask=mask_of_new_tokens("routing_mask", routing_mask, input_ids),
            memory=memory,
            prefix=prefix,
            keep_cache=False,
            attend_selected=False,
        )
        last = self.config.router_layers[-1]
        hidden, (q, _, _) = self.model.read_until(input_ids, reader.positions(input_ids), reader, last)
        reader.select(self.model.layer(last).self_attn, hidden, q)
        return reader.routing

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
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
        for fused, projections in self._joint_projections():
            fused.fuse(projections)
        self._token_pass = TokenPass(self)

    def separate_projections(self) -> None:
        """Undo :meth:`fuse_projections`, before training."""
        for fused, projections in self._joint_projections():
            fused.separate(projections)
        self._token_pass = None

    def _joint_projections(self) -> Iterator[tuple[FusedLinear, list[nn.Linear]]]:
        for index in range(len(self.model.layers)):
            attention, mlp = self.model.layer(index).self_attn, self.model.layer(index).mlp
            yield attention.fused_qkv, [attention.q_proj, attention.k_proj, attention.v_proj]
            yield mlp.fused_gate_up, [mlp.gate_proj, mlp.up_proj]
