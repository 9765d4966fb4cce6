"""Encode token lists in length-bucketed batches; the result is in the order given.

Axes: N documents, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from msa.documents.batching import length_buckets, pad_right, tight_buckets
from msa.encoding.pooling import ChunkMeans
from msa.model import DocumentMemory, MSAForCausalLM
from msa.ops import chunk_offsets_of
from msa.ops.transfer import sent

# fewer tokens: calls weigh; more: what a layer hands to the next no longer fits a core's cache (benchmarks/encoding.py)
BATCH_TOKENS = 2048
# on a GPU a batch's widest states take up to so many bytes (64K tokens of the default model, 10K of one of 4B), so that
# the host stays ahead also where other threads keep Python from it
_GPU_STATE_BYTES = 192 << 20
_GPU_BATCH_TOKENS = 8192, 65536  # at least, at most
_MAX_PADDING = 0.1  # of a batch on a CPU, where a few more calls cost less than tokens nobody asked for


@torch.inference_mode()
def encode_in_batches(
    lm: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DocumentMemory:
    """Stage 1 over many documents.

    Args:
        lm: the network.
        documents: token ids of each document, none empty.
        batch_tokens: tokens per forward pass once padded; bounds the memory needed. None: what suits the device.
        progress: called after each batch with its number of tokens.

    Returns:
        One :class:`DocumentMemory` of all documents in the order given, on the network's device; a GPU may still be
        at work on it.

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
    batch_tokens = batch_tokens or batch_tokens_for(lm)
    for bucket in batches_of(lengths, batch_tokens, lm.device):
        parts.append(encode_batch(lm, [documents[i] for i in bucket]))
        order += bucket
        if progress:
            progress(sum(lengths[i] for i in bucket))
    offsets = chunk_offsets_of(torch.tensor([lengths[i] for i in order]), lm.config.chunk_size)
    return DocumentMemory.concatenate(parts).select(torch.tensor(order).argsort(), offsets)


def batch_tokens_for(lm: MSAForCausalLM) -> int:
    """Tokens per forward pass that suit the network and its device."""
    if lm.device.type == "cpu":
        return BATCH_TOKENS
    least, most = _GPU_BATCH_TOKENS
    return min(most, max(least, _GPU_STATE_BYTES // (lm.config.intermediate_size * lm.dtype.itemsize)))


def batches_of(lengths: Sequence[int], batch_tokens: int, device: torch.device) -> list[list[int]]:
    """Which documents of these lengths :func:`encode_in_batches` puts together, shortest first."""
    if device.type == "cpu":
        return tight_buckets(lengths, batch_tokens, _MAX_PADDING)
    return length_buckets(lengths, batch_tokens)


@torch.inference_mode()
def encode_batch(lm: MSAForCausalLM, documents: Sequence[Sequence[int]]) -> DocumentMemory:
    """Stage 1 over documents of one batch: what :meth:`MSAForCausalLM.encode_documents` returns, without gradients.

    Args:
        lm: the network.
        documents: token ids of each document, none empty, at least one.
    """
    ids, lengths = pad_right(documents)
    means = ChunkMeans(lengths, lm.config.chunk_size, lm.device)
    return lm.encode_pooled(sent(ids, lm.device), lengths, means.take)
