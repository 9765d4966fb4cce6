"""Documents of earlier steps as distractors: what makes a step's small memory behave like a large one.

A step encodes a few dozen documents, but a memory at work holds many thousands, and the best of so many wrong ones is
far better than the best of a few. Latents of past steps' documents cost nothing to keep, and change slowly: they are
routed to and attended to beside the step's own, without gradients (cross-batch memory, arXiv 1912.06798).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from msa.model import DocumentMemory


class PastDocuments:
    """A queue of latents, oldest out first.

    Attributes:
        memory: the latents, oldest document first; None: none yet.
    """

    def __init__(self) -> None:
        self.memory: DocumentMemory | None = None

    def clear(self) -> None:
        """Forget all: what was pooled into chunks of another size is of no use."""
        self.memory = None

    @torch.no_grad()
    def add(self, memory: DocumentMemory, limit: int) -> None:
        """Put a step's documents at the end and keep the last ``limit``."""
        if not limit:
            self.memory = None
            return
        parts = [self.memory] if self.memory is not None else []
        joined = DocumentMemory.concatenate([*parts, memory.detach()])
        count = joined.num_documents
        self.memory = joined.select(torch.arange(max(count - limit, 0), count, device=joined.chunk_offsets.device))

    def save(self, path: Path) -> None:
        """Write the queue for :meth:`load`; without documents there is no file."""
        if self.memory is not None:
            save_file(self.memory.tensors(), path)

    def load(self, path: Path, device: torch.device) -> None:
        """Read back what :meth:`save` wrote."""
        self.memory = DocumentMemory.from_tensors(load_file(path, device=str(device))) if path.exists() else None
