"""The memory on disk: a folder of immutable tensor segments and a catalog; knows nothing of models or tokenizers."""

from msa.bank.bank import MemoryBank
from msa.bank.schema import BankSpec, Kind, Latents, Part, StoredDocument, StoredPart
from msa.bank.segment import BankSnapshot, Segment

__all__ = [
    "BankSnapshot",
    "BankSpec",
    "Kind",
    "Latents",
    "MemoryBank",
    "Part",
    "Segment",
    "StoredDocument",
    "StoredPart",
]
