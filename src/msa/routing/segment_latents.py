"""The latents of one segment of a bank, where the tiers want them.

Axes: n documents (parts) and C chunks of this process, n_kv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msa.bank import BankSpec, Kind, Segment
from msa.ops.route import ExactKeys, KeyBlock, QuantizedKeys, halve_keys, measure_keys, on_threads, quantize_keys
from msa.routing.tiers import Tiers

_READERS = 4


class SegmentLatents:
    """Routing keys and content of a segment. Segments never change, so views of later states use it again.

    What is copied into memory whole is checked against its checksum on the way; what stays on disk, and a share of a
    segment, are checked by ``verify``.

    Args:
        segment: with sound latents.
        spec: of the bank.
        tiers: where latents live.
        device: where routing happens.
        similarity: what prepared keys are made for. Those that are stored ready are for the bank's own.
        rank, world: of the processes that share the documents of each segment: this one holds the rank-th run.

    Attributes:
        name: the segment's.
        numbers: ``[n]`` int64; counts: chunks of each ``[n]`` int64; all_numbers: of all processes.
        key_blocks: router layer → routing keys ``[C, n_kv, D]``.

    Raises:
        BankCorruptError: a checksum is wrong.
    """

    def __init__(
        self,
        segment: Segment,
        spec: BankSpec,
        tiers: Tiers,
        device: torch.device,
        similarity: str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.name, self._segment = segment.name, segment
        self.all_numbers = segment.numbers
        count = len(segment.numbers)
        first, end = count * rank // world, count * (rank + 1) // world
        self.numbers = segment.numbers[first:end]
        self.counts = segment.chunk_offsets[first : end + 1].diff()
        self._chunks = slice(int(segment.chunk_offsets[first]), int(segment.chunk_offsets[end]))

        def blocks(layers: Sequence[int]) -> list[KeyBlock]:
            return [self._key_block(spec, tiers, device, similarity, layer) for layer in layers]

        self.shape = (int(self.counts.sum()), spec.num_key_value_heads, spec.head_dim)
        # reading and checking several at a time
        self.key_blocks = dict(zip(spec.layers, on_threads(blocks, spec.layers, _READERS), strict=True))
        self._content: dict[int, tuple[Tensor, Tensor]] = {}
        if tiers.content != "mapped":
            for layer in spec.layers:
                keys, values = self._loaded("keys", layer), self._loaded("values", layer)
                pinned = tiers.content == "pinned"
                self._content[layer] = (keys.pin_memory(), values.pin_memory()) if pinned else (keys, values)

    def content(self, layer: int, rows: Tensor) -> Tensor:
        """Content keys and values of chunks ``[n]``: ``[2, n, n_kv, D]`` on the CPU."""
        if layer in self._content:
            keys, values = self._content[layer]
            return torch.stack([keys[rows], values[rows]])
        return torch.stack([_Rows(self, kind, layer)[rows] for kind in ("keys", "values")])

    def read(self, kind: Kind, layer: int, rows: Tensor) -> Tensor:
        """Chunks ``[n]`` of one kind of one layer from disk."""
        return self._segment.latents.rows(kind, layer, rows + self._chunks.start)

    def _mapped(self, kind: Kind, layer: int) -> Tensor:
        return self._segment.tensor(kind, layer)[self._chunks]

    def _loaded(self, kind: Kind, layer: int) -> Tensor:
        return self._segment.latents.load(kind, layer, self._chunks.start, self._chunks.stop)

    def _key_block(self, spec: BankSpec, tiers: Tiers, device: torch.device, similarity: str, layer: int) -> KeyBlock:
        form = tiers.routing_keys
        stored = _Rows(self, "routing_keys", layer)
        if form == "mapped":
            return ExactKeys(self._mapped("routing_keys", layer))
        if form == "int8" and spec.int8 and similarity == similarity_of(spec):
            keys, scales = self._loaded("int8_routing_keys", layer), self._loaded("int8_scales", layer)
            return QuantizedKeys(keys.to(device), scales.to(device), similarity, stored=stored)
        loaded = self._loaded("routing_keys", layer).to(device)
        # the best few documents are scored once more by the keys on disk, so that rounding decides nothing
        if form == "int8":
            return replace(quantize_keys(loaded, similarity), stored=stored)
        if form == "half":
            out = loaded if loaded.dtype == torch.bfloat16 else None
            return replace(halve_keys(loaded, similarity, out=out), stored=stored)
        fast = loaded.dtype == torch.bfloat16 and device.type == "cpu"
        return measure_keys(loaded, similarity) if fast else ExactKeys(loaded)


@dataclass(frozen=True)
class _Rows:
    """The chunks of one kind of one layer of a segment, on disk; see :class:`msa.ops.route.KeyRows`."""

    segment: SegmentLatents
    kind: Kind
    layer: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.segment.shape

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.segment.read(self.kind, self.layer, rows)


def similarity_of(spec: BankSpec) -> str:
    """What the routing keys that a bank stores ready are compared by."""
    return str(spec.settings.get("routing_similarity", "cosine"))
