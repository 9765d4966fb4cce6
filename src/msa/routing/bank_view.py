"""One version of a memory bank as the network sees it.

Axes: B rows, k selected documents, N documents (parts), C chunks, M selected chunks, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from msa.bank import MemoryBank, StoredPart
from msa.errors import BankFileError
from msa.model import MemoryView, SelectedMemory
from msa.model.memory_view import chunks_of_documents
from msa.ops import Routing, RoutingSpec, route
from msa.ops.route import ExactKeys, on_threads
from msa.ops.route.adjoining import adjoined, laid_side_by_side
from msa.routing.cluster_index import ClusterIndex, lists_of
from msa.routing.key_lists import KeyLists
from msa.routing.ranking import words_query
from msa.routing.segment_latents import SegmentLatents, similarity_of
from msa.routing.tiers import Tiers, check_budget

logger = logging.getLogger(__name__)

_READERS = 16  # segments that are read at the same time


class Library(MemoryView, Protocol):
    """A memory view whose documents also have numbers and original texts: all that answering needs."""

    numbers: np.ndarray
    chunk_size: int
    chunk_offsets: Tensor

    @property
    def damage(self) -> Sequence[BankFileError]:
        """Why documents that are present are left out, a line for each damaged file; empty: none is."""

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one that is no longer there."""

    def live_mask(self, where: Mapping[str, Any] | None) -> Tensor:
        """Bool ``[N]``: documents that may be selected."""

    def matches(self, question: str, limit: int, among: np.ndarray) -> list[int]:
        """Numbers of up to ``limit`` of the documents ``among`` ``[n]`` with words of the question, by BM25."""


def joins_segments(tiers: Tiers, device: torch.device) -> bool:
    """Whether the routing keys of segments are joined: on a GPU, where each block is a launch."""
    return device.type == "cuda" and tiers.routing_keys != "mapped" and tiers.key_share == 1


