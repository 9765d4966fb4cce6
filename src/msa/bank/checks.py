"""What a folder must fulfil to become a memory or be opened, and a commit beside the state it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from msa.bank.files import folder_bytes
from msa.bank.latents import num_latents_bytes
from msa.bank.lock import LOCK_NAME
from msa.bank.manifest import Manifest, manifest_versions
from msa.bank.schema import KINDS, BankSpec, Latents, StoredDocument
from msa.bank.segment import SEGMENTS
from msa.bank.state import State
from msa.errors import BankCorruptError, BankFormatError, BankFullError, BankMismatchError, NotFiniteError

_MANIFEST_BYTES = 512  # of a manifest, for each of its segments
_NAMED = 5  # documents, in a message


def check_put(state: State, put: Sequence[StoredDocument], latents: Latents | None, places: Mapping[str, int]) -> None:
    """Make sure that every part of ``put`` has its latents, stored or given now; ``places``: of those present.

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


def check_finite(put: Sequence[StoredDocument], latents: Latents) -> None:
    """Make sure that all latents are finite: one NaN among routing keys, and no question would find anything.

    Raises:
        NotFiniteError: some are not; their documents are named.
    """
    tensors = [tensor for kind in KINDS for tensor in getattr(latents, kind).values()]
    # many times faster than isfinite; NaN wins over any number
    if all(math.isfinite(bound) for tensor in tensors for bound in map(float, tensor.aminmax())):
        return
    broken = torch.stack([~tensor.flatten(1).isfinite().all(1) for tensor in tensors]).any(0)  # [C]
    numbers = {*latents.numbers.repeat_interleave(latents.chunk_offsets.diff())[broken].tolist()}
    names = [repr(document.id) for document in put if any(part.number in numbers for part in document.parts)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise NotFiniteError(
        f"the model's latents of document {', '.join(names[:_NAMED])}{more} are not finite numbers, and were not "
        "stored, nor was what came with them. Leave these documents out, or load the model with dtype float32"
    )


def check_room(
    folder: Path, spec: BankSpec, max_bytes: int, put: Sequence[StoredDocument], latents: Latents | None
) -> None:
    """See before anything is written that a commit cannot fit ``max_bytes``.

    Raises:
        BankFullError: the folder would grow beyond it.
    """
    more = sum(len(document.text.encode()) for document in put)
    if latents is not None:
        more += num_latents_bytes(spec, len(latents.numbers), int(latents.chunk_offsets[-1]))
    present = folder_bytes(folder, folder / SEGMENTS)
    if present + more > max_bytes:
        raise _full(folder, present, more, max_bytes)


def check_size(folder: Path, state: State, max_bytes: int) -> None:
    """Make sure that the folder fits ``max_bytes`` once the segment written after ``state`` is committed.

    Raises:
        BankFullError: it would not.
    """
    total = folder_bytes(folder, folder / SEGMENTS) + _MANIFEST_BYTES * (len(state.segments) + 2)
    before = sum(info.num_bytes for info in state.manifest.segments)
    if total > max_bytes:
        raise _full(folder, before, total - before, max_bytes)


def _full(folder: Path, present: int, more: int, max_bytes: int) -> BankFullError:
    return BankFullError(
        f"the memory {folder} has {present:,} bytes and may have {max_bytes:,}; this change needs "
        f"at least {more:,} more. Nothing was changed. Delete documents and compact, or raise the limit"
    )


def check_creatable(folder: Path) -> None:
    """Make sure that nothing in a folder is in the way of a new memory.

    Raises:
        BankFormatError: it holds other files.
        BankCorruptError: it holds a memory's segments without their manifests.
    """
    known = {SEGMENTS, LOCK_NAME}
    foreign = [
        file.name
        for file in folder.iterdir()
        if file.name not in known and not file.name.startswith((".", "manifest-"))
    ]
    if foreign:
        raise BankFormatError(f"{folder} is not empty and no memory: it holds {min(foreign)}. Choose another path")
    if any((folder / SEGMENTS).glob("*.safetensors")) and not manifest_versions(folder):
        raise BankCorruptError(f"the manifests of {folder} are missing, though there are segments. Restore a copy")


def check_fingerprint(folder: Path, manifest: Manifest, fingerprint: str, model_name: str | None) -> None:
    """Make sure that a model made the memory.

    Raises:
        BankMismatchError: another one did; both fingerprints are named.
    """
    if fingerprint != manifest.fingerprint:
        raise BankMismatchError(
            f"the memory {folder} was made by model {manifest.spec.model_name} with fingerprint "
            f"{manifest.fingerprint}, it was opened with {f'model {model_name}' if model_name else 'a model'} "
            f"with fingerprint {fingerprint}. Open it with the model that made it, or build it again"
        )
