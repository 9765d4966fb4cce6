"""Keys made ready for one similarity, in the forms of :mod:`msa.ops.route.blocks`; float32 only a tile at a time.

Axes: C chunks, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.ops.route.blocks import ExactKeys, HalfKeys, QuantizedKeys, check_similarity, longest_of, prepared_tiles


def measure_keys(keys: Tensor, similarity: str) -> ExactKeys:
    """Keys ``[C, Hkv, D]`` as they are, with the lengths that a faster comparison of bfloat16 needs.

    Raises:
        ValueError: an unknown similarity.

    >>> measure_keys(torch.tensor([[[3.0, 4.0]]]), "dot").longest
    5.00005
    """
    check_similarity(similarity)
    if similarity == "dot":
        return ExactKeys(keys, longest=longest_of(ExactKeys(keys.detach())))
    inverse = torch.empty(keys.shape[:2], dtype=torch.bfloat16, device=keys.device)
    for start, rows in prepared_tiles(ExactKeys(keys.detach()), "dot"):
        inverse[start : start + len(rows)] = rows.norm(dim=-1).clamp_(min=1e-12).reciprocal_()
    return ExactKeys(keys, inverse)


def halve_keys(
    keys: Tensor, similarity: str, dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None
) -> HalfKeys:
    """Prepare keys ``[C, Hkv, D]`` for a similarity and round them to ``dtype``; float32 only a tile at a time.

    ``out`` of that shape and dtype takes them; it may be ``keys``, which are then no longer what they were.

    Raises:
        ValueError: a dtype that is not bfloat16 or float16, or an unknown similarity.

    >>> halve_keys(torch.tensor([[[3.0, 4.0]]]), "cosine", torch.float16).keys.tolist()
    [[[0.60009765625, 0.7998046875]]]
    """
    out = torch.empty(keys.shape, dtype=dtype, device=keys.device) if out is None else out
    halves = HalfKeys(out, similarity)
    for start, rows in prepared_tiles(ExactKeys(keys.detach()), similarity):
        halves.keys[start : start + len(rows)] = rows
    return halves


def quantize_keys(keys: Tensor, similarity: str) -> QuantizedKeys:
    """Prepare keys ``[C, Hkv, D]`` for a similarity and round each chunk to int8 steps of its largest value / 127.

    Float32 copies exist only a tile at a time.

    Raises:
        ValueError: an unknown similarity.

    >>> quantized = quantize_keys(torch.tensor([[[127.0, -64.0]], [[0.0, 0.5]]]), "dot")
    >>> quantized.keys.tolist(), quantized.scale.tolist()
    ([[[127, -64]], [[0, 127]]], [1.0, 0.003937007859349251])
    """
    num_chunks = keys.shape[0]
    quantized = QuantizedKeys(
        torch.empty(keys.shape, dtype=torch.int8, device=keys.device),
        torch.empty(num_chunks, dtype=torch.float32, device=keys.device),
        similarity,
    )
    for start, rows in prepared_tiles(ExactKeys(keys.detach()), similarity):
        step = rows.abs().amax((1, 2)) / 127
        step = torch.where(step > 0, step, 1.0)  # a chunk of zeros
        quantized.keys[start : start + len(rows)] = (rows / step[:, None, None]).round_().clamp_(-127, 127)
        quantized.scale[start : start + len(rows)] = step
    return quantized
