"""A memory of many blocks, a tile of chunks at a time, on several threads.

Tiles do not end where a block does, so that many small blocks cost as little as a large one and score the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from msa.ops.route.blocks import KeyBlock, scales_of
from msa.ops.route.scoring import score_tile
from msa.ops.route.threads import R, on_threads
from msa.ops.route.types import RoutingSpec

# what each tile is made of: blocks, with the first chunk and the end in each
Pieces: TypeAlias = list[tuple[KeyBlock, int, int]]

# keys and scores of one tile: 2 MB each where caches are small, 16 MB where starting a kernel costs more
_TILE_BYTES_CPU = 2 * 1024 * 1024
_TILE_BYTES = 16 * 1024 * 1024
_FEWEST_CHUNKS = 256
# fewer tiles are done before threads of their own would have begun
_TILES_PER_WORKER = 4


def score_chunks(
    q: Tensor,
    mask: Tensor | None,
    blocks: Sequence[KeyBlock],
    spec: RoutingSpec,
    tile: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The score of every chunk for every row ``[B, C]`` float32; a row without routing tokens gets anything.

    Args:
        q, mask: of :func:`msa.ops.route.scoring.prepare_query`.
        blocks: C chunks together.
        spec: similarity and reductions.
        tile: chunks at a time; None: as many as keep a tile small.
        dtype: of the products. The last bits of float32 ones depend on where in a tile a chunk stands; those of
            float64 ones as well, but not what is left of them in float32, so that equal keys score the same anywhere.
    """
    grad = has_gradients(q, blocks)
    tile = tile or chunks_per_tile(q.shape[0] * q.shape[1], blocks[0].keys.shape[1:].numel(), 4, q.device)
    query = q.to(dtype)
    tile = min(tile, max(sum(block.keys.shape[0] for block in blocks), 1))

    def score(run: Sequence[Pieces]) -> list[Tensor]:
        scratch = None if grad else q.new_empty(tile, *blocks[0].keys.shape[1:])
        with torch.autocast(q.device.type, enabled=False):  # mixed-precision training would round the scores
            return [
                score_tile(query, mask, _join(pieces, spec.similarity, scratch).to(dtype), spec).float()
                for pieces in run
            ]

    scores = on_tiles(score, tiles_of(blocks, tile), q.device, alone=grad)
    chunk_scores = torch.cat(scores, dim=1) if scores else q.new_zeros(q.shape[0], 0)
    scales = scales_of(blocks)
    # not negative, so the maxima and means that were taken allow it now
    return chunk_scores if scales is None else chunk_scores * scales


def has_gradients(q: Tensor, blocks: Sequence[KeyBlock]) -> bool:
    """Whether gradients will be asked for."""
    return torch.is_grad_enabled() and (q.requires_grad or any(block.keys.requires_grad for block in blocks))


def on_tiles(
    work: Callable[[Sequence[Pieces]], list[R]], tiles: Sequence[Pieces], device: torch.device, alone: bool = False
) -> list[R]:
    """``work`` on runs of tiles, on this machine's threads where that pays and gradients do not forbid it."""
    one = alone or device.type != "cpu"
    workers = 1 if one else min(torch.get_num_threads(), len(tiles) // _TILES_PER_WORKER)
    return on_threads(work, tiles, workers) if workers > 1 else work(tiles)


def chunks_per_tile(num_rows: int, key_length: int, itemsize: int, device: torch.device) -> int:
    """As many chunks as keep keys and scores of a tile small."""
    widest = max(4 * num_rows, itemsize * key_length, 1)
    return max(_FEWEST_CHUNKS, (_TILE_BYTES_CPU if device.type == "cpu" else _TILE_BYTES) // widest)


def tiles_of(blocks: Sequence[KeyBlock], tile_chunks: int, joined_chunks: int | None = None) -> list[Pieces]:
    """What each tile is made of: of ``tile_chunks`` chunks, or fewer at the end of a block.

    Pieces of fewer than ``joined_chunks`` chunks (None: of a tile) are joined across the borders of blocks, to tiles of
    as many.
    """
    joined_chunks = min(joined_chunks or tile_chunks, tile_chunks)
    tiles: list[Pieces] = []
    missing = 0  # chunks that the last tile is short of
    for block in blocks:
        start, num_chunks = 0, block.keys.shape[0]
        while start < num_chunks:
            left = num_chunks - start
            if missing:
                taken = min(missing, left)
                tiles[-1].append((block, start, start + taken))
                missing -= taken
            else:
                taken = min(tile_chunks, left)
                tiles.append([(block, start, start + taken)])
                missing = max(0, joined_chunks - taken)
            start += taken
    return tiles


def _join(pieces: Pieces, similarity: str, scratch: Tensor | None) -> Tensor:
    """The chunks of one tile; only a tile that crosses a border is copied once more."""
    if len(pieces) > 1:
        return torch.cat([block.rows(start, stop, similarity) for block, start, stop in pieces])
    block, start, stop = pieces[0]
    return block.rows(start, stop, similarity, None if scratch is None else scratch[: stop - start])
