"""Routing (paper §3.2, Eq. 2): score every chunk against the question, every document by its chunks, keep the top k.

Axes: B rows, T tokens, Hq query heads, Hkv key/value heads, D head_dim, C chunks, N documents, k selected documents.
"""

from msa.ops.route.blocks import ExactKeys, HalfKeys, KeyBlock, KeyRows, QuantizedKeys
from msa.ops.route.naive import route_naive
from msa.ops.route.prepare import halve_keys, measure_keys, quantize_keys
from msa.ops.route.threads import on_threads
from msa.ops.route.tiled import Selection, route, select
from msa.ops.route.types import Routing, RoutingSpec, best_documents

__all__ = [
    "ExactKeys",
    "HalfKeys",
    "KeyBlock",
    "KeyRows",
    "QuantizedKeys",
    "Routing",
    "RoutingSpec",
    "Selection",
    "best_documents",
    "halve_keys",
    "measure_keys",
    "on_threads",
    "quantize_keys",
    "route",
    "route_naive",
    "select",
]
