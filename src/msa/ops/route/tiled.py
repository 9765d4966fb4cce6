"""The lean routing scorer: exact, tiled over chunks, never a tensor of heads x tokens x chunks.

Every form of key is scored in float32. Products of int8 (the query split in two int8 parts) or of bfloat16 would take
about a third or a sixth less time; the former exists for some devices and shapes only, the latter rounds scores to 8
bits, which does not tell the best of a million chunks apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from msa.ops.route.blocks import KeyBlock, as_blocks, scales_of
from msa.ops.route.refine import chunks_to_refine, refine
from msa.ops.route.scoring import prepare_query, score_tile
from msa.ops.route.threads import on_threads
from msa.ops.route.types import Routing, RoutingSpec, reduce_chunks, select_documents

# float32 keys and scores of one tile: 2 MB each where caches are small, 16 MB where starting a kernel costs more
_TILE_ELEMENTS_CPU = 512 * 1024
_TILE_ELEMENTS = 4 * 1024 * 1024
# fewer tiles are done before threads of their own would have begun
_TILES_PER_WORKER = 8

_Pieces: TypeAlias = list[tuple[KeyBlock, int, int]]


def route(
    query: Tensor,
    query_mask: Tensor,
    keys: Tensor | Sequence[KeyBlock],
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
    tile_chunks: int | None = None,
) -> Routing:
    """Select each row's ``top_k`` documents (Eq. 2). Differentiable in ``query`` and ``keys``.

    Args:
        query: routing queries ``[B, T, Hq, D]``, before any normalisation.
        query_mask: bool ``[B, T]``, True on the tokens that route. A row without any selects nothing.
        keys: routing keys ``[C, Hkv, D]`` of all documents, before any normalisation; or key blocks
            (:class:`ExactKeys`, :class:`HalfKeys`, :class:`QuantizedKeys`, in any mixture) of C chunks together. Where
            compact blocks have their ``stored`` keys, each row's best 4 x ``top_k`` documents are scored again from
            them.
        chunk_offsets: ``[N + 1]`` int64; document i owns chunks ``offsets[i]:offsets[i + 1]``.
        spec: similarity, scale and reductions.
        top_k: documents to select per row.
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
        tile_chunks: chunks scored at a time; None: as many as keep a tile small (2 MB on a CPU).

    Returns:
        :class:`Routing`; scores are float32 whatever the dtype of query and keys.

    Raises:
        ValueError: blocks of different shapes, or prepared for another similarity than the spec's; offsets that do not
            end at C.
    """
    blocks = as_blocks(keys, query)
    q, mask = prepare_query(query, query_mask, blocks[0].keys.shape[1], spec)
    chunk_scores = _score_chunks(q, mask, blocks, spec, tile_chunks or _chunks_per_tile(q, blocks))
    silent = ~query_mask.any(1, keepdim=True)  # rows without routing tokens
    chunk_scores = chunk_scores.masked_fill(silent, float("-inf"))
    doc_scores = _score_documents(chunk_scores, chunk_offsets, spec, doc_mask)
    if any(block.stored is not None for block in blocks):
        deciding = chunks_to_refine(chunk_scores, doc_scores, chunk_offsets, spec.chunk_reduce, top_k)
        chunk_scores = refine(q, mask, blocks, chunk_scores, deciding, spec).masked_fill(silent, float("-inf"))
        doc_scores = _score_documents(chunk_scores, chunk_offsets, spec, doc_mask)
    doc_indices, best = select_documents(doc_scores, top_k)
    return Routing(doc_indices=doc_indices, scores=best, doc_scores=doc_scores, chunk_scores=chunk_scores)


def _score_chunks(q: Tensor, mask: Tensor | None, blocks: list[KeyBlock], spec: RoutingSpec, tile: int) -> Tensor:
    """The score of every chunk for every row ``[B, C]``; a row without routing tokens gets anything."""
    grad = torch.is_grad_enabled() and (q.requires_grad or any(block.keys.requires_grad for block in blocks))
    tiles = _tile_pieces(blocks, tile)

    def score(run: Sequence[_Pieces]) -> list[Tensor]:
        scratch = None if grad else q.new_empty(tile, *blocks[0].keys.shape[1:])
        return [score_tile(q, mask, _join(pieces, spec.similarity, scratch), spec) for pieces in run]

    workers = 1 if grad or q.device.type != "cpu" else min(torch.get_num_threads(), len(tiles) // _TILES_PER_WORKER)
    scores = on_threads(score, tiles, workers) if workers > 1 else score(tiles)
    chunk_scores = torch.cat(scores, dim=1) if scores else q.new_zeros(q.shape[0], 0)
    scales = scales_of(blocks)
    # not negative, so the maxima and means that were taken allow it now
    return chunk_scores if scales is None else chunk_scores * scales


def _score_documents(chunk_scores: Tensor, chunk_offsets: Tensor, spec: RoutingSpec, doc_mask: Tensor | None) -> Tensor:
    """Chunk scores ``[B, C]`` → document scores ``[B, N]``; −inf where ``doc_mask`` is False."""
    scores = reduce_chunks(chunk_scores, chunk_offsets, spec.chunk_reduce)
    return scores if doc_mask is None else scores.masked_fill(~doc_mask, float("-inf"))


def _chunks_per_tile(q: Tensor, blocks: list[KeyBlock]) -> int:
    """As many chunks as keep keys and scores of a tile small."""
    widest = max(q.shape[0] * q.shape[1], blocks[0].keys.shape[1:].numel(), 1)
    return max(256, (_TILE_ELEMENTS_CPU if q.device.type == "cpu" else _TILE_ELEMENTS) // widest)


def _tile_pieces(blocks: list[KeyBlock], tile_chunks: int) -> list[_Pieces]:
    """What each tile of ``tile_chunks`` chunks is made of: blocks, with the first chunk and the end in each.

    Tiles do not end where a block does, so that many small blocks cost as little as a large one and score the same.
    """
    tiles: list[_Pieces] = []
    room = 0
    for block in blocks:
        start, num_chunks = 0, block.keys.shape[0]
        while start < num_chunks:
            if not room:
                tiles.append([])
                room = tile_chunks
            stop = min(start + room, num_chunks)
            tiles[-1].append((block, start, stop))
            room -= stop - start
            start = stop
    return tiles


def _join(pieces: _Pieces, similarity: str, scratch: Tensor | None) -> Tensor:
    """The chunks of one tile; only a tile that crosses a border is copied once more."""
    if len(pieces) > 1:
        return torch.cat([block.rows(start, stop, similarity) for block, start, stop in pieces])
    block, start, stop = pieces[0]
    return block.rows(start, stop, similarity, None if scratch is None else scratch[: stop - start])
