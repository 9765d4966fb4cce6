"""Pure tensor functions of the method: no modules, no files, every one beside its plain reference (``naive.py``)."""

from msa.ops.attend_memory import attend_memory
from msa.ops.pool_chunks import chunk_offsets_of, pool_chunks
from msa.ops.route import Routing, RoutingSpec, route
from msa.ops.routing_loss import ROUTING_LOSSES, routing_divergence, routing_loss

__all__ = [
    "ROUTING_LOSSES",
    "Routing",
    "RoutingSpec",
    "attend_memory",
    "chunk_offsets_of",
    "pool_chunks",
    "route",
    "routing_divergence",
    "routing_loss",
]
