"""Attention over the sparse context [prefix | selected content K/V | local K/V] (paper, Eq. 3-4).

Axes: B rows, Hq query heads, Hkv key/value heads, T query tokens, S context columns, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.attend_memory.naive import attend_memory_naive

__all__ = ["attend_memory", "attend_memory_naive"]


def attend_memory(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention with grouped queries over an explicit context.

    Args:
        query: ``[B, Hq, T, D]``, RoPE applied.
        keys: ``[B, Hkv, S, D]``, RoPE applied; columns in any order.
        values: ``[B, Hkv, S, D]``.
        bias: added to the logits, broadcastable to ``[B, Hq, T, S]``, ``query.dtype``; −inf hides a column. None where
            every token sees every column, as in decoding.

    Returns:
        ``[B, T, Hq, D]`` in ``query.dtype``.
    """
    num_heads, num_kv_heads = query.shape[1], keys.shape[1]
    if query.shape[2] == 1 and (bias is None or bias.shape[1] == 1):
        # one token: the heads of a group are so many rows over the same keys
        rows = query.reshape(query.shape[0], num_kv_heads, num_heads // num_kv_heads, query.shape[3])
        out = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=bias)
        return out.reshape(query.shape[0], 1, num_heads, query.shape[3])
    grouped = num_heads != num_kv_heads
    if grouped and bias is not None and query.is_cuda and torch.is_grad_enabled():
        # CUDA's memory-efficient kernel takes a bias but no groups; without it every layer's float32 scores stay
        keys, values = (x.repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (keys, values))
        grouped = False
    out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of tokens ``[B, H, T, D]`` over themselves; returns ``[B, T, Hq, D]``."""
    grouped = query.shape[1] != keys.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=grouped)
    return out.transpose(1, 2)
