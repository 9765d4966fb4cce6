"""A second, exact look at the best documents of compact keys: reads a few hundred stored keys, not all of them.

Rounding to int8 shifts scores by under one part in a hundred of their spread, which hardly matters for who is among
the best 64 documents and does for who is among the best 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msa.ops.route.blocks import ExactKeys, KeyBlock, KeyRows
from msa.ops.route.scoring import score_tile
from msa.ops.route.threads import on_threads
from msa.ops.route.types import RoutingSpec

CANDIDATES_PER_SELECTED = 4
_READERS = 16


def chunks_to_refine(
    chunk_scores: Tensor, doc_scores: Tensor, chunk_offsets: Tensor, chunk_reduce: str, top_k: int
) -> Tensor:
    """The chunks ``[c]`` int64, ascending, that decide which of the best ``4 x top_k`` documents of a row win.

    Args:
        chunk_scores: ``[B, C]``; doc_scores: ``[B, N]``, −inf where a row may not see a document.
        chunk_offsets: ``[N + 1]`` int64.
        chunk_reduce: with ``max`` a document is decided by its best chunk alone, else by all it has.
        top_k: documents that will be selected.
    """
    kept = min(CANDIDATES_PER_SELECTED * top_k, doc_scores.shape[1])
    scores, indices = doc_scores.topk(kept, dim=1)
    documents = indices[scores > float("-inf")].unique()  # ascending
    counts = chunk_offsets.diff()[documents]
    first = (chunk_offsets[documents] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    chunks = first + torch.arange(first.shape[0], device=first.device)
    if chunk_reduce != "max":
        return chunks
    best = chunk_scores[:, chunks] == doc_scores[:, documents.repeat_interleave(counts)]
    return chunks[(best & (chunk_scores[:, chunks] > float("-inf"))).any(0)]


def refine(
    query: Tensor,
    mask: Tensor | None,
    blocks: Sequence[KeyBlock],
    chunk_scores: Tensor,
    chunks: Tensor,
    spec: RoutingSpec,
) -> Tensor:
    """Chunk scores ``[B, C]`` with those of ``chunks`` ``[c]``, ascending, made exact where a block has stored keys."""
    sizes = torch.tensor([0, *(block.keys.shape[0] for block in blocks)], device=chunks.device).cumsum(0)
    starts, bounds = sizes.tolist(), torch.searchsorted(chunks, sizes).tolist()
    refined, jobs = [], []
    for index, block in enumerate(blocks):
        here = chunks[bounds[index] : bounds[index + 1]]
        if block.stored is None or not len(here):
            continue
        refined.append(here)
        jobs.append((block.stored, here - starts[index]))
    if not refined:
        return chunk_scores
    read = on_threads(_read, jobs, _READERS)
    keys = torch.cat([rows.to(query.device).float() for rows in read])
    scores = score_tile(query, mask, ExactKeys(keys).rows(0, keys.shape[0], spec.similarity), spec)
    return chunk_scores.index_copy(1, torch.cat(refined), scores)


def _read(jobs: Sequence[tuple[Tensor | KeyRows, Tensor]]) -> list[Tensor]:
    """Single chunks of stored keys."""
    return [
        stored[rows.to(stored.device)] if isinstance(stored, Tensor) else stored[rows.cpu()] for stored, rows in jobs
    ]
