"""The memory on disk: immutable segments and a manifest per state; knows nothing of models or tokenizers."""

from msa.bank.bank import MemoryBank
from msa.bank.byte_counter import ByteCounter
from msa.bank.schema import BankSpec, Kind, Latents, Part, StoredDocument, StoredPart
from msa.bank.segment import Segment
from msa.bank.state import State

__all__ = [
    "BankSpec",
    "ByteCounter",
    "Kind",
    "Latents",
    "MemoryBank",
    "Part",
    "Segment",
    "State",
    "StoredDocument",
    "StoredPart",
]
