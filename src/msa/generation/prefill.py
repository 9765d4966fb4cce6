"""Prefill: what is read before the first token can be drawn, one prompt at a time or many in one pass.

Rows of one pass are left padded and masked; each routes and attends exactly as it would alone.

Axes: B rows, T tokens, N documents, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from msa.documents.batching import pad_left
from msa.model import MemoryView, MSAForCausalLM, PrefixMemory
from msa.model.lower_layers import LowerLayers, Prefilled, prefill_after

# multiplications of a pass that costs little more than the calls it is made of; beyond them prompts gain nothing by
# going together, and what an earlier round has computed is of more use
_SMALL_PASS = {"cuda": 5e12}
_SMALL_PASS_ELSEWHERE = 5e9


@dataclass(kw_only=True, eq=False)
class Prefill:
    """Prompts to be read over one memory.

    Attributes:
        ids: token ids of each row, after the template prefix; none empty.
        routes: for each token of each row whether it routes; an empty row: none does.
        memory: what to route over; None: nothing.
        prefix: the template prefix; None: none.
        doc_mask: documents that may be selected, bool ``[N]`` or ``[B, N]``; None: all.
        tokens_per_pass: everything up to the last routing token goes in one pass whatever it is, because a router layer
            needs the whole question; the result is the same.
        earlier: what an earlier prefill, of a prompt that this single one begins with, kept; it is not computed again.
    """

    ids: list[list[int]]
    routes: list[list[bool]]
    memory: MemoryView | None = None
    prefix: PrefixMemory | None = None
    doc_mask: Tensor | None = None
    tokens_per_pass: int = 4096
    earlier: LowerLayers | None = field(default=None, repr=False)


def prefill(lm: MSAForCausalLM, wanted: Prefill) -> Prefilled:
    """Read the prompts; a single one over a memory begins where an earlier one ended."""
    single = len(wanted.ids) == 1 and len(wanted.ids[0]) <= wanted.tokens_per_pass
    if single and wanted.memory is not None and any(wanted.routes[0]):
        ids, routes = wanted.ids[0], wanted.routes[0]
        return prefill_after(lm, ids, routes, wanted.memory, wanted.prefix, wanted.doc_mask, wanted.earlier)
    tokens, mask = pad_left(wanted.ids, lm.device)
    rows = zip(wanted.ids, wanted.routes, strict=True)
    routed, _ = pad_left([[int(r) for r in routes] or [0] * len(ids) for ids, routes in rows], lm.device)
    routing_columns = routed.bool().any(0).nonzero()
    last_routing = int(routing_columns[-1]) + 1 if routing_columns.numel() else 0
    first = min(tokens.shape[1], max(wanted.tokens_per_pass, last_routing))
    with torch.inference_mode():
        out = lm(
            tokens[:, :first],
            attention_mask=mask[:, :first],
            routing_mask=routed[:, :first],
            memory=wanted.memory,
            prefix=wanted.prefix,
            doc_mask=wanted.doc_mask,
            use_cache=True,
            logits_to_keep=1,
        )
        routing = out.routing
        for start in range(first, tokens.shape[1], wanted.tokens_per_pass):
            piece = slice(start, start + wanted.tokens_per_pass)
            out = lm(tokens[:, piece], attention_mask=mask[:, piece], cache=out.cache, logits_to_keep=1)
    return Prefilled(out.logits[:, -1], out.cache, routing, None)


def pass_together(lm: MSAForCausalLM, waiting: Sequence[Prefill]) -> list[Prefill]:
    """The first of those that wait and as many others as belong into one small pass with it, in order.

    They are of one row each, about the same memory.
    """
    first, chosen, longest = waiting[0], [waiting[0]], len(waiting[0].ids[0])
    multiplications = _SMALL_PASS.get(lm.device.type, _SMALL_PASS_ELSEWHERE)
    most = multiplications / sum(weight.numel() for weight in lm.model.layers.parameters())
    for other in waiting[1:]:
        longest_then = max(longest, len(other.ids[0]))
        alike = other.memory is first.memory and other.prefix is first.prefix
        if alike and longest_then * (len(chosen) + 1) <= min(most, first.tokens_per_pass):
            chosen.append(other)
            longest = longest_then
    return chosen


@torch.inference_mode()
def prefill_together(lm: MSAForCausalLM, wanted: Sequence[Prefill]) -> list[Prefilled]:
    """Read prompts of one row each, about the same memory, in one pass; each gets what it would have got alone."""
    masks = [each.doc_mask for each in wanted]
    stacked = None
    if wanted[0].memory is not None and any(mask is not None for mask in masks):
        everything = torch.ones(wanted[0].memory.num_documents, dtype=torch.bool, device=lm.device)
        stacked = torch.cat([(everything if mask is None else mask).view(1, -1) for mask in masks])
    rows = [each.ids[0] for each in wanted]
    routes = [each.routes[0] for each in wanted]
    done = prefill(lm, replace(wanted[0], ids=rows, routes=routes, doc_mask=stacked, earlier=None))
    return [
        Prefilled(
            logits=done.logits[row : row + 1],
            cache=done.cache.row(row),
            routing={layer: routing.row(row) for layer, routing in done.routing.items()},
            lower=None,
        )
        for row in range(len(wanted))
    ]
