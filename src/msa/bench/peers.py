"""Other libraries' exact searches over the same keys, on CPUs and where they are installed.

Axes: T tokens, E = Hkv·D numbers of a token's summed query heads and of a chunk's keys, C chunks, N documents. Each
peer multiplies ``[T, E]`` with ``[C, E]``: routing's product, in float32.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

FAISS, MAXSIM = "faiss flat", "maxsim-cpu (another score)"
PEERS = {FAISS: ("faiss", "faiss-cpu"), MAXSIM: ("maxsim_cpu", "maxsim-cpu")}
"""Name → module and package."""
MAXSIM_PRODUCT, MAXSIM_BLOCK = 64**3, 64
"""maxsim-cpu 0.1.0 multiplies the question with blocks of 64 vectors. Its Linux wheels have libxsmm, but not the BLAS
that libxsmm leaves larger products to: with more multiplications in a block it crashes or gives wrong scores."""
THREADS = "RAYON_NUM_THREADS"


def why_missing(name: str) -> str | None:
    """Why a peer cannot run here; None where it can."""
    module, package = PEERS[name]
    try:
        import_module(module)
    except ImportError:
        return f"not installed: pip install {package}"
    capability = torch.backends.cpu.get_cpu_capability()
    if name == MAXSIM and platform.machine() in ("x86_64", "AMD64") and not capability.startswith("AVX"):
        return "needs a processor with AVX2"
    return None


def peers_here() -> tuple[list[str], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    reasons = {name: why_missing(name) for name in PEERS}
    return [name for name, why in reasons.items() if not why], {name: why for name, why in reasons.items() if why}


def peer_search(name: str, rows: Tensor, keys: Tensor, per_document: int, count: int) -> Callable[[], list[int]]:
    """A call that selects the best documents by a peer that is not missing.

    Args:
        name: one of :data:`PEERS`.
        rows: ``[T, E]`` float32.
        keys: ``[C, E]`` float32.
        per_document: chunks of a document; the last one may have fewer.
        count: how many documents, at most.

    Raises:
        ValueError: maxsim-cpu cannot multiply even one token with so long a document.
    """
    rows, keys = rows.contiguous(), keys.contiguous()
    if name == FAISS:
        return _faiss_search(rows, keys, per_document, count)
    scorer = maxsim_scorer(rows, keys, per_document)

    def best() -> list[int]:
        scores = scorer()
        return scores.topk(min(count, len(scores))).indices.tolist()

    return best


def _faiss_search(rows: Tensor, keys: Tensor, per_document: int, count: int) -> Callable[[], list[int]]:
    """Routing's own selection: each token is searched for by itself, for as many chunks as make it exact."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys.numpy())
    enough = min(count * per_document, keys.shape[0])

    def best() -> list[int]:
        scores, chunks = (torch.from_numpy(found).flatten() for found in index.search(rows.numpy(), enough))
        documents: dict[int, None] = {}
        for chunk in chunks[scores.argsort(descending=True)].tolist():
            documents[chunk // per_document] = None
            if len(documents) == count:
                break
        return list(documents)

    return best


def maxsim_scorer(rows: Tensor, keys: Tensor, per_document: int) -> Callable[[], Tensor]:
    """A call that gives the MaxSim of every document ``[N]``: the sum over tokens of the best product with its chunks.

    A peer in work, not in result: routing's score is the maximum over tokens as well, so other documents may be best.
    Where a question is too long for :data:`MAXSIM_PRODUCT`, parts of it are scored and added.

    Args:
        rows: ``[T, E]`` float32, contiguous.
        keys: ``[C, E]`` float32, contiguous.
        per_document: chunks of a document; the last one may have fewer.

    Raises:
        ValueError: even one token is too long for it.
    """
    maxsim: Any = import_module("maxsim_cpu")
    _start_maxsim_threads(maxsim)
    most = len(rows)
    if sys.platform != "darwin":  # there it multiplies by Apple's library, whatever the size
        most = MAXSIM_PRODUCT // (min(per_document, MAXSIM_BLOCK) * keys.shape[1])
    if not most:
        raise ValueError(f"maxsim-cpu cannot multiply documents of {per_document} x {keys.shape[1]} numbers")
    parts = [part.numpy() for part in rows.split(most)]
    whole = len(keys) // per_document
    documents = keys[: whole * per_document].view(whole, per_document, keys.shape[1]).numpy()
    last = [keys[whole * per_document :].numpy()]

    def scores() -> Tensor:
        found = torch.from_numpy(sum(maxsim.maxsim_scores(part, documents) for part in parts))
        if not last[0].size:
            return found
        return torch.cat([found, torch.from_numpy(sum(maxsim.maxsim_scores_variable(part, last) for part in parts))])

    return scores


def _start_maxsim_threads(maxsim: Any) -> None:
    """Let it have as many threads as torch has: it reads the variable at its first call; tokenizers reads it, too."""
    before = os.environ.pop(THREADS, None)
    os.environ[THREADS] = str(torch.get_num_threads())
    try:
        maxsim.maxsim_scores(torch.ones(1, 1).numpy(), torch.ones(1, 1, 1).numpy())
    finally:
        del os.environ[THREADS]
        os.environ.update({THREADS: before} if before is not None else {})
