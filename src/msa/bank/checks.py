"""What a commit must fulfil beside the state it changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msa.bank.schema import Latents, StoredDocument
from msa.bank.state import State


def check_put(state: State, put: Sequence[StoredDocument], latents: Latents | None) -> None:
    """Make sure that every part of ``put`` has its latents, stored or given now.

    Raises:
        ValueError: a part without latents, latents without a part, or a number that may have been used before.
    """
    expected = {part.number: (document.id, part.num_chunks) for document in put for part in document.parts}
    if latents is not None:
        next_number = state.manifest.next_number
        if int(latents.numbers[0]) < next_number:
            raise ValueError(
                f"part number {int(latents.numbers[0])} may have been used before: numbers are never reused, "
                f"the next free one is {next_number}"
            )
        for number, num_chunks in zip(latents.numbers.tolist(), latents.chunk_offsets.diff().tolist(), strict=True):
            _, found = expected.pop(number, (None, None))
            if found != num_chunks:
                raise ValueError(f"part {number} has {num_chunks} chunks in the latents, {found} in the documents")
    places = state.find([document.id for document in put])
    for number, (id_, num_chunks) in expected.items():
        row = int(np.searchsorted(state.numbers, number))
        if row >= len(state.numbers) or state.numbers[row] != number:
            raise ValueError(f"part {number} of document {id_!r} has no latents, given or stored")
        if state.part_places[row] != places.get(id_) or state.part_chunks[row] != num_chunks:
            (owner,) = state.documents([int(state.part_places[row])])
            raise ValueError(
                f"part {number} was put with {num_chunks} chunks for document {id_!r}, it is stored with "
                f"{state.part_chunks[row]} chunks for document {owner.id!r}"
            )
