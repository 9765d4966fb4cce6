"""Encode token lists in length-bucketed batches; the result is in the order given.

Axes: N documents, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from msa.documents.batching import length_buckets, pad_right
from msa.model import DocumentMemory, MSAForCausalLM

BATCH_TOKENS = 4096


@torch.inference_mode()
def encode_in_batches(
    lm: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> DocumentMemory:
    """Stage 1 over many documents.

    Args:
        lm: the network.
        documents: token ids of each document, none empty.
        batch_tokens: tokens per forward pass once padded; bounds the memory needed.
        progress: called after each batch with its number of tokens.

    Returns:
        One :class:`DocumentMemory` of all documents in the order given, on the network's device.

    Raises:
        ValueError: no documents, or one without tokens.
    """
    if not documents:
        raise ValueError("nothing to encode: the list of documents is empty")
    lengths = [len(ids) for ids in documents]
    if min(lengths) == 0:
        raise ValueError(f"document {lengths.index(0)} has no tokens")
    order: list[int] = []
    parts = []
    for bucket in length_buckets(lengths, batch_tokens):
        ids, sizes = pad_right([documents[i] for i in bucket], lm.device)
        parts.append(lm.encode_documents(ids, sizes))
        order += bucket
        if progress:
            progress(sum(lengths[i] for i in bucket))
    return _reorder(DocumentMemory.concatenate(parts), order)


def _reorder(memory: DocumentMemory, order: Sequence[int]) -> DocumentMemory:
    """Document ``j`` of ``memory`` becomes document ``order[j]``."""
    device = memory.chunk_offsets.device
    rank = torch.tensor(order, device=device).argsort()  # document i of the result is document rank[i] of memory
    counts = memory.chunk_offsets.diff()[rank]
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    shift = torch.repeat_interleave(memory.chunk_offsets[rank] - offsets[:-1], counts)
    chunks = torch.arange(int(offsets[-1]), device=device) + shift
    return DocumentMemory(
        keys={layer: states[chunks] for layer, states in memory.keys.items()},
        values={layer: states[chunks] for layer, states in memory.values.items()},
        routing_keys={layer: states[chunks] for layer, states in memory.routing_keys.items()},
        chunk_offsets=offsets,
    )
