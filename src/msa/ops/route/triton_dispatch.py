"""Whether the Triton kernel can score a question, asked where nothing else needs triton."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from msa.ops.route.blocks import KeyBlock
from msa.ops.route.scan import has_gradients


def triton_scorer(query: Tensor, blocks: Sequence[KeyBlock]) -> ModuleType | None:
    """:mod:`msa.ops.route.triton_scorer` where it can score these blocks for this query, else None."""
    if query.device.type != "cuda" or has_gradients(query, list(blocks)):
        return None
    scorer = _scorer()
    return scorer if scorer is not None and scorer.is_supported(query, blocks) else None


@functools.cache
def _scorer() -> ModuleType | None:
    try:
        return importlib.import_module("msa.ops.route.triton_scorer")
    except ImportError:  # triton comes with CUDA builds of torch, and not for every platform
        return None
