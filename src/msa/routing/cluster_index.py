"""Fewer keys for nearly the same answer: routing over the lists of like keys that a question points at.

The keys of each large segment are sorted into lists of like ones (:mod:`msa.routing.key_lists`). A question is compared
with the lists' centroids first; the keys of the best lists are then scored by :func:`msa.ops.route`, as many as a share
of all keys allows. What is selected has exact scores; what was not looked at can be missed. Small segments, and so all
that was added last, are looked at whole.

Axes: B rows, T tokens, N documents, C chunks, n lists, d = Hkv·D.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msa.ops import Routing, RoutingSpec, route
from msa.ops.route import ExactKeys, KeyBlock, KeyRows
from msa.ops.route.scoring import prepare_query, score_tile
from msa.ops.route.types import reduce_chunks
from msa.routing.key_lists import KeyLists, cluster_keys

# in smaller segments there is nothing to save
FEWEST_CHUNKS = 4096
# how much better than its centroid a list is taken to be, in spreads. Measured on the routers of SmolLM2-135M: 0.3
# finds more than 0 and 0.6 at every share
_HOPE = 0.3
# however small the share, so many chunks per document to select are looked at
_LEAST_PER_SELECTED = 16


@dataclass
class IndexedRouting(Routing):
    """A routing that says what it cost; documents and chunks not looked at have the score of their list's centroid.

    Attributes:
        touched: keys that were read for each row ``[B]`` int64, centroids included.
        num_keys: keys there are.
    """

    touched: Tensor
    num_keys: int


def check_share(share: float) -> None:
    """Refuse what is no share of the keys.

    Raises:
        ValueError: not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of keys to look at must be above 0 and at most 1 (all of them), got {share}")


def lists_of(block: KeyBlock, similarity: str) -> KeyLists | None:
    """Lists of a block's keys; None for one that is small enough to look at whole."""
    return cluster_keys(block, similarity) if block.keys.shape[0] >= FEWEST_CHUNKS else None


