"""Key blocks laid side by side, so that a GPU scores many as one: every block costs a launch, whatever it holds.

Axes: C chunks of a block, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from msa.ops.route.blocks import ExactKeys, KeyBlock, KeyRows

_TENSORS = ("keys", "scale", "inverse_lengths")


def laid_side_by_side(blocks: Sequence[KeyBlock]) -> list[KeyBlock]:
    """The same blocks, their keys copied into one piece of memory in this order.

    Raises:
        ValueError: blocks that cannot be one: of different forms, shapes, dtypes or devices.
    """
    kinds = {_kind(block) for block in blocks}
    if len(kinds) > 1:
        raise ValueError(f"blocks of different kinds cannot be one: {', '.join(sorted(map(str, kinds)))}")
    if len(blocks) < 2:
        return [*blocks]
    sizes = [block.keys.shape[0] for block in blocks]
    moved = {name: torch.cat([vars(block)[name] for block in blocks]).split(sizes) for name in _tensors(blocks[0])}
    return [replace(block, **{name: moved[name][i] for name in moved}) for i, block in enumerate(blocks)]


def adjoined(blocks: Sequence[KeyBlock]) -> list[KeyBlock]:
    """The blocks, each run of them that lie side by side in memory as one block over them all; nothing is copied."""
    runs: list[list[KeyBlock]] = []
    for block in blocks:
        if runs and _follows(runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return [run[0] if len(run) == 1 else _over(run) for run in runs]


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """Stored keys of several blocks one after the other; see :class:`msa.ops.route.KeyRows`."""

    parts: Sequence[Tensor | KeyRows]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, Hkv, D)``."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Chunks ``[n]`` int64 on the CPU → ``[n, Hkv, D]``; each part reads its own."""
        ends = torch.tensor([part.shape[0] for part in self.parts]).cumsum(0)
        owners = torch.searchsorted(ends, rows, right=True)
        order = owners.argsort(stable=True)
        places = (rows - (ends - ends.diff(prepend=ends.new_zeros(1)))[owners])[order]
        own = places.split(owners.bincount(minlength=len(self.parts)).tolist())
        found = [part[mine].cpu() for part, mine in zip(self.parts, own, strict=True)]
        return torch.cat(found)[order.argsort()]


def _kind(block: KeyBlock) -> tuple[Any, ...]:
    """What blocks must have in common to be one."""
    keys = block.keys
    similarity = str(vars(block).get("similarity"))
    return type(block).__name__, similarity, tuple(keys.shape[1:]), keys.dtype, keys.device, *_tensors(block)


def _tensors(block: KeyBlock) -> list[str]:
    """Names of the tensors with a row for every chunk."""
    return [name for name in _TENSORS if isinstance(vars(block).get(name), Tensor)]


def _follows(before: KeyBlock, block: KeyBlock) -> bool:
    """Whether a block begins in memory where the one before ends, and both can be one."""
    if _kind(before) != _kind(block) or (before.stored is None) != (block.stored is None):
        return False
    return all(_adjoin(vars(before)[name], vars(block)[name]) for name in _tensors(block))


def _adjoin(before: Tensor, tensor: Tensor) -> bool:
    same = before.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    whole = before.is_contiguous() and tensor.is_contiguous()
    return same and whole and before.storage_offset() + before.numel() == tensor.storage_offset()


def _over(run: Sequence[KeyBlock]) -> KeyBlock:
    """One block over a run's memory."""
    first = run[0]
    count = sum(block.keys.shape[0] for block in run)
    changed: dict[str, Any] = {}
    for name in _tensors(first):
        tensor = vars(first)[name]
        changed[name] = tensor.as_strided((count, *tensor.shape[1:]), tensor.stride(), tensor.storage_offset())
    if first.stored is not None:
        changed["stored"] = JoinedRows([block.stored for block in run if block.stored is not None])
    lengths = [block.longest for block in run if isinstance(block, ExactKeys) and block.longest is not None]
    if lengths:
        changed["longest"] = max(lengths) if len(lengths) == len(run) else None
    return replace(first, **changed)
