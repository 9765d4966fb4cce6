"""Small documents and latents for the bank's tests; every latent value is its part's number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msa.bank import BankSpec, Latents, MemoryBank, Part, StoredDocument
from msa.bank.files import checksum
from msa.bank.schema import dump_json

SPEC = BankSpec(
    layers=(1, 3),
    num_key_value_heads=2,
    head_dim=4,
    chunk_size=8,
    dtype="bfloat16",
    model_name="tiny",
    settings={"max_tokens": 32},
)
FINGERPRINT = "sha256:aa"


def document(
    id_: str, text: str, first_number: int, num_parts: int = 1, metadata: dict[str, Any] | None = None
) -> StoredDocument:
    """A document cut into ``num_parts`` parts of 1, 2, 3, ... chunks."""
    cuts = [len(text) * i // num_parts for i in range(num_parts + 1)]
    parts = tuple(
        Part(number=first_number + i, start=cuts[i], end=cuts[i + 1], num_tokens=8 * (i + 1), num_chunks=i + 1)
        for i in range(num_parts)
    )
    return StoredDocument(id=id_, text=text, metadata=metadata or {}, content_hash=f"hash of {text}", parts=parts)


def latents(documents: Sequence[StoredDocument], spec: BankSpec = SPEC) -> Latents:
    parts = sorted((part for each in documents for part in each.parts), key=lambda part: part.number)
    numbers = torch.tensor([part.number for part in parts])
    counts = torch.tensor([part.num_chunks for part in parts])
    fill = numbers.repeat_interleave(counts).view(-1, 1, 1).expand(-1, spec.num_key_value_heads, spec.head_dim)

    def layers(offset: float) -> dict[int, torch.Tensor]:
        return {layer: (fill + offset + layer / 8).to(spec.torch_dtype) for layer in spec.layers}

    return Latents(
        routing_keys=layers(0),
        keys=layers(0.25),
        values=layers(0.5),
        numbers=numbers,
        chunk_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )


def add(bank: MemoryBank, *documents: StoredDocument, delete: Sequence[str] = ()) -> int:
    return bank.commit(put=documents, latents=latents(documents), delete=delete)


def new_bank(path: Path) -> MemoryBank:
    return MemoryBank.create(path, fingerprint=FINGERPRINT, spec=SPEC)


def contents(bank: MemoryBank) -> dict[str, str]:
    return {each.id: each.text for each in bank.list()}


def assert_latents_complete(bank: MemoryBank) -> None:
    """Every present part has its latents, with the values of its number."""
    found = set()
    state = bank.state()
    for segment in state.segments:
        offsets = segment.chunk_offsets.tolist()
        for i, number in enumerate(segment.numbers.tolist()):
            found.add(number)
            for offset, kind in ((0, "routing_keys"), (0.25, "keys"), (0.5, "values")):
                for layer in bank.spec.layers:
                    rows = segment.tensor(kind, layer)[offsets[i] : offsets[i + 1]]  # type: ignore[arg-type]
                    expected = torch.tensor(number + offset + layer / 8).to(bank.spec.torch_dtype)
                    assert len(rows) > 0
                    assert bool((rows == expected).all())
    assert found.issuperset(state.numbers.tolist())


def newest_manifest(folder: Path) -> Path:
    return max(folder.glob("manifest-*.json"))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Rewrite the newest manifest with a valid checksum, as another release might have."""
    file = newest_manifest(folder)
    body = {**json.loads(file.read_text())["manifest"], **changes}
    file.write_text(dump_json({"checksum": checksum(dump_json(body, "").encode()), "manifest": body}, ""))
