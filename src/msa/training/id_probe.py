"""Are ids legible in the latents? A linear probe that is trained along, and whose loss makes them so.

A retrieval row reads a document's id through attention, a few digits a row. The probe reads every digit in the content
values of every chunk, so the document side learns in each step, from all of its chunks, to spread the id over them
instead of leaving it to the few tokens that spell it, of which a mean over 64 keeps little. It serves training alone.

Axes: N documents, C chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msa.model import DocumentMemory, MSAConfig

# digits of the longest ids, and the classes of one place: ten digits, or none
PLACES, _CLASSES = 7, 11


class IdProbe(nn.Module):
    """A linear map: a chunk's content values in all router layers → its document's digits, place by place."""

    def __init__(self, config: MSAConfig) -> None:
        super().__init__()
        assert isinstance(config.router_layers, list)
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        size = len(config.router_layers) * config.num_key_value_heads * config.head_dim
        self.head = nn.Linear(size, PLACES * _CLASSES, bias=False)

    def forward(self, memory: DocumentMemory, numbers: Tensor) -> Tensor:
        """Mean cross entropy over chunks and places; ``numbers`` ``[N]`` int64 of at most 7 digits."""
        targets = digits_of(numbers).to(memory.chunk_offsets.device)
        targets = targets.repeat_interleave(memory.chunk_offsets.diff(), dim=0)  # [C, places]
        values = torch.cat([memory.values[layer].flatten(1) for layer in sorted(memory.values)], dim=1)
        logits = self.head(values.to(self.head.weight.dtype)).view(-1, _CLASSES)
        return nn.functional.cross_entropy(logits.float(), targets.flatten())


def digits_of(numbers: Tensor) -> Tensor:
    """Digits of ``numbers`` ``[N]`` from the first on, ``[N, 7]``; 10 where a number has no further digit.

    >>> digits_of(torch.tensor([40, 7])).tolist()
    [[4, 0, 10, 10, 10, 10, 10], [7, 10, 10, 10, 10, 10, 10]]
    """
    rows = [[int(digit) for digit in str(number)] for number in numbers.tolist()]
    return torch.tensor([row + [10] * (PLACES - len(row)) for row in rows], device=numbers.device)
