"""What attention asks of a memory, and the memory that is simply in RAM.

Axes: B rows, T tokens, Hq query heads, Hkv key/value heads, D head_dim, N documents, C chunks, k selected documents,
M selected chunks (padded to the row with the most).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from msa.ops import Routing, RoutingSpec, route
from msa.ops.transfer import sent


@dataclass
class SelectedMemory:
    """Content K/V of the chunks of each row's selected documents.

    Attributes:
        keys: ``[B, M, Hkv, D]``; values: the same.
        slot: ``[B, M]`` int64, which of the row's k selected documents a chunk belongs to; −1 where it is padding.
    """

    keys: Tensor
    values: Tensor
    slot: Tensor


@runtime_checkable
class MemoryView(Protocol):
    """A memory as the network sees it: it can be routed over and its winners fetched, layer by layer."""

    @property
    def num_documents(self) -> int:
        """Documents that ``doc_indices`` count."""

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        """Select documents for routing queries ``[B, T, Hq, D]``; arguments as :func:`msa.ops.route`."""

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """Content K/V of documents ``[B, k]`` (−1: none), on the device of ``doc_indices``."""


@dataclass
class DocumentMemory:
    """The encoded documents in RAM: what :meth:`msa.MSAForCausalLM.encode_documents` returns.

    Attributes:
        keys: router layer → pooled content keys ``[C, Hkv, D]``, after k-norm and RoPE.
        values: router layer → pooled content values ``[C, Hkv, D]``.
        routing_keys: router layer → pooled routing keys ``[C, Hkv, D]``, before any normalisation.
        chunk_offsets: ``[N + 1]`` int64; document i owns chunks ``offsets[i]:offsets[i + 1]``.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    routing_keys: dict[int, Tensor]
    chunk_offsets: Tensor

    @property
    def num_documents(self) -> int:
        """Number of documents N."""
        return self.chunk_offsets.shape[0] - 1

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        """See :class:`MemoryView`."""
        return route(query, query_mask, self.routing_keys[layer], self.chunk_offsets, spec, top_k, doc_mask)

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """See :class:`MemoryView`."""
        chunks, slot = chunks_of_documents(self.chunk_offsets, doc_indices)
        rows = chunks.clamp(min=0)
        return SelectedMemory(keys=self.keys[layer][rows], values=self.values[layer][rows], slot=slot)

    def select(self, doc_indices: Tensor, known_offsets: Tensor | None = None) -> DocumentMemory:
        """The documents ``[M]`` int64, in that order, as a memory of their own.

        ``known_offsets``: ``chunk_offsets`` on the CPU, as the indices are then: a GPU is not waited for.
        """
        from_offsets = self.chunk_offsets if known_offsets is None else known_offsets
        counts = from_offsets.diff()[doc_indices]
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        within = torch.arange(int(offsets[-1]), device=counts.device) - offsets[:-1].repeat_interleave(counts)
        chunks = from_offsets[doc_indices].repeat_interleave(counts) + within
        if known_offsets is not None:
            chunks, offsets = (sent(each, self.chunk_offsets.device) for each in (chunks, offsets))
        return self._mapped(lambda tensor: tensor[chunks], offsets)

    def detach(self) -> DocumentMemory:
        """The same without gradients."""
        return self._mapped(torch.Tensor.detach, self.chunk_offsets)

    def tensors(self) -> dict[str, Tensor]:
        """Everything under names such as ``routing_keys.3``, for a safetensors file."""
        tables = {"keys": self.keys, "values": self.values, "routing_keys": self.routing_keys}
        named = {f"{name}.{layer}": t.contiguous() for name, table in tables.items() for layer, t in table.items()}
        return named | {"chunk_offsets": self.chunk_offsets}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> DocumentMemory:
        """The memory that :meth:`tensors` took apart; other names are passed over."""
        tables: dict[str, dict[int, Tensor]] = {"keys": {}, "values": {}, "routing_keys": {}}
        for name, tensor in tensors.items():
            table, _, layer = name.partition(".")
            if layer and table in tables:
                tables[table][int(layer)] = tensor
        return cls(**tables, chunk_offsets=tensors["chunk_offsets"])

    def to(self, device: torch.device) -> DocumentMemory:
        """The same on another device."""
        return self._mapped(lambda tensor: tensor.to(device), self.chunk_offsets.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor], chunk_offsets: Tensor) -> DocumentMemory:
        def mapped(table: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {layer: change(tensor) for layer, tensor in table.items()}

        return DocumentMemory(mapped(self.keys), mapped(self.values), mapped(self.routing_keys), chunk_offsets)

    @staticmethod
    def concatenate(parts: list[DocumentMemory]) -> DocumentMemory:
        """One memory of the documents of all parts, in order.

        Raises:
            ValueError: no parts.
        """
        if not parts:
            raise ValueError("nothing to concatenate: the list of memories is empty")

        def joined(tables: list[Mapping[int, Tensor]]) -> dict[int, Tensor]:
            return {layer: torch.cat([table[layer] for table in tables]) for layer in tables[0]}

        counts = torch.cat([part.chunk_offsets.diff() for part in parts])
        return DocumentMemory(
            keys=joined([part.keys for part in parts]),
            values=joined([part.values for part in parts]),
            routing_keys=joined([part.routing_keys for part in parts]),
            chunk_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        )


def selectable_documents(doc_mask: Tensor | None, doc_sample: Tensor | None, num_rows: int) -> Tensor | None:
    """Which documents each row may select: those of its own that the mask allows.

    Args:
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected; None: all may.
        doc_sample: ``[N]`` the row each document belongs to; None: all documents are every row's.
        num_rows: rows B.

    Returns:
        Bool ``[N]`` or ``[B, N]``; None: all.
    """
    if doc_sample is None:
        return doc_mask
    own = doc_sample[None, :] == torch.arange(num_rows, device=doc_sample.device)[:, None]
    return own if doc_mask is None else own & doc_mask


def chunks_of_documents(chunk_offsets: Tensor, doc_indices: Tensor) -> tuple[Tensor, Tensor]:
    """Chunk numbers of each row's documents, documents in the order given.

    Args:
        chunk_offsets: ``[N + 1]`` int64.
        doc_indices: ``[B, k]`` int64, −1 where there is no document.

    Returns:
        Chunk numbers ``[B, M]`` and the slot 0..k−1 each belongs to ``[B, M]``, both −1 where a row has fewer.

    >>> chunks, slot = chunks_of_documents(torch.tensor([0, 2, 3]), torch.tensor([[1, 0], [-1, 1]]))
    >>> chunks.tolist(), slot.tolist()
    ([[2, 0, 1], [2, -1, -1]], [[0, 1, 1], [1, -1, -1]])
    """
    present = doc_indices >= 0
    docs = doc_indices.clamp(min=0)
    if chunk_offsets.shape[0] < 2:
        nothing = doc_indices.new_zeros(doc_indices.shape[0], 0)
        return nothing, nothing
    counts = torch.where(present, chunk_offsets[docs + 1] - chunk_offsets[docs], 0)
    ends = counts.cumsum(1)  # [B, k]
    width = int(ends[:, -1].max()) if ends.numel() else 0
    column = torch.arange(width, device=docs.device).expand(docs.shape[0], width).contiguous()
    slot = torch.searchsorted(ends, column, right=True)
    real = slot < doc_indices.shape[1]
    safe = slot.clamp(max=doc_indices.shape[1] - 1)
    first = chunk_offsets[docs].gather(1, safe)
    within = column - (ends - counts).gather(1, safe)
    return torch.where(real, first + within, -1), torch.where(real, slot, -1)
