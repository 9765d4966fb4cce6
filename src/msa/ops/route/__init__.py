"""Routing (paper §3.2, Eq. 2): score every chunk against the question, every document by its chunks, keep the top k.

Axes: B rows, T tokens, Hq query heads, Hkv key/value heads, D head_dim, C chunks, N documents, k selected documents.
"""

from msa.ops.route.naive import route_naive
from msa.ops.route.tiled import route
from msa.ops.route.types import Routing, RoutingSpec

__all__ = ["Routing", "RoutingSpec", "route", "route_naive"]
