"""Routing and fetching over a memory whose documents lie on several ranks.

Axes: B rows, T tokens, Hq query heads, Hkv key/value heads, D head_dim, N documents, C chunks, k selected documents,
M selected chunks; Nr, Cr, kr the same on rank r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from msa.model import DocumentMemory, MemoryView, SelectedMemory
from msa.model.memory_view import chunks_of_documents
from msa.ops import Routing, RoutingSpec
from msa.ops.route import best_documents
from msa.parallel.ranks import Ranks, as_bytes, from_bytes


class Shard(MemoryView, Protocol):
    """What a rank holds: a memory that also says how many chunks each document has."""

    @property
    def chunk_offsets(self) -> Tensor:
        """``[Nr + 1]`` int64."""


class ShardedMemory:
    """All ranks' documents as one memory; implements :class:`msa.MemoryView`.

    Every rank runs the same program on the same input (SPMD) and gets the same results. Routing: rank 0's queries are
    broadcast, so that float differences between machines cannot make ranks decide differently; each rank scores its own
    keys and keeps its best k; those and all scores are exchanged, and the best k of all win. Fetching: each rank reads
    its own winners and all ranks get all of them. No gradients flow from one rank to another.

    Selections and scores are those of one process that holds all documents; of equal scores the lower global index
    goes first everywhere.

    Args:
        local: this rank's documents; may be empty, but with tensors of the right shapes and dtype
            (:func:`msa.parallel.empty_memory`).
        ranks: the processes.
        positions: global indices of this rank's documents ``[Nr]``, ascending; together all ranks' must be
            0..N − 1. None on all ranks: the documents of rank 0, then those of rank 1, and so on.

    Attributes:
        chunk_offsets: ``[N + 1]`` int64 of all documents, on the device of the local ones.

    Raises:
        ValueError: positions that do not ascend, leave out a place or give one twice.
    """

    def __init__(self, local: Shard, ranks: Ranks, positions: Sequence[int] | None = None) -> None:
        self.local, self.ranks = local, ranks
        device = local.chunk_offsets.device
        counts = ranks.gather(local.chunk_offsets.diff())
        self._sizes = [len(each) for each in counts]
        self._chunk_sizes = [int(each.sum()) for each in counts]
        self._places = self._agreed(positions, device)
        place = torch.cat(self._places)
        self.chunk_offsets = torch.nn.functional.pad(torch.cat(counts)[place.argsort()].cumsum(0), (1, 0))
        self._owner, self._local_index = torch.empty_like(place), torch.empty_like(place)
        for rank, each in enumerate(self._places):
            self._owner[each] = rank
            self._local_index[each] = torch.arange(len(each), device=device)
        # where a score gathered in rank order belongs; contiguous shards are in place already
        self._doc_place = self._chunk_place = None
        if positions is not None:
            self._doc_place = place
            self._chunk_place = chunks_of_documents(self.chunk_offsets, place[None])[0][0]

    def _agreed(self, positions: Sequence[int] | None, device: torch.device) -> list[Tensor]:
        """Global indices of each rank's documents."""
        if positions is None:
            return list(torch.arange(sum(self._sizes), device=device).split(self._sizes))
        places = self.ranks.gather(torch.tensor(list(positions), dtype=torch.int64, device=device))
        found = torch.cat(places).sort().values
        fits = [len(each) for each in places] == self._sizes and all(bool((each.diff() > 0).all()) for each in places)
        if not fits or not torch.equal(found, torch.arange(sum(self._sizes), device=device)):
            raise ValueError(
                f"the positions of the {self._sizes} documents on each rank must ascend on each and together be "
                f"0..{sum(self._sizes) - 1}, found {[each.tolist()[:8] for each in places]} (first eight of each)"
            )
        return places

    @property
    def num_documents(self) -> int:
        """Documents on all ranks."""
        return sum(self._sizes)

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        """See :class:`msa.MemoryView`; ``doc_mask`` ``[N]`` or ``[B, N]`` counts all ranks' documents."""
        query = self.ranks.broadcast(query)
        if doc_mask is not None:
            doc_mask = doc_mask[..., self._places[self.ranks.rank]]
        num_rows = query.shape[0]
        doc_scores = query.new_zeros(num_rows, 0, dtype=torch.float32)
        chunk_scores = doc_scores
        if self.local.num_documents:
            scored = self.local.route(layer, query, query_mask, spec, top_k, doc_mask)
            doc_scores, chunk_scores = scored.doc_scores.float(), scored.chunk_scores.float()
        best = best_documents(doc_scores, top_k)
        payload = torch.cat([as_bytes(best), as_bytes(doc_scores), as_bytes(chunk_scores)])
        kept = [min(top_k, size) for size in self._sizes]
        sizes = [
            num_rows * (8 * k + 4 * docs + 4 * chunks)
            for k, docs, chunks in zip(kept, self._sizes, self._chunk_sizes, strict=True)
        ]
        return self._merged(self.ranks.exchange(payload, sizes), num_rows, kept, top_k)

    def _merged(self, pieces: list[Tensor], num_rows: int, kept: list[int], top_k: int) -> Routing:
        """All ranks' candidates ``[B, kr]`` and scores ``[B, Nr]``, ``[B, Cr]`` → the global decision."""
        candidates, docs, chunks = [], [], []
        for rank, piece in enumerate(pieces):
            k, num_docs, num_chunks = kept[rank], self._sizes[rank], self._chunk_sizes[rank]
            parts = piece.split([8 * num_rows * k, 4 * num_rows * num_docs, 4 * num_rows * num_chunks])
            candidates.append(self._places[rank][from_bytes(parts[0], torch.int64, (num_rows, k))])
            docs.append(from_bytes(parts[1], torch.float32, (num_rows, num_docs)))
            chunks.append(from_bytes(parts[2], torch.float32, (num_rows, num_chunks)))
        doc_scores = in_place(torch.cat(docs, dim=1), self._doc_place)
        candidate = torch.cat(candidates, dim=1).sort(dim=1).values  # ascending, so that ties go to the lower index
        order = best_documents(doc_scores.gather(1, candidate), top_k)
        indices = candidate.gather(1, order)
        scores = doc_scores.gather(1, indices)
        missing = (0, top_k - indices.shape[1])
        pad = torch.nn.functional.pad
        return Routing(
            doc_indices=pad(indices.masked_fill(scores == float("-inf"), -1), missing, value=-1),
            scores=pad(scores, missing, value=float("-inf")),
            doc_scores=doc_scores,
            chunk_scores=in_place(torch.cat(chunks, dim=1), self._chunk_place),
        )

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """See :class:`msa.MemoryView`; a document that several rows selected travels once."""
        device = self.chunk_offsets.device
        indices = doc_indices.to(device)
        ascending = indices[indices >= 0].unique()
        arrival = self._owner[ascending].argsort(stable=True)
        documents = ascending[arrival]
        owner = self._owner[documents]
        mine = self._local_index[documents[owner == self.ranks.rank]]
        # a rank without winners asks for "none", for the shapes and the dtype
        own = self.local.fetch(layer, mine[None] if len(mine) else mine.new_full((1, 1), -1))
        keys, values = own.keys[0], own.values[0]  # [Mr, Hkv, D]
        counts = self.chunk_offsets[documents + 1] - self.chunk_offsets[documents]
        row_shape, row_bytes = keys.shape[1:], keys.shape[1:].numel() * keys.element_size()
        rows = [int(counts[owner == rank].sum()) for rank in range(self.ranks.world)]
        payload = torch.cat([as_bytes(keys), as_bytes(values)])
        pieces = self.ranks.exchange(payload, [2 * count * row_bytes for count in rows])
        tables: list[list[Tensor]] = [[], []]
        for piece, count in zip(pieces, rows, strict=True):
            for table, half in zip(tables, piece.split(count * row_bytes) if count else (piece, piece), strict=True):
                table.append(from_bytes(half, keys.dtype, (count, *row_shape)))
        winners = DocumentMemory(
            keys={layer: torch.cat(tables[0])},
            values={layer: torch.cat(tables[1])},
            routing_keys={},
            chunk_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        )
        # which of the winners each selected document is; the one after the last is "none"
        place = torch.cat([arrival.argsort(), arrival.new_full((1,), -1)])
        found = torch.searchsorted(ascending, indices.clamp(min=0)).masked_fill(indices < 0, len(ascending))
        selected = winners.fetch(layer, place[found])
        return SelectedMemory(
            keys=selected.keys.to(doc_indices.device),
            values=selected.values.to(doc_indices.device),
            slot=selected.slot.to(doc_indices.device),
        )


def in_place(gathered: Tensor, place: Tensor | None) -> Tensor:
    """``[..., n]`` in rank order → the same with column i moved to ``place[i]``; None: they are in place already."""
    return gathered if place is None else torch.empty_like(gathered).index_copy_(-1, place, gathered)
