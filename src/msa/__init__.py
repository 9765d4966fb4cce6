"""Memory Sparse Attention: language models with a memory inside their attention.

>>> import msa
>>> msa.MSAConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=4).router_layers
[2, 3]
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msa.conversion import convert
    from msa.documents import Document, Protocol, ProtocolStrings
    from msa.engine import Engine
    from msa.errors import MSAError
    from msa.generation.options import AskOptions
    from msa.generation.sampling import Sampling
    from msa.generation.types import (
        Answer,
        DocumentRetrieved,
        Done,
        Event,
        Hit,
        Round,
        RoundStarted,
        TextPiece,
        Usage,
    )
    from msa.memory import AddProgress, Memory
    from msa.model import DocumentMemory, MemoryView, MSAConfig, MSAForCausalLM, MSAOutput
    from msa.model.bundle import MSAModel
    from msa.routing import Tiers
    from msa.zoo import load

__version__ = "0.1.0"

__all__ = [
    "AddProgress",
    "Answer",
    "AskOptions",
    "Document",
    "DocumentMemory",
    "DocumentRetrieved",
    "Done",
    "Engine",
    "Event",
    "Hit",
    "MSAConfig",
    "MSAError",
    "MSAForCausalLM",
    "MSAModel",
    "MSAOutput",
    "Memory",
    "MemoryView",
    "Protocol",
    "ProtocolStrings",
    "Round",
    "RoundStarted",
    "Sampling",
    "TextPiece",
    "Tiers",
    "Usage",
    "convert",
    "load",
]

# where the names above are; the same as the imports for type checkers
_MODULES = {
    "msa.conversion": ("convert",),
    "msa.documents": ("Document", "Protocol", "ProtocolStrings"),
    "msa.engine": ("Engine",),
    "msa.errors": ("MSAError",),
    "msa.generation.options": ("AskOptions",),
    "msa.generation.sampling": ("Sampling",),
    "msa.generation.types": (
        "Answer",
        "DocumentRetrieved",
        "Done",
        "Event",
        "Hit",
        "Round",
        "RoundStarted",
        "TextPiece",
        "Usage",
    ),
    "msa.memory": ("AddProgress", "Memory"),
    "msa.model": ("DocumentMemory", "MSAConfig", "MSAForCausalLM", "MSAOutput", "MemoryView"),
    "msa.model.bundle": ("MSAModel",),
    "msa.routing": ("Tiers",),
    "msa.zoo": ("load",),
}


def __getattr__(name: str) -> Any:
    """A public name that has not been imported yet."""
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})


def _is_the_command() -> bool:
    """Whether this process is the installed command ``msa``: it imports what it needs, and help needs no torch."""
    return bool(getattr(sys, "argv", None)) and os.path.basename(sys.argv[0]) == "msa"


if not _is_the_command():  # transformers' Auto classes must know MSA from here on, which takes nearly all there is
    for _name in __all__:
        __getattr__(_name)
