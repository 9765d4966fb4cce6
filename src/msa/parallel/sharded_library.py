"""A sharded memory whose documents also have numbers and texts: what answering over several ranks needs.

Axes: N documents; Nr those of rank r.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa.bank import Part, StoredPart
from msa.errors import BankFileError
from msa.parallel.ranks import Ranks
from msa.parallel.sharded_memory import ShardedMemory, in_place
from msa.routing import Library


class ShardedLibrary(ShardedMemory):
    """All ranks' libraries as one; implements :class:`msa.routing.Library`.

    Every rank runs the engine on the same questions and options, with the same seed where it samples, and gets the
    same answer. Texts and metadata stay with the rank that holds the document and travel, as JSON, when asked for.

    A document's number is written in its latents, so it cannot be given anew when folders are put together. The ranks
    open one folder, or copies of it, and each loads its share (``BankView(bank, shard=(rank, world))`` with the view's
    ``positions``).

    Args:
        local, ranks, positions: as for :class:`ShardedMemory`.

    Attributes:
        numbers: document number of each global index ``[N]`` int64.
        chunk_size: tokens per chunk.

    Raises:
        ValueError: two documents have the same number, or the positions do not fit.
    """

    def __init__(self, local: Library, ranks: Ranks, positions: Sequence[int] | None = None) -> None:
        super().__init__(local, ranks, positions)
        self.library = local
        self.chunk_size = local.chunk_size
        own = torch.as_tensor(local.numbers, dtype=torch.int64)
        # with an end above all numbers, so that every search leads to a place in it
        self._own_numbers = torch.cat([own.sort().values, torch.tensor([torch.iinfo(torch.int64).max])])
        numbers = in_place(torch.cat(ranks.gather(own)), None if self._doc_place is None else self._doc_place.cpu())
        self.numbers: np.ndarray = numbers.numpy()
        distinct, times = np.unique(self.numbers, return_counts=True)
        if len(distinct) < len(self.numbers):
            repeated = distinct[times > 1]
            raise ValueError(
                f"documents on different ranks must have different numbers, found {len(repeated)} that several have, "
                f"the first is {repeated[0]}. Give each rank a part of one folder instead"
            )

    @property
    def damage(self) -> Sequence[BankFileError]:
        """Why documents that are present are left out, as far as this rank knows."""
        return self.library.damage

    def live_mask(self, where: Mapping[str, Any] | None = None) -> Tensor:
        """Bool ``[N]``: documents that may be selected, of all ranks."""
        return in_place(torch.cat(self.ranks.gather(self.library.live_mask(where))), self._doc_place)

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one that is no longer there."""
        if not len(numbers):
            return []
        asked = torch.tensor([int(number) for number in numbers])
        mine = asked[self._own_numbers[torch.searchsorted(self._own_numbers, asked)] == asked].tolist()
        found = [asdict(part) for part in self.library.parts(mine) if part is not None]
        data = torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)
        parts: dict[int, StoredPart] = {}
        for piece in self.ranks.gather(data):
            for fields in json.loads(piece.numpy().tobytes()):
                part = StoredPart(**{**fields, "part": Part(**fields["part"])})
                parts[part.part.number] = part
        return [parts.get(int(number)) for number in numbers]

    def matches(self, question: str, limit: int, among: np.ndarray) -> list[int]:
        """Numbers of up to ``limit`` of the documents ``among`` with words of the question, as rank 0 knows them."""
        found = self.library.matches(question, limit, among) if self.ranks.rank == 0 else []
        numbers: list[int] = self.ranks.gather(torch.tensor(found, dtype=torch.int64))[0].tolist()
        return numbers
