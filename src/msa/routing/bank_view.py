"""One version of a memory bank as the network sees it: routing keys in memory, content K/V mapped from disk.

Axes: B rows, k selected documents, N documents (parts), C chunks, M selected chunks, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from msa.bank import MemoryBank, StoredPart
from msa.model import MemoryView, SelectedMemory
from msa.model.memory_view import chunks_of_documents
from msa.ops import Routing, RoutingSpec, route


class Library(MemoryView, Protocol):
    """A memory view whose documents also have numbers and original texts: all that answering needs."""

    numbers: np.ndarray
    chunk_size: int
    chunk_offsets: Tensor

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one that is no longer there."""

    def live_mask(self, where: Mapping[str, Any] | None) -> Tensor:
        """Bool ``[N]``: documents that may be selected."""


class BankView:
    """A consistent snapshot of a bank; implements :class:`msa.MemoryView`.

    Routing keys are copied to the device once; content keys and values stay memory-mapped and only the winners'
    chunks are read. Deleted documents keep their place and are masked.

    Args:
        bank: an open bank.
        device: where routing happens and fetched chunks go.

    Attributes:
        version: the bank's version this view shows.
        numbers: document number of each ``doc_index`` ``[N]`` int64.
        chunk_offsets: ``[N + 1]`` int64 on ``device``.
        live: bool ``[N]``, False for deleted documents.
    """

    def __init__(self, bank: MemoryBank, device: torch.device | str = "cpu") -> None:
        snapshot = bank.snapshot()
        self.bank = bank
        self.device = torch.device(device)
        self.version = snapshot.version
        self.chunk_size = bank.spec.chunk_size
        self._segments = [segment for segment in snapshot.segments if len(segment.numbers)]
        empty = torch.zeros(0, dtype=torch.int64)
        numbers = torch.cat([empty, *(segment.numbers for segment in self._segments)])
        counts = torch.cat([empty, *(segment.chunk_offsets.diff() for segment in self._segments)])
        self.numbers: np.ndarray = numbers.numpy()
        self.chunk_offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(self.device)
        self.live = torch.from_numpy(np.isin(self.numbers, snapshot.live_numbers)).to(self.device)
        starts = [0]
        for segment in self._segments:
            starts.append(starts[-1] + int(segment.chunk_offsets[-1]))
        self._segment_starts = torch.tensor(starts)
        shape = (0, bank.spec.num_key_value_heads, bank.spec.head_dim)
        nothing = torch.zeros(shape, dtype=getattr(torch, bank.spec.dtype))
        self.routing_keys = {
            layer: torch.cat([nothing, *(s.tensor("routing_keys", layer) for s in self._segments)]).to(self.device)
            for layer in bank.spec.layers
        }

    @property
    def num_documents(self) -> int:
        """Documents (parts) in the view, deleted ones included."""
        return len(self.numbers)

    def live_mask(self, where: Mapping[str, Any] | None = None) -> Tensor:
        """Bool ``[N]``: documents that are not deleted and whose metadata match ``where``."""
        if not where:
            return self.live
        matching = np.isin(self.numbers, self.bank.matching_numbers(where))
        return self.live & torch.from_numpy(matching).to(self.device)

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
        return route(query, query_mask, self.routing_keys[layer], self.chunk_offsets, spec, top_k, mask)

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """See :class:`msa.MemoryView`; reads only the selected chunks from disk."""
        chunks, slot = chunks_of_documents(self.chunk_offsets, doc_indices)
        rows = chunks.clamp(min=0).cpu()
        owner = torch.searchsorted(self._segment_starts, rows, right=True) - 1
        spec = self.bank.spec
        keys = torch.zeros(*rows.shape, spec.num_key_value_heads, spec.head_dim, dtype=getattr(torch, spec.dtype))
        values = torch.zeros_like(keys)
        for index in owner.unique().tolist():
            here = owner == index
            local = rows[here] - self._segment_starts[index]
            keys[here] = self._segments[index].tensor("keys", layer)[local]
            values[here] = self._segments[index].tensor("values", layer)[local]
        return SelectedMemory(keys=keys.to(self.device), values=values.to(self.device), slot=slot)

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one deleted since the view was taken."""
        try:
            return [*self.bank.parts(numbers)]
        except KeyError:
            present = set(self.bank.live_numbers().tolist())
            found = iter(self.bank.parts([number for number in numbers if number in present]))
            return [next(found) if number in present else None for number in numbers]
