"""One training batch → losses (paper §3.4, SPEC of the losses in model/losses.py) and, on request, their gradients.

Axes: N documents, B rows, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msa.documents.batching import length_buckets
from msa.model import DocumentMemory, MSAForCausalLM, PrefixMemory
from msa.model.losses import labelled_token_loss
from msa.ops import Routing, clamped_temperature, routing_divergence
from msa.training.data.collate import DocumentBucket, RowBucket, TrainingBatch
from msa.training.data.steps import IGNORED
from msa.training.id_probe import IdProbe
from msa.training.ranges import check_numbers


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """L = ids · L_ids + answer · L_answer + routing · L_aux + closing_id · L_closing + distillation · L_distil
    + copying · L_copying + recall · L_recall + id_probe · L_probe.

    Attributes:
        ids: on what retrieval writes (the paper's α).
        answer: on the answer's tokens.
        routing: on the routing loss (the paper's β).
        closing_id: on each document's closing id, predicted on the document side; not in the paper, 0: off.
        distillation: on the divergence of the document scores from a teacher's, where samples bring its scores; not in
            the paper, 0: off.
        teacher_temperature: of the teacher's scores.
        copying, recall: on rows to copy, and of several questions about one text, where a phase has them; not in the
            paper.
        id_probe: on a probe that reads ids in each chunk's values; not in the paper, 0: off.
    """

    ids: float = 1.0
    answer: float = 1.0
    routing: float = 0.1
    closing_id: float = 0.0
    distillation: float = 0.0
    teacher_temperature: float = 1.0
    copying: float = 1.0
    recall: float = 1.0
    id_probe: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, positive=("teacher_temperature",))


@dataclass
class StepLosses:
    """Losses of one batch, each a scalar with its graph, and what was routed.

    Attributes:
        total: the weighted sum.
        parts: name → unweighted loss.
        routing: per bucket of rows, router layer → its routing.
        memory: latents of the batch's documents; None: it has none.
    """

    total: Tensor
    parts: dict[str, Tensor]
    routing: list[dict[int, Routing]]
    memory: DocumentMemory | None


def compute_losses(
    lm: MSAForCausalLM,
    batch: TrainingBatch,
    prefix_ids: Tensor,
    weights: LossWeights,
    *,
    freeze_documents: bool = False,
    checkpoint_documents: bool = False,
    past: DocumentMemory | None = None,
    probe: IdProbe | None = None,
) -> StepLosses:
    """Forward pass of one batch: encode its documents, route, and compute every loss of the step.

    Args:
        lm: the network.
        batch: documents and rows.
        prefix_ids: token ids of the template prefix ``[T0]``.
        weights: of the losses.
        freeze_documents: no gradients into the documents' latents.
        checkpoint_documents: keep only the latents of documents, and encode each bucket again in the backward pass.
        past: documents of earlier steps, which every row may select beside the batch's own.
        probe: reads the ids of the batch's documents where ``weights.id_probe`` is set.
    """
    parts: dict[str, Tensor] = {}
    memory, closing = batch.memory, None
    if memory is None:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_documents):
            memory, closing = encode_batch(
                lm, batch.documents, with_closing=bool(weights.closing_id), checkpointed=checkpoint_documents
            )
    if closing is not None:
        parts["closing_id"] = closing
    if memory is not None and probe is not None and weights.id_probe:
        parts["id_probe"] = probe(memory, torch.tensor(batch.numbers))
    own, num_past = memory, 0
    if memory is not None and past is not None:
        memory, num_past = DocumentMemory.concatenate([memory, past]), past.num_documents
    prefix: PrefixMemory | None = lm.encode_prefix(prefix_ids) if prefix_ids.numel() else None
    means = _Means()
    for rows in batch.rows:
        _add_row_losses(means, lm, rows, memory, num_past, prefix, weights)
    for name, alone in (("copying", batch.copies), ("recall", batch.recalls)):
        if alone is not None:
            for mean, count in losses_without_memory(lm, alone, prefix_ids):
                means.add(name, mean, count)
    parts |= means.result()
    # always there, because processes that train together compare their parts one by one
    zero = next(iter(parts.values())) * 0.0
    for name in ("ids", "answer", "routing", *(["distillation"] if weights.distillation else [])):
        parts.setdefault(name, zero)
    total = torch.stack([getattr(weights, name) * loss.float() for name, loss in parts.items()]).sum()
    return StepLosses(total=total, parts=parts, routing=means.routing, memory=own)


def _add_row_losses(
    means: _Means,
    lm: MSAForCausalLM,
    rows: RowBucket,
    memory: DocumentMemory | None,
    num_past: int,
    prefix: PrefixMemory | None,
    weights: LossWeights,
) -> None:
    """Add the losses of one bucket of rows; the last ``num_past`` documents of the memory are of earlier steps."""
    num_positive = sum(bool(positives) for positives in rows.positives)
    out = lm(
        rows.input_ids,
        attention_mask=rows.attention_mask,
        routing_mask=rows.routing_mask,
        memory=memory,
        prefix=prefix,
        labels=rows.id_labels,
        answer_labels=rows.answer_labels,
        positives=rows.positives if num_positive else None,
        doc_mask=nn.functional.pad(rows.selectable, (0, num_past), value=True),
        labelled_only=True,
    )
    means.add("ids", out.lm_loss, rows.count(rows.id_labels))
    means.add("answer", out.answer_loss, rows.count(rows.answer_labels))
    if num_positive:
        means.add("routing", out.aux_loss, num_positive)
    if weights.distillation and rows.teacher is not None:
        teacher = nn.functional.pad(rows.teacher, (0, num_past), value=float("-inf"))
        divergence, count = distillation_loss(lm, out.routing, teacher, weights.teacher_temperature)
        means.add("distillation", divergence, count)
    means.routing.append(out.routing)


def losses_without_memory(
    lm: MSAForCausalLM, rows: RowBucket, prefix_ids: Tensor, batch_tokens: int = 4096
) -> Iterator[tuple[Tensor, int]]:
    """Mean loss on the learnt tokens of rows that see no memory, and how many they are: of rows of like lengths each.

    The prefix is a part of each row and padding is on the right, so that causal attention needs no mask.
    """
    lengths = rows.attention_mask.sum(1).tolist()
    for bucket in length_buckets(lengths, batch_tokens):
        longest = max(lengths[row] for row in bucket)
        before = prefix_ids.expand(len(bucket), -1)
        labels = torch.cat((torch.full_like(before, IGNORED), rows.answer_labels[bucket, :longest]), dim=1)
        out = lm(torch.cat((before, rows.input_ids[bucket, :longest]), dim=1), labels=labels, labelled_only=True)
        assert out.lm_loss is not None
        yield out.lm_loss, rows.count(labels)


def encode_batch(
    lm: MSAForCausalLM, buckets: Sequence[DocumentBucket], *, with_closing: bool, checkpointed: bool = False
) -> tuple[DocumentMemory | None, Tensor | None]:
    """Latents of all documents (None without any), and, ``with_closing``, the loss on their closing ids.

    Checkpointed, a bucket's activations live only while its own gradient is computed. A document reaches the loss
    through its few pooled latents alone, so this is gradient caching (arXiv 2101.06983) without a second loop.
    """
    if not buckets:
        return None, None
    memories, means = [], _Means()

    def encode(bucket: DocumentBucket) -> tuple[DocumentMemory, Tensor | None]:
        if not with_closing:
            return lm.encode_documents(bucket.input_ids, bucket.lengths), None
        memory, states = lm.read_documents(bucket.input_ids, bucket.lengths)
        return memory, closing_id_loss(lm, states, bucket)

    for bucket in buckets:
        if checkpointed and torch.is_grad_enabled():
            memory, closing = checkpoint(encode, bucket, use_reentrant=False)
        else:
            memory, closing = encode(bucket)
        memories.append(memory)
        if closing is not None:
            means.add("closing_id", closing, int(bucket.closing_lengths.sum()))
    return DocumentMemory.concatenate(memories), means.result().get("closing_id")


def distillation_loss(
    lm: MSAForCausalLM, routing: dict[int, Routing], teacher: Tensor, teacher_temperature: float
) -> tuple[Tensor, int]:
    """Mean divergence from a teacher's scores ``[B, N]`` over upper router layers and scored rows; and those rows."""
    count = int((teacher > float("-inf")).any(1).sum())
    tau = clamped_temperature(lm.temperature)
    layers = [layer for layer in routing if layer >= lm.config.num_hidden_layers // 2]
    sums = [routing_divergence(routing[layer].doc_scores, teacher, tau, teacher_temperature).sum() for layer in layers]
    return torch.stack(sums).mean() / max(count, 1), count


def closing_id_loss(lm: MSAForCausalLM, states: Tensor, bucket: DocumentBucket) -> Tensor:
    """Cross entropy of each document's closing id given its text and opening id; ``states`` ``[N, L, H]``."""
    columns = torch.arange(bucket.input_ids.shape[1], device=states.device)
    ends = bucket.lengths[:, None]
    inside = (columns < ends) & (columns >= ends - bucket.closing_lengths[:, None])
    return labelled_token_loss(states, lm.lm_head, torch.where(inside, bucket.input_ids, IGNORED))


class _Means:
    """Means over buckets, each weighted by what it averages."""

    def __init__(self) -> None:
        self._sums: dict[str, list[tuple[Tensor, int]]] = {}
        self.routing: list[dict[int, Routing]] = []

    def add(self, name: str, mean: Tensor, count: int) -> None:
        self._sums.setdefault(name, []).append((mean, count))

    def result(self) -> dict[str, Tensor]:
        means = {}
        for name, terms in self._sums.items():
            total = max(sum(count for _, count in terms), 1)
            means[name] = torch.stack([mean * (count / total) for mean, count in terms]).sum()
        return means