class BankView:
    """A consistent snapshot of a bank; implements :class:`msa.MemoryView`.

    Routing keys go where the tiers say, segment by segment; of content keys and values only the winners' chunks are
    read. Deleted documents keep their place and are masked. A segment with damaged latents is left out, and logged.

    Args:
        bank: an open bank.
        device: where routing happens and fetched chunks go.
        tiers: where latents live.
        previous: an older view of the same bank, tiers and shard, whose segments are used again where they still are.
        similarity: what the model that asks compares routing keys by; None: as the one did that made the bank.
        shard: rank and number of ranks, where several processes each hold a part of the documents; None: all of them.

    Attributes:
        state: the bank's state this view shows; version: its version; similarity: as above.
        numbers: document number of each ``doc_index`` ``[N]`` int64, ascending.
        positions: places of these documents among those of all shards ``[N]`` int64, ascending.
        chunk_offsets: ``[N + 1]`` int64 on ``device``.
        live: bool ``[N]``, False for deleted documents.
        damage: what is wrong with the files of segments that are left out, in whole or in part.
        key_blocks: router layer → blocks of routing keys, on a CPU one per segment; on a GPU one for all segments that
            were opened together, which then are one launch.
        indexes: router layer → lists of like keys, where a question may look at a share of them alone; else empty.

    Raises:
        MemoryBudgetError: the latents do not fit where the tiers put them.
        ValueError: the tiers are not available here.
    """

    def __init__(
        self,
        bank: MemoryBank,
        device: torch.device | str = "cpu",
        tiers: Tiers | None = None,
        previous: BankView | None = None,
        similarity: str | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.state, self.spec, self.tiers = bank.state(), bank.spec, tiers or Tiers()
        self.tiers.check_available()
        self.device = torch.device(device)
        self.similarity = similarity or similarity_of(self.spec)
        if previous is not None and previous.similarity != self.similarity:
            previous = None  # its keys are of no use
        self._fetched = bank.fetched
        self.version = self.state.manifest.version
        self.chunk_size = self.spec.chunk_size
        known = {} if previous is None else {segment.name: segment for segment in previous._segments}
        rank, world = shard or (0, 1)
        sound = [segment for segment in self.state.segments if segment.has_latents and len(segment.numbers)]
        new = sum(segment.info.num_chunks for segment in sound if segment.name not in known)
        check_budget(self.tiers, self.spec, new // world, self.device)
        self._segments: list[SegmentLatents] = []
        self.damage = self.state.damage
        for segment in sound:
            try:
                latents = known.get(segment.name)
                if latents is None:
                    latents = SegmentLatents(segment, self.spec, self.tiers, self.device, self.similarity, rank, world)
                self._segments.append(latents)
            except BankFileError as error:
                logger.warning("left out: %s", error)
                self.damage.append(error)
        empty = torch.zeros(0, dtype=torch.int64)
        numbers = torch.cat([empty, *(segment.numbers for segment in self._segments)])
        counts = torch.cat([empty, *(segment.counts for segment in self._segments)])
        self.numbers: np.ndarray = numbers.numpy()
        everywhere = torch.cat([empty, *(segment.all_numbers for segment in self._segments)])
        self.positions: np.ndarray = np.searchsorted(everywhere.numpy(), self.numbers)
        self.chunk_offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(self.device)
        self.live = torch.from_numpy(np.isin(self.numbers, self.state.numbers)).to(self.device)
        sizes = torch.tensor([0, *(int(segment.counts.sum()) for segment in self._segments)])
        self._segment_starts = sizes.cumsum(0)
        self.key_blocks = {
            layer: [segment.key_blocks[layer] for segment in self._segments] for layer in self.spec.layers
        }
        if joins_segments(self.tiers, self.device):
            self._join_blocks([segment for segment in self._segments if segment.name not in known])
        # keys on disk are scored where they are read
        self._keys_device = torch.device("cpu") if self.tiers.routing_keys == "mapped" else self.device
        self._lists: dict[str, dict[int, KeyLists | None]] = {} if previous is None else previous._lists
        self.indexes = self._make_indexes() if self.tiers.key_share < 1 else {}

    @property
    def num_documents(self) -> int:
        """Documents (parts) in the view, deleted ones included."""
        return len(self.numbers)

    def live_mask(self, where: Mapping[str, Any] | None = None) -> Tensor:
        """Bool ``[N]``: documents that are not deleted and whose metadata match ``where``."""
        if not where:
            return self.live
        matching = np.isin(self.numbers, self.state.matching_numbers(where))
        return self.live & torch.from_numpy(matching).to(self.device)

    def matches(self, question: str, limit: int, among: np.ndarray) -> list[int]:
        """Numbers of up to ``limit`` of the documents ``among``, of all shards, with words of the question, by BM25."""
        words = words_query(question)
        return [number for number, _ in self.state.matches(words, limit, among)] if words else []

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        """See :class:`msa.MemoryView`; deleted documents are never selected."""
        mask = self.live if doc_mask is None else self.live & doc_mask
        blocks = self.key_blocks[layer]
        if not blocks:
            shape = (0, self.spec.num_key_value_heads, self.spec.head_dim)
            blocks = [ExactKeys(torch.zeros(shape, dtype=self.spec.torch_dtype, device=self._keys_device))]
        query, query_mask, mask = (tensor.to(self._keys_device) for tensor in (query, query_mask, mask))
        if layer in self.indexes:
            share = self.tiers.key_share
            found: Routing = self.indexes[layer].route(query, query_mask, spec, top_k, mask, share=share)
        else:
            offsets = self.chunk_offsets.to(self._keys_device)
            found = route(query, query_mask, blocks, offsets, spec, top_k, mask)
        moved = {name: value.to(self.device) for name, value in vars(found).items() if isinstance(value, Tensor)}
        return replace(found, **moved)

    def _join_blocks(self, new: Sequence[SegmentLatents]) -> None:
        """Have the keys of new segments one after the other in memory, layer by layer; a block over each run."""
        for layer in self.spec.layers:
            moved = laid_side_by_side([segment.key_blocks[layer] for segment in new])
            for segment, block in zip(new, moved, strict=True):
                segment.key_blocks[layer] = block
            self.key_blocks[layer] = adjoined([segment.key_blocks[layer] for segment in self._segments])
            if len(new) > 1:
                torch.cuda.empty_cache()  # where they were: pieces too small for the next layer

    def _make_indexes(self) -> dict[int, ClusterIndex]:
        """Router layer → lists over all segments; those that an older view has made are used again."""
        started = time.perf_counter()
        self._lists = {
            segment.name: self._lists.get(segment.name)
            or {layer: lists_of(block, self.similarity) for layer, block in segment.key_blocks.items()}
            for segment in self._segments
        }
        logger.info("sorted routing keys into lists in %.1f s", time.perf_counter() - started)
        offsets = self.chunk_offsets.to(self._keys_device)
        return {
            layer: ClusterIndex(blocks, [self._lists[segment.name][layer] for segment in self._segments], offsets)
            for layer, blocks in self.key_blocks.items()
            if blocks
        }

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """See :class:`msa.MemoryView`; reads only the selected chunks, many at a time, and counts their bytes."""
        chunks, slot = chunks_of_documents(self.chunk_offsets, doc_indices)
        rows = chunks.cpu()
        owner = torch.searchsorted(self._segment_starts, rows, right=True) - 1  # −1: padding, which stays zero
        on_gpu = self.device.type == "cuda"
        shape = (2, *rows.shape, self.spec.num_key_value_heads, self.spec.head_dim)
        both = torch.zeros(shape, dtype=self.spec.torch_dtype, pin_memory=on_gpu)
        places, jobs = [], []
        for index in owner[owner >= 0].unique().tolist():
            here = owner == index
            places.append(here)
            jobs.append((self._segments[index], rows[here] - self._segment_starts[index]))

        def read(run: Sequence[tuple[SegmentLatents, Tensor]]) -> list[Tensor]:
            return [segment.content(layer, local) for segment, local in run]

        for here, found in zip(places, on_threads(read, jobs, _READERS), strict=True):
            both[:, here] = found
            self._fetched.add(found.nbytes)
        both = both.to(self.device, non_blocking=on_gpu)
        return SelectedMemory(keys=both[0], values=both[1], slot=slot)

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one whose text is damaged."""
        try:
            return [*self.state.parts(numbers)]
        except BankFileError as error:
            logger.warning("left out: %s", error)
            return [self._readable(number) for number in numbers]

    def _readable(self, number: int) -> StoredPart | None:
        try:
            return self.state.parts([number])[0]
        except BankFileError:
            return None
