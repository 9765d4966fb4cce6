"""Training losses on a forward pass's outputs: next token, routing over layers and samples, and their weighted sum.

Axes: B rows, T tokens, H hidden, V vocabulary, N documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msa.ops import Routing, clamped_temperature, routing_loss

if TYPE_CHECKING:
    from msa.model.modeling_msa import MSAForCausalLM, MSAOutput


def with_losses(
    lm: MSAForCausalLM,
    states: Tensor,
    out: MSAOutput,
    labels: Tensor | None,
    answer_labels: Tensor | None,
    positives: list[list[int]] | None,
) -> MSAOutput:
    """``out`` with the losses that were asked for and their weighted sum, L = α·L_LLM + β·L_aux (paper §3.4).

    Args:
        lm: the network that made the pass.
        states: its final states ``[B, T, H]``.
        out: its output; without logits the token losses compute those of labelled tokens from ``states``.
        labels, answer_labels: ``[B, T]``, each for a loss of its own weight; None: no such loss.
        positives: per row the indices of its relevant documents; None: no routing loss.

    Raises:
        ValueError: see :func:`routing_loss_over_layers`.
    """
    config, terms = lm.config, []

    def token_loss(targets: Tensor) -> Tensor:
        if out.logits is None:
            return labelled_token_loss(states, lm.lm_head, targets)
        return next_token_loss(out.logits, targets)

    if labels is not None:
        out.lm_loss = token_loss(labels)
        terms.append(config.lm_loss_weight * out.lm_loss)
    if answer_labels is not None:
        out.answer_loss = token_loss(answer_labels)
        terms.append(config.answer_loss_weight * out.answer_loss)
    if positives is not None:
        assert out.routing is not None
        # routers in the lower half get no routing loss, as in the published trainer (docs/deviations.md)
        upper = {layer: routing for layer, routing in out.routing.items() if layer >= config.num_hidden_layers // 2}
        out.aux_loss = routing_loss_over_layers(upper, positives, lm.temperature, config.routing_loss)
        terms.append(config.routing_loss_weight * out.aux_loss)
    if terms:
        out.loss = torch.stack(terms).sum()
    return out


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of ``logits`` ``[B, T, V]`` against the next label ``[B, T]``, mean over labels that are not −100.

    Zero, still connected to the graph, where there is no label at all.
    """
    targets = labels[:, 1:]
    labelled = targets != -100
    predicted = logits[:, :-1][labelled].float()
    if predicted.shape[0] == 0:
        return logits.float().sum() * 0.0
    return torch.nn.functional.cross_entropy(predicted, targets[labelled])


def labelled_token_loss(states: Tensor, head: nn.Module, labels: Tensor, chunk: int = 4096) -> Tensor:
    """:func:`next_token_loss` of ``head(states)`` without the logits of tokens that have no label.

    Args:
        states: final states ``[B, T, H]``.
        head: the language-model head, H → V.
        labels: ``[B, T]``, shifted inside; −100 where there is none.
        chunk: labelled tokens whose logits exist at a time; the next chunk's replace them, and the backward pass
            computes them again.
    """
    targets = labels[:, 1:]
    labelled = targets != -100
    picked, wanted = states[:, :-1][labelled], targets[labelled]
    if wanted.shape[0] == 0:
        return states.float().sum() * 0.0

    def summed(piece: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(piece).float(), target, reduction="sum")

    if wanted.shape[0] <= chunk:
        return summed(picked, wanted) / wanted.shape[0]
    pieces = zip(picked.split(chunk), wanted.split(chunk), strict=True)
    totals = [checkpoint(summed, piece, target, use_reentrant=False) for piece, target in pieces]
    return torch.stack(totals).sum() / wanted.shape[0]


def routing_loss_over_layers(
    routing: dict[int, Routing], positives: list[list[int]], temperature: Tensor, method: str
) -> Tensor:
    """L_aux: the routing loss (Eq. 5) averaged over router layers and over the rows that have positives.

    Args:
        routing: router layer → routing of the batch.
        positives: per row the indices of its relevant documents.
        temperature: τ, clamped to [0.001, 0.5] as in the published trainer.
        method: one of :data:`msa.ops.ROUTING_LOSSES`.

    Raises:
        ValueError: no routing to score, not one list per row, or an index that is no document.
    """
    if not routing:
        raise ValueError("the routing loss needs a memory and a router layer in the upper half of the decoder")
    first = next(iter(routing.values())).doc_scores
    num_rows, num_docs = first.shape
    if len(positives) != num_rows:
        raise ValueError(f"positives must have one list per row: {num_rows} rows, {len(positives)} lists")
    pairs = [(row, doc) for row, docs in enumerate(positives) for doc in docs]
    if any(not 0 <= doc < num_docs for _, doc in pairs):
        raise ValueError(f"positives must be document indices in 0..{num_docs - 1}, got {positives}")
    mask = torch.zeros(num_rows, num_docs, dtype=torch.bool, device=first.device)
    if pairs:
        rows, docs = torch.tensor(pairs, device=first.device).T
        mask[rows, docs] = True
    tau = clamped_temperature(temperature)
    with_positives = (mask & (first > float("-inf"))).any(1)
    count = (with_positives.sum() * len(routing)).clamp(min=1)
    total = torch.stack([routing_loss(layer.doc_scores, mask, tau, method).sum() for layer in routing.values()]).sum()
    return total / count
