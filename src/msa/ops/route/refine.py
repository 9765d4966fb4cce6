"""A second look at the best documents: reads a few hundred or thousand keys, not all of them.

After a first look (:mod:`msa.ops.route.first_look`) the chunks in reach of the best are scored again by the same keys.
Rounding keys to int8 shifts scores by under one part in a hundred of their spread, which hardly matters for who is
among the best 64 documents and does for who is among the best 16: where the stored keys are at hand, those 64 are
scored once more by them. The last look is in float64: see :func:`msa.ops.route.scan.score_chunks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from msa.ops.route.blocks import ExactKeys, KeyBlock, KeyRows
from msa.ops.route.first_look import FirstLook
from msa.ops.route.scan import score_chunks
from msa.ops.route.threads import on_threads
from msa.ops.route.types import RoutingSpec

CANDIDATES_PER_SELECTED = 4
EXACT_PER_SELECTED = 16
_READERS = 16


def chunks_of(documents: Tensor, chunk_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of documents ``[n]``, and whose each is; both int64 ``[c]``."""
    counts = chunk_offsets.diff()[documents]
    first = (chunk_offsets[documents] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    return first + torch.arange(first.shape[0], device=first.device), documents.repeat_interleave(counts)


def chunks_in_reach(
    look: FirstLook, chunk_scores: Tensor, doc_scores: Tensor, chunk_offsets: Tensor, top_k: int
) -> Tensor:
    """The chunks ``[c]`` int64, ascending, that can decide the ``4 x top_k`` best documents of a row.

    Beside them those that can be the best of one of the first ``16 x top_k``: a document that is among the best by the
    mean of several layers' scores is near the best of most layers.

    Args:
        look: tells how far scores can be off.
        chunk_scores: ``[B, C]``; doc_scores: ``[B, N]`` by their maxima, −inf where a row may not see a document.
        chunk_offsets: ``[N + 1]`` int64.
        top_k: documents that will be selected.
    """
    best = doc_scores.topk(min(EXACT_PER_SELECTED * top_k, doc_scores.shape[1]), dim=1)
    last = best.values[:, : CANDIDATES_PER_SELECTED * top_k][:, -1:]
    least = look.reach(last)
    visible = doc_scores > float("-inf")
    in_reach = (doc_scores >= least) & visible
    first = torch.zeros_like(visible).scatter_(1, best.indices, True) & visible
    chunks, owners = chunks_of((in_reach | first).any(0).nonzero().squeeze(1), chunk_offsets)
    scores = chunk_scores[:, chunks]
    decides = in_reach[:, owners] & (scores >= least)
    decides |= first[:, owners] & (scores >= look.reach(doc_scores[:, owners]))
    return chunks[decides.any(0)]


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
    chunks, owners = chunks_of(documents, chunk_offsets)
    if chunk_reduce != "max":
        return chunks
    best = chunk_scores[:, chunks] == doc_scores[:, owners]
    return chunks[(best & (chunk_scores[:, chunks] > float("-inf"))).any(0)]


def rescore(
    query: Tensor,
    mask: Tensor | None,
    blocks: Sequence[KeyBlock],
    chunk_scores: Tensor,
    chunks: Tensor,
    spec: RoutingSpec,
) -> Tensor:
    """Chunk scores ``[B, C]`` with those of ``chunks`` ``[c]``, ascending, made exact by the blocks' own keys.

    In float32 where stored keys will have the last word.
    """
    dtype = torch.float64 if any(block.stored is None for block in blocks) else torch.float32
    taken = [block.take(rows) for block, rows, _ in _by_block(blocks, chunks)]
    if not taken:
        return chunk_scores
    return chunk_scores.index_copy(1, chunks, score_chunks(query, mask, taken, spec, dtype=dtype))


def refine(
    query: Tensor,
    mask: Tensor | None,
    blocks: Sequence[KeyBlock],
    chunk_scores: Tensor,
    chunks: Tensor,
    spec: RoutingSpec,
) -> Tensor:
    """As :func:`rescore`, but by the stored keys of the blocks that have them; the scores of other blocks stay."""
    refined, jobs = [], []
    for block, rows, here in _by_block(blocks, chunks):
        if block.stored is not None:
            refined.append(here)
            jobs.append((block.stored, rows))
    if not refined:
        return chunk_scores
    read = on_threads(_read, jobs, _READERS)
    keys = ExactKeys(torch.cat([rows.to(query.device) for rows in read]))
    scores = score_chunks(query, mask, [keys], spec, dtype=torch.float64)
    return chunk_scores.index_copy(1, torch.cat(refined), scores)


def _read(jobs: Sequence[tuple[Tensor | KeyRows, Tensor]]) -> list[Tensor]:
    """Single chunks of stored keys."""
    return [
        stored[rows.to(stored.device)] if isinstance(stored, Tensor) else stored[rows.cpu()] for stored, rows in jobs
    ]


def _by_block(blocks: Sequence[KeyBlock], chunks: Tensor) -> Iterator[tuple[KeyBlock, Tensor, Tensor]]:
    """For each block that has some of ``chunks``, ascending: it, their rows in it, and they themselves."""
    sizes = torch.tensor([0, *(block.keys.shape[0] for block in blocks)], device=chunks.device).cumsum(0)
    starts, bounds = sizes.tolist(), torch.searchsorted(chunks, sizes).tolist()
    for index, block in enumerate(blocks):
        here = chunks[bounds[index] : bounds[index + 1]]
        if len(here):
            yield block, here - starts[index], here
