"""Attention written as Eq. 4 reads; the reference for :func:`msa.ops.attend_memory.attend_memory`."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_memory_naive(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Same arguments and result as :func:`msa.ops.attend_memory.attend_memory`, computed in float32."""
    group_size = query.shape[1] // keys.shape[1]
    k = keys.float().repeat_interleave(group_size, dim=1)
    v = values.float().repeat_interleave(group_size, dim=1)
    logits = torch.einsum("bhtd,bhsd->bhts", query.float(), k) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias.float()
    return torch.einsum("bhts,bhsd->bthd", logits.softmax(-1), v).to(query.dtype)
