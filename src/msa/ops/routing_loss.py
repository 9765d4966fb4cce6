"""The routing loss L_aux (paper, Eq. 5; the published code's variants beside it), and distillation of scores.

Axes: B rows (samples), N documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUTING_LOSSES = ("INFONCE", "INFONCE_DECOUPLE", "INFONCE_FOCAL", "INFONCE_DECOUPLE_FOCAL")
_FOCAL_GAMMA = 2.0


def clamped_temperature(temperature: Tensor) -> Tensor:
    """τ as float32, without gradient and within [0.001, 0.5], as in the published trainer."""
    return temperature.detach().float().clamp(0.001, 0.5)


def routing_loss(doc_scores: Tensor, positives: Tensor, temperature: Tensor | float, method: str) -> Tensor:
    """Contrastive loss of one router layer over the documents each row can see.

    ``INFONCE_DECOUPLE`` is the paper's Eq. 5: −(1/|P|) Σ_{i∈P} log(e^{s_i/τ} / (e^{s_i/τ} + Σ_{j∉P} e^{s_j/τ})), a
    positive does not compete with other positives. ``INFONCE`` lets them compete. The ``FOCAL`` variants weigh each
    positive's term by (1 − p)².

    Args:
        doc_scores: ``[B, N]`` float32, −inf for documents a row cannot see.
        positives: bool ``[B, N]``. A positive the row cannot see is ignored; a row without positives has no loss.
        temperature: τ.
        method: one of :data:`ROUTING_LOSSES`.

    Returns:
        Loss per row ``[B]``; 0 for a row without positives (leave it out of means).

    Raises:
        ValueError: an unknown method.
    """
    if method not in ROUTING_LOSSES:
        raise ValueError(f"routing loss must be one of {', '.join(ROUTING_LOSSES)}, got {method!r}")
    visible = doc_scores > float("-inf")
    positives = positives & visible
    logits = torch.where(visible, doc_scores, doc_scores.new_zeros(())) / temperature
    hidden = ~visible
    if "DECOUPLE" in method:
        # a finite stand-in for −inf: a row may have no negatives, and logaddexp(-inf, -inf) has no gradient
        negatives = logits.masked_fill(positives | hidden, -1e9).logsumexp(1, keepdim=True)
        log_p = logits - torch.logaddexp(logits, negatives)
    else:
        log_p = logits - logits.masked_fill(hidden, -1e9).logsumexp(1, keepdim=True)
    if "FOCAL" in method:
        log_p = (1 - log_p.exp()) ** _FOCAL_GAMMA * log_p
    count = positives.sum(1)
    return -torch.where(positives, log_p, log_p.new_zeros(())).sum(1) / count.clamp(min=1)


def routing_divergence(
    doc_scores: Tensor, teacher_scores: Tensor, temperature: Tensor | float, teacher_temperature: float
) -> Tensor:
    """KL divergence of the router's distribution from a teacher's, over the documents the teacher scored.

    Not in the paper: what distils a stronger retriever, for instance a cross-encoder, into the routers.

    Args:
        doc_scores: ``[B, N]`` float32, −inf for documents a row cannot see.
        teacher_scores: ``[B, N]`` float32, −inf where the teacher says nothing.
        temperature: τ of the router's scores.
        teacher_temperature: of the teacher's.

    Returns:
        Divergence per row ``[B]``; 0 for a row about which the teacher says nothing (leave it out of means).
    """
    missing = (teacher_scores == float("-inf")) | (doc_scores == float("-inf"))
    # a finite stand-in for −inf, whose difference in the divergence would be NaN
    log_q = (doc_scores.masked_fill(missing, 0.0) / temperature).masked_fill(missing, -1e9).log_softmax(1)
    log_p = (teacher_scores.masked_fill(missing, 0.0) / teacher_temperature).masked_fill(missing, -1e9).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).masked_fill(missing, 0.0).sum(1)
