"""Whether the Triton kernel can score a question, asked where nothing else needs triton."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeVar

from torch import Tensor

from msa.ops.route.blocks import KeyBlock
from msa.ops.route.scan import has_gradients

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_unbuildable = threading.Event()  # the kernel, on this machine


class KernelBuildError(RuntimeError):
    """The kernel could not be compiled or loaded; it has computed nothing."""


def triton_scorer(query: Tensor, blocks: Sequence[KeyBlock]) -> ModuleType | None:
    """:mod:`msa.ops.route.triton_scorer` where it can score these blocks for this query, else None."""
    if query.device.type != "cuda" or _unbuildable.is_set() or has_gradients(query, list(blocks)):
        return None
    scorer = _scorer()
    return scorer if scorer is not None and scorer.is_supported(query, blocks) else None


def if_built(work: Callable[[], Result]) -> Result | None:
    """What the kernel computes; None where it cannot be built, and :func:`triton_scorer` finds none from then on.

    Whatever goes wrong with a kernel that could be built is raised.
    """
    try:
        return work()
    except KernelBuildError as error:
        if not _unbuildable.is_set():
            _unbuildable.set()
            logger.warning(
                "routing goes on without its Triton kernel, which is slower: %s. Triton needs a C compiler (gcc) and a "
                "folder that it can write to (TRITON_CACHE_DIR)",
                error,
            )
        return None


@functools.cache
def _scorer() -> ModuleType | None:
    try:
        return importlib.import_module("msa.ops.route.triton_scorer")
    except ImportError:  # triton comes with CUDA builds of torch, and not for every platform
        return None
