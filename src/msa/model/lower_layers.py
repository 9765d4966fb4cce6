"""A prefill that begins like an earlier one: what the layers below the first router made of it is used again.

Those layers never route, and attention is causal, so neither the memory nor what follows can change it.

Axes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa.model.attention import PrefixMemory, QuestionReader
from msa.model.cache import KVCache, LayerCache
from msa.model.memory_view import MemoryView
from msa.model.modeling_msa import MSAForCausalLM
from msa.ops import Routing


@dataclass
class LowerLayers:
    """What the layers below the first router made of one prompt.

    Attributes:
        ids: token ids ``[T]`` of the prompt, after the template prefix.
        hidden: input of the first router layer ``[1, T, H]``.
        layers: keys and values of the layers below it; the columns of prefix and prompt come first.
    """

    ids: list[int]
    hidden: Tensor
    layers: list[LayerCache]

    def begins(self, ids: list[int]) -> bool:
        """Whether this prompt is the beginning of a longer one."""
        return len(self.ids) < len(ids) and ids[: len(self.ids)] == self.ids


@dataclass
class Prefilled:
    """A prefilled question: logits ``[1, V]`` after its last token, and what goes on from it."""

    logits: Tensor
    cache: KVCache
    routing: dict[int, Routing]
    lower: LowerLayers


@torch.inference_mode()
def prefill_after(
    lm: MSAForCausalLM,
    ids: list[int],
    routes: list[bool],
    memory: MemoryView,
    prefix: PrefixMemory | None,
    doc_mask: Tensor | None,
    earlier: LowerLayers | None,
) -> Prefilled:
    """The prefill of one question, as :meth:`msa.MSAForCausalLM.forward` makes it.

    Args:
        lm: the network.
        ids: ``[T]`` token ids after the template prefix.
        routes: ``[T]``, which of them route.
        memory, prefix, doc_mask: as there.
        earlier: of a prompt over the same prefix; used if ``ids`` begin with it.
    """
    tokens, first = torch.tensor([ids], device=lm.device), lm.config.router_layers[0]
    mask = torch.tensor([routes], device=lm.device)
    reader, positions = lm._question_reader(
        tokens,
        attention_mask=None,
        routing_mask=mask,
        position_ids=None,
        memory=memory,
        prefix=prefix,
        cache=None,
        top_k=None,
        doc_mask=doc_mask,
        keep_cache=True,
        attend_selected=True,
        training=False,
    )
    assert reader.new_cache is not None
    known = len(earlier.ids) if earlier is not None and earlier.begins(ids) else 0
    begun = KVCache()
    lower_reader = reader
    if earlier is not None and known:
        columns = known + (0 if prefix is None else prefix.num_tokens)
        for layer in earlier.layers:
            keys, values = layer.keys[:, :, :columns], layer.values[:, :, :columns]
            begun.layers.append(LayerCache.start(keys, values, layer.num_context, layer.context_bias))
        lower_reader = QuestionReader(
            attention_mask=None,
            routing_mask=None,
            memory=None,
            prefix=None,
            cache=begun,
            keep_cache=True,
            attend_selected=True,
            spec=reader.spec,
            top_k=reader.top_k,
            doc_mask=None,
        )
    x = lm.model.embed_tokens(tokens[:, known:])
    rope = lm.model.rope(positions[:, known:], x.dtype)
    for decoder_layer in lm.model.layers[:first]:
        x = decoder_layer(x, rope, lower_reader)
    hidden = x if earlier is None or not known else torch.cat((earlier.hidden, x), dim=1)
    rope = lm.model.rope(positions, x.dtype)
    x = hidden
    for decoder_layer in lm.model.layers[first:]:
        x = decoder_layer(x, rope, reader)
    layers = [*begun.layers, *reader.new_cache.layers]
    return Prefilled(
        logits=lm.lm_head(lm.model.norm(x[:, -1])),
        cache=KVCache(layers=layers, next_position=positions[:, -1] + 1),
        routing=reader.routing,
        lower=LowerLayers([*ids], hidden, layers[:first]),
    )
