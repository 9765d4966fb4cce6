"""Pure tensor functions of the method: no modules, no files, every one beside its plain reference (``naive.py``)."""

from msa.ops.attend_memory import attend_memory
from msa.ops.pool_chunks import ChunkPooling, chunk_offsets_of, pool_chunks
from msa.ops.route import (
    ExactKeys,
    HalfKeys,
    KeyBlock,
    QuantizedKeys,
    Routing,
    RoutingSpec,
    Selection,
    halve_keys,
    quantize_keys,
    route,
    select,
)
from msa.ops.routing_loss import ROUTING_LOSSES, clamped_temperature, routing_divergence, routing_loss

__all__ = [
    "ROUTING_LOSSES",
    "ChunkPooling",
    "ExactKeys",
    "HalfKeys",
    "KeyBlock",
    "QuantizedKeys",
    "Routing",
    "RoutingSpec",
    "Selection",
    "attend_memory",
    "chunk_offsets_of",
    "clamped_temperature",
    "halve_keys",
    "pool_chunks",
    "quantize_keys",
    "route",
    "routing_divergence",
    "routing_loss",
    "select",
]