class ClusterIndex:
    """Lists over the routing keys of one router layer.

    Args:
        blocks: routing keys of C chunks together.
        lists: of each block, by :func:`lists_of`; None: it is looked at whole.
        chunk_offsets: ``[N + 1]`` int64; document i owns chunks ``offsets[i]:offsets[i + 1]``.

    Raises:
        ValueError: another number of lists than of blocks, or lists of other chunks than the block's.
    """

    def __init__(self, blocks: Sequence[KeyBlock], lists: Sequence[KeyLists | None], chunk_offsets: Tensor) -> None:
        sizes = [block.keys.shape[0] for block in blocks]
        listed_sizes = [None if one is None else len(one.nearest) for one in lists]
        if len(lists) != len(sizes) or any(a not in (None, b) for a, b in zip(listed_sizes, sizes, strict=True)):
            raise ValueError(
                f"each block needs the lists of its own chunks or None; the blocks have {sizes} chunks, the lists are "
                f"of {listed_sizes}. lists_of makes them"
            )
        self.blocks, self.lists, self.chunk_offsets = list(blocks), list(lists), chunk_offsets
        self._starts = [0, *itertools.accumulate(sizes)]
        self.num_keys = self._starts[-1]
        device = chunk_offsets.device
        documents = torch.arange(len(chunk_offsets) - 1, dtype=torch.int32, device=device)
        self._owners = documents.repeat_interleave(chunk_offsets.diff())
        self._whole = torch.ones(self.num_keys, dtype=torch.bool, device=device)
        # the lists of all blocks in a row: a list's number, and a chunk's, count on from block to block
        self._nearest = torch.zeros(self.num_keys, dtype=torch.int32, device=device)
        listed = [(one, start) for one, start in zip(lists, self._starts, strict=False) if one is not None]
        self.num_lists = 0
        for one, start in listed:
            end = start + len(one.nearest)
            self._whole[start:end] = False
            self._nearest[start:end] = one.nearest.to(device) + self.num_lists
            self.num_lists += len(one.centroids)
        if listed:
            self._members = torch.cat([one.chunks + start for one, start in listed]).to(device)
            self._counts = torch.cat([one.offsets.diff() for one, _ in listed]).to(device)
            self._firsts = self._counts.cumsum(0) - self._counts
            centroids = [torch.cat([one.centroids, one.spread[:, None]], dim=1) for one, _ in listed]
            self._centroids = torch.cat(centroids).to(device)[:, None]  # [n, 1, d + 1]

    def route(
        self,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
        *,
        share: float,
    ) -> IndexedRouting:
        """:func:`msa.ops.route` over a share of the keys; with a share of 1 its very result.

        Each row is answered as it would be alone. Where a score is not one product of query and key (``head_reduce``
        max) or a document's is not that of its best chunk (``chunk_reduce`` mean), all keys are looked at.

        Args:
            query, query_mask, spec, top_k, doc_mask: as of :func:`msa.ops.route`.
            share: of all keys that a row may read, centroids included, above 0 and up to 1. Blocks without lists and
                16 x ``top_k`` chunks are read in any case; where those hold fewer than ``top_k`` documents, fewer are
                selected.

        Raises:
            ValueError: a share out of range.
        """
        check_share(share)
        whole = share == 1 or not self.num_lists or not query.shape[0]
        if whole or spec.head_reduce != "mean" or spec.chunk_reduce != "max":
            found = route(query, query_mask, self.blocks, self.chunk_offsets, spec, top_k, doc_mask)
            touched = torch.full((query.shape[0],), self.num_keys, device=query.device)
            return IndexedRouting(**vars(found), touched=touched, num_keys=self.num_keys)
        rows = []
        for row in range(query.shape[0]):
            visible = doc_mask[row] if doc_mask is not None and doc_mask.dim() == 2 else doc_mask
            one = slice(row, row + 1)
            rows.append(self._route_row(query[one], query_mask[one], spec, top_k, visible, int(share * self.num_keys)))
        return IndexedRouting(
            **{name: torch.cat([vars(row)[name] for row in rows]) for name in vars(rows[0]) if name != "num_keys"},
            num_keys=self.num_keys,
        )

    def _route_row(
        self, query: Tensor, query_mask: Tensor, spec: RoutingSpec, top_k: int, doc_mask: Tensor | None, budget: int
    ) -> IndexedRouting:
        """One row: query ``[1, T, Hq, D]``, doc_mask ``[N]``."""
        estimates = query.new_full((self.num_keys,), float("-inf"), dtype=torch.float32)
        looked = self._whole.clone()
        asks = bool(query_mask.any())
        if asks:
            prepared = prepare_query(query, query_mask, self.blocks[0].keys.shape[1], spec)
            room = max(budget - self.num_lists - int(looked.sum()), _LEAST_PER_SELECTED * top_k)
            looked[self._chosen(self._list_scores(*prepared, spec, _HOPE), doc_mask, room)] = True
            estimates = self._list_scores(*prepared, spec, 0.0)[self._nearest]
        chunks = looked.nonzero().squeeze(1)
        offsets = torch.searchsorted(chunks, self.chunk_offsets)
        exact = route(query, query_mask, self._taken(chunks), offsets, spec, top_k, doc_mask)
        estimated = reduce_chunks(estimates[None], self.chunk_offsets, "max")
        if doc_mask is not None:
            estimated = estimated.masked_fill(~doc_mask, float("-inf"))
        return IndexedRouting(
            doc_indices=exact.doc_indices,
            scores=exact.scores,
            doc_scores=torch.where(offsets.diff() == 0, estimated, exact.doc_scores),
            chunk_scores=estimates.index_copy(0, chunks, exact.chunk_scores[0])[None],
            touched=torch.tensor([len(chunks) + (self.num_lists if asks else 0)], device=query.device),
            num_keys=self.num_keys,
        )

    def _list_scores(self, query: Tensor, mask: Tensor | None, spec: RoutingSpec, hope: float) -> Tensor:
        """Of every list ``[n]``: its centroid's, plus ``hope`` spreads times the length of the query ``[1, T, d]``."""
        query = torch.cat([query, hope * query.norm(dim=-1, keepdim=True)], dim=-1)
        return score_tile(query, mask, self._centroids, spec)[0]

    def _chosen(self, list_scores: Tensor, doc_mask: Tensor | None, room: int) -> Tensor:
        """Up to ``room`` chunks of the best lists, of documents that may be selected."""
        order = list_scores.argsort(descending=True, stable=True)
        counts, firsts = self._counts[order], self._firsts[order]
        ends = counts.cumsum(0)
        limit = room
        while True:
            kept = min(int((ends < limit).sum()) + 1, len(order))
            places = (firsts - (ends - counts))[:kept].repeat_interleave(counts[:kept])
            chunks = self._members[places + torch.arange(len(places), device=places.device)].long()
            if doc_mask is not None:
                chunks = chunks[doc_mask[self._owners[chunks]]]
            # of a chunk in two lists the first counts
            turns = torch.arange(len(chunks), device=chunks.device)
            first = turns.new_full((self.num_keys,), len(chunks)).scatter_reduce(0, chunks, turns, "amin")
            chunks = chunks[first[chunks] == turns]
            if len(chunks) >= room or kept == len(order):
                return chunks[:room]
            limit *= 2  # many stood there twice or may not be selected

    def _taken(self, chunks: Tensor) -> list[KeyBlock]:
        """Keys of single chunks, ascending ``[c]``."""
        bounds = torch.searchsorted(chunks, torch.tensor(self._starts, device=chunks.device)).tolist()
        taken = []
        for block, start, begin, end in zip(self.blocks, self._starts, bounds, bounds[1:], strict=False):
            if end > begin:
                rows = chunks[begin:end] - start
                part: KeyBlock = block.take(rows.to(block.keys.device))
                if block.stored is not None and not isinstance(part, ExactKeys):
                    part = replace(part, stored=_RowsOf(block.stored, rows))
                taken.append(part)
        return taken


@dataclass(frozen=True)
class _RowsOf:
    """Some of the stored keys of a block; see :class:`msa.ops.route.KeyRows`."""

    stored: Tensor | KeyRows
    chosen: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.chosen), *self.stored.shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        wanted = self.chosen[rows.to(self.chosen.device)]
        if isinstance(self.stored, Tensor):
            return self.stored[wanted.to(self.stored.device)]
        return self.stored[wanted.cpu()]
