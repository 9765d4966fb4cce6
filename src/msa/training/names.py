"""What a weight is, by its name."""

from __future__ import annotations

# what no backbone has: the routers, the routing bias
ROUTER_WORDS = (".router_", ".routing_alpha")


def is_router(name: str) -> bool:
    """Whether a parameter is a router's."""
    return any(word in name for word in ROUTER_WORDS)
