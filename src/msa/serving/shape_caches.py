"""How many shapes of matrix products a server's process remembers on a CPU.

torch hands bfloat16 products to oneDNN, which prepares every shape of them in less than a millisecond and keeps the
last 1024, of 0.27 MiB each; torch keeps 1024 descriptions of about that size as well, for each thread. Prompts and
documents of ever new lengths fill both slowly, to 540 MiB in all, which looks like a leak:
https://github.com/pytorch/pytorch/issues/98688.
"""

from __future__ import annotations

import os

# as many as the passes of 18 lengths or numbers of rows; a pass of a model multiplies by about 7 shapes of weights
PREPARED = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
# each product is looked up in the other cache too: this one saves nothing
DESCRIBED = "LRU_CACHE_CAPACITY"
CAPACITIES = {PREPARED: "128", DESCRIBED: "1"}


def bound_shape_caches() -> None:
    """Let both caches stay small, where the environment says nothing else.

    They read their variables at the process's first product: what is set later has no effect.
    """
    for name, capacity in CAPACITIES.items():
        os.environ.setdefault(name, capacity)
