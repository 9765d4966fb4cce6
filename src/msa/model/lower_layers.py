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

    def to_go_on(self, prefix: PrefixMemory | None) -> KVCache:
        """A copy of the columns of prefix and prompt, that what follows them can be added to."""
        columns = len(self.ids) + (0 if prefix is None else prefix.num_tokens)
        return KVCache(
            layers=[
                LayerCache.start(
                    layer.keys[:, :, :columns], layer.values[:, :, :columns], layer.num_context, layer.context_bias
                )
                for layer in self.layers
            ]
        )


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
    tokens = torch.tensor([ids], device=lm.device)
    reader = QuestionReader(
        spec=lm.config.routing_spec(),
        top_k=lm.config.top_k_docs,
        doc_mask=doc_mask,
        routing_mask=torch.tensor([routes], device=lm.device),
        memory=memory,
        prefix=prefix,
    )
    positions = reader.positions(tokens)
    if earlier is not None and not earlier.begins(ids):
        earlier = None
    hidden, begun = _through_lower(lm, tokens, positions, reader, earlier)
    x, rope = hidden, lm.model.rope(positions, hidden.dtype)
    first = lm.config.router_layers[0]
    for layer in lm.model.layers[first:]:
        x = layer(x, rope, reader)
    assert reader.new_cache is not None
    layers = [*begun, *reader.new_cache.layers]
    return Prefilled(
        logits=lm.lm_head(lm.model.norm(x[:, -1])),
        cache=KVCache(layers=layers, next_position=positions[:, -1] + 1),
        routing=reader.routing,
        lower=LowerLayers([*ids], hidden, layers[:first]),
    )


def _through_lower(
    lm: MSAForCausalLM, tokens: Tensor, positions: Tensor, reader: QuestionReader, earlier: LowerLayers | None
) -> tuple[Tensor, list[LayerCache]]:
    """Input ``[1, T, H]`` of the first router layer, and the lower layers' caches where ``reader`` did not keep them.

    After an earlier prompt only the tokens ``[1, T]`` behind it are computed, by a reader that goes on from there.
    """
    begun = KVCache()
    known = 0
    if earlier is not None:
        known, begun = len(earlier.ids), earlier.to_go_on(reader.prefix)
        reader = QuestionReader(spec=reader.spec, top_k=reader.top_k, cache=begun)
    x = lm.model.embed_tokens(tokens[:, known:])
    rope = lm.model.rope(positions[:, known:], x.dtype)
    for layer in lm.model.layers[: lm.config.router_layers[0]]:
        x = layer(x, rope, reader)
    return (x if earlier is None else torch.cat((earlier.hidden, x), dim=1)), begun.layers
