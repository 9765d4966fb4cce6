"""What a training run is judged by on held-out batches: routing recall and exactness of ids and answers.

Axes: B rows, T tokens, N documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msa.model import MSAForCausalLM
from msa.ops import Routing
from msa.training.data.collate import TrainingBatch
from msa.training.data.steps import IGNORED
from msa.training.objective import encode_batch

RECALLS = (1, 5, 16)


def recall_at(doc_scores: Tensor, positives: Sequence[Sequence[int]], k: int) -> list[float]:
    """Per row with positives: the share of them among its ``k`` best documents; ``doc_scores`` ``[B, N]``."""
    best = doc_scores.topk(min(k, doc_scores.shape[1]), dim=1).indices.tolist()
    return [
        len(set(relevant) & set(found)) / len(relevant)
        for relevant, found in zip(positives, best, strict=True)
        if relevant
    ]


def exact_rows(logits: Tensor, labels: Tensor) -> list[bool | None]:
    """Per row whether the most probable token is right at every label (teacher forced); None: it has no label."""
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    right = ((logits[:, :-1].argmax(-1) == targets) | ~labelled).all(1)
    return [bool(ok) if has else None for ok, has in zip(right, labelled.any(1), strict=True)]


def exact_answers(logits: Tensor, labels: Tensor) -> list[float]:
    """Per run of neighbouring labels, of which a row may have several: 1.0 where all are right (teacher forced)."""
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    wrong = (logits[:, :-1].argmax(-1) != targets) & labelled
    begins = labelled & ~nn.functional.pad(labelled[:, :-1], (1, 0))
    runs = begins.flatten().cumsum(0) - 1
    mistakes = torch.zeros(int(begins.sum()), device=labels.device)
    mistakes.index_add_(0, runs[labelled.flatten()], wrong.flatten()[labelled.flatten()].float())
    return (mistakes == 0).float().tolist()


def routing_recalls(routing: dict[int, Routing], positives: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """``recall@k/layer L`` and ``recall@k/mean`` (of the layers' scores) of every row with positives."""
    scores = {str(layer): layer_routing.doc_scores for layer, layer_routing in routing.items()}
    if not scores:
        return {}
    scores["mean"] = torch.stack(list(scores.values())).mean(0)
    return {
        f"recall@{k}/{name if name == 'mean' else f'layer {name}'}": recall_at(layer_scores, positives, k)
        for name, layer_scores in scores.items()
        for k in RECALLS
    }


@torch.no_grad()
def evaluate(lm: MSAForCausalLM, batches: Sequence[TrainingBatch], prefix_ids: Tensor) -> dict[str, float]:
    """Means over held-out batches: recalls, ``ids_exact`` and ``answer_exact``, some per source too.

    ``copied``: tokens of rows to copy; ``recalled``: answers of rows with several questions about one text.
    """
    was_training = lm.training
    lm.eval()
    values: dict[str, list[float]] = defaultdict(list)
    prefix = lm.encode_prefix(prefix_ids) if prefix_ids.numel() else None
    for batch in batches:
        memory, _ = encode_batch(lm, batch.documents, with_closing=False)
        for rows in batch.rows:
            out = lm(
                rows.input_ids,
                attention_mask=rows.attention_mask,
                routing_mask=rows.routing_mask,
                memory=memory,
                prefix=prefix,
                doc_mask=rows.selectable,
            )
            for name, recalls in routing_recalls(out.routing, rows.positives).items():
                values[name] += recalls
                if name == "recall@1/mean":
                    asked = (source for source, relevant in zip(rows.sources, rows.positives, strict=True) if relevant)
                    for recall, source in zip(recalls, asked, strict=True):
                        values[f"{name}/{source}"].append(recall)
            for name, labels in (("ids_exact", rows.id_labels), ("answer_exact", rows.answer_labels)):
                for exact, source in zip(exact_rows(out.logits, labels), rows.sources, strict=True):
                    if exact is not None:
                        values[name].append(float(exact))
                        values[f"{name}/{source}"].append(float(exact))
        if batch.recalls is not None:
            out = lm(batch.recalls.input_ids, attention_mask=batch.recalls.attention_mask, prefix=prefix)
            values["recalled"] += exact_answers(out.logits, batch.recalls.answer_labels)
        if batch.copies is not None:
            targets = batch.copies.answer_labels[:, 1:]
            out = lm(batch.copies.input_ids, prefix=prefix)
            values["copied"] += (out.logits[:, :-1].argmax(-1) == targets)[targets != IGNORED].float().tolist()
    lm.train(was_training)
    return {name: sum(numbers) / len(numbers) for name, numbers in sorted(values.items()) if numbers}
