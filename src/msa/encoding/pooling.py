"""Stage 1 where no gradient is asked for: pools in place, by tables made once a batch on the host.

The plain reference is :func:`msa.ops.pool_chunks`, which gradients pass through.

Axes: N documents, L tokens (padded), C chunks of all documents, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.transfer import sent


class ChunkMeans:
    """Means of the chunks of one batch: :func:`msa.ops.pool_chunks` where the same documents are pooled many times.

    The states are neither masked nor padded into copies, and nothing is read back from the device: a GPU is never
    waited for.

    Args:
        lengths: tokens of each document ``[N]``, int64, at least 1, on the CPU; the batch is as wide as the longest.
        chunk_size: tokens per chunk.
        device: where the states are.
    """

    def __init__(self, lengths: Tensor, chunk_size: int, device: torch.device) -> None:
        width = int(lengths.max())
        padding = (torch.arange(width) >= lengths[:, None]).nonzero()
        # tokens in each chunk of each document, 0 where there is none
        sizes = (lengths[:, None] - torch.arange(0, width, chunk_size)).clamp(0, chunk_size).flatten()
        real = sizes.nonzero()[:, 0]
        self._chunk_size = chunk_size
        self._padding = sent(padding, device).unbind(1) if len(padding) else None
        self._real = sent(real, device) if len(real) < len(sizes) else None
        self._sizes = sent(sizes[real].float(), device)

    def take(self, states: Tensor) -> Tensor:
        """Chunk means ``[C, *F]``, in ``states.dtype`` and summed in float32, of token states ``[N, L, *F]``.

        The states' padding becomes zero in place, whatever it held.
        """
        if self._padding is not None:
            states[self._padding] = 0
        whole = states.shape[1] // self._chunk_size * self._chunk_size
        sums = states[:, :whole].unflatten(1, (-1, self._chunk_size)).sum(2, dtype=torch.float32)
        if whole < states.shape[1]:
            # as many rows as a whole chunk: then they are added up in the same order as the reference adds them
            rest = states.new_zeros(states.shape[0], self._chunk_size, *states.shape[2:])
            rest[:, : states.shape[1] - whole] = states[:, whole:]
            sums = torch.cat((sums, rest.sum(1, keepdim=True, dtype=torch.float32)), dim=1)
        sums = sums.flatten(0, 1)
        if self._real is not None:
            sums = sums[self._real]
        return sums.div_(self._sizes.view(-1, *[1] * (sums.dim() - 1))).to(states.dtype)
