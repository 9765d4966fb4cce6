"""Stage 1 where no gradient is asked for: pools in place, by tables made once a batch on the host.

The plain reference is :class:`msa.model.attention.DocumentReader`, which gradients pass through.

Axes: N documents, L tokens (padded), H hidden, Hkv key/value heads, D head_dim, C chunks of all documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.model import DocumentMemory
from msa.model.attention import MemorySparseAttention
from msa.ops.attend_memory import attend_causal


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
        self._padding = padding.to(device).unbind(1) if len(padding) else None
        self._real = real.to(device) if len(real) < len(sizes) else None
        self._sizes = sizes[real].to(device, torch.float32)

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


class InPlaceReader:
    """A batch of documents, each attending causally to itself alone; pooled chunks pile up in ``memory``.

    Real tokens come before the padding and never see it: that its keys and values become zero changes nothing.
    """

    def __init__(self, means: ChunkMeans, memory: DocumentMemory) -> None:
        self.means, self.memory = means, memory

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`."""
        if attention.is_router:
            self.keep(attention, hidden, k, v)
        return attend_causal(q, k, v)

    def keep(self, attention: MemorySparseAttention, hidden: Tensor, k: Tensor, v: Tensor) -> None:
        """Pool one router layer's k and v ``[N, Hkv, L, D]`` and normed input ``[N, L, H]`` into ``memory``."""
        layer = attention.layer
        keys = self.means.take(k.transpose(1, 2))
        self.memory.keys[layer] = keys
        self.memory.values[layer] = self.means.take(v.transpose(1, 2))
        pooled_hidden = self.means.take(hidden) if attention.decouple_router else hidden
        self.memory.routing_keys[layer] = attention.routing_key(pooled_hidden, keys)
