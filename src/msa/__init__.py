"""Memory Sparse Attention: language models with a memory inside their attention.

>>> import msa
>>> msa.MSAConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=4).router_layers
[2, 3]
"""

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
