"""The processes that hold one memory together, and the two exchanges they need.

Everything travels as bytes (``uint8``), on the CPU under gloo and on the GPU under NCCL; nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from msa.errors import ParallelError

if TYPE_CHECKING:
    from msa.parallel.encoding import EncodingLeader

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 60.0
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """A process group as the memory uses it; a context manager that closes the default group.

    Every method is collective: all ranks call it, in the same order, with the same sizes. A rank that died or does not
    answer within the group's timeout raises :class:`msa.errors.ParallelError` on the others; the group is then of no
    more use and all ranks must be started again. Under NCCL this needs ``TORCH_NCCL_BLOCKING_WAIT=1`` set before the
    group is made, as :func:`init_from_environment` does: without it a timeout ends the process.

    Args:
        group: an initialised group of ``torch.distributed`` with one backend; None: the default group.

    Attributes:
        rank, world: this process's place in the group, and the group's size.
        device: where exchanged bytes lie: the current GPU under NCCL, else the CPU.
        received_bytes: bytes that came from other ranks so far, padding never included.
        encoding: what leads the others on rank 0 while they help it encode.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank: int = dist.get_rank(group)
        self.world: int = dist.get_world_size(group)
        nccl = "nccl" in dist.get_backend(group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.received_bytes = 0
        self.encoding: EncodingLeader | None = None
        self._first = 0 if group is None else dist.get_global_rank(group, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # after a failure the others may be gone, and taking leave of them could wait for ever
        if error is None and self.group is None:
            dist.destroy_process_group()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, of the same shape, dtype and device as every rank's own; no gradient flows through it."""
        if self.world == 1:
            return tensor.detach()
        payload = as_bytes(tensor).to(self.device, copy=True)
        with self._failures("hear from rank 0" if self.rank else "reach the other ranks"):
            dist.broadcast(payload, src=self._first, group=self.group)
        if self.rank:
            self.received_bytes += payload.numel()
        return from_bytes(payload.to(tensor.device), tensor.dtype, tensor.shape)

    def exchange(self, mine: Tensor, sizes: Sequence[int], *, first_only: bool = False) -> list[Tensor]:
        """Give every rank's bytes to every rank.

        An all-to-all of uneven pieces, so that only bytes that mean something travel; a padded all-gather would
        move world x the largest piece.

        Args:
            mine: this rank's bytes ``[sizes[rank]]`` uint8.
            sizes: how many bytes each rank gives, known to all.
            first_only: give them to rank 0 alone; the others get empty pieces.

        Returns:
            Each rank's bytes, on the device of ``mine``.
        """
        assert mine.numel() == sizes[self.rank], "every rank must give as many bytes as it announced"
        if self.world == 1:
            return [mine]
        gets = [not first_only or rank == 0 for rank in range(self.world)]
        sent = [len(mine) if get else 0 for get in gets]
        received = [size if gets[self.rank] else 0 for size in sizes]
        payload = mine.to(self.device).repeat(sum(gets))
        out = torch.empty(sum(received), dtype=torch.uint8, device=self.device)
        with self._failures("exchange with the other ranks"):
            dist.all_to_all_single(out, payload, received, sent, group=self.group)
        self.received_bytes += sum(received) - received[self.rank]
        return list(out.to(mine.device).split(received))

    def gather(self, mine: Tensor) -> list[Tensor]:
        """Every rank's tensor; dtype and all but the first dimension are the same everywhere."""
        length = torch.tensor([len(mine)])
        lengths = [
            int(from_bytes(piece, torch.int64, (1,))) for piece in self.exchange(as_bytes(length), [8] * self.world)
        ]
        row = mine.element_size() * mine.shape[1:].numel()
        pieces = self.exchange(as_bytes(mine), [count * row for count in lengths])
        return [
            from_bytes(piece, mine.dtype, (count, *mine.shape[1:]))
            for piece, count in zip(pieces, lengths, strict=True)
        ]

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's connection and timeout errors derive from it
            raise ParallelError(
                f"rank {self.rank} of {self.world} could not {what}: another rank ended or did not answer within the "
                f"group's timeout ({error}). Look at the other ranks' messages, then start all ranks again"
            ) from error


def init_from_environment(timeout_s: float = DEFAULT_TIMEOUT_S, device: torch.device | str | None = None) -> Ranks:
    """Join the processes that ``torchrun`` started, on one machine or several.

    ``torchrun --nproc-per-node 4 script.py`` on one; with ``--nnodes 2 --node-rank 0 --master-addr HOST`` on each of
    several. torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Args:
        timeout_s: seconds to wait for the others, at the start and in every exchange.
        device: what this rank computes on, which decides the backend: NCCL for a GPU, else gloo. None: GPU number
            LOCAL_RANK if there are GPUs, else the CPU.

    Returns:
        The ranks, usable as a context manager; with NCCL the GPU is made the current one.

    Raises:
        ParallelError: a variable is missing, or some rank did not appear in time.
        ValueError: ``timeout_s`` is not positive.
    """
    if timeout_s <= 0:
        raise ValueError(f"timeout_s must be positive, got {timeout_s}")
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        size = os.environ.get("WORLD_SIZE")
        # job schedulers set it too
        alone = f", or unset WORLD_SIZE, which is {size} and means that there are so many processes" if size else ""
        raise ParallelError(
            f"{', '.join(missing)} not set; start the program with torchrun --nproc-per-node RANKS{alone}"
        )
    if device is None:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a timeout raises here instead of ending the process
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise ParallelError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {timeout_s:g} s ({error}). "
            "Check that all ranks were started and that this address can be reached from each"
        ) from error
    return Ranks()


def shard_of(documents: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """The documents that a rank holds: contiguous runs in rank order whose lengths differ by at most one.

    >>> [list(shard_of("abcdefg", rank, 3)) for rank in range(3)]
    [['a', 'b'], ['c', 'd'], ['e', 'f', 'g']]

    Raises:
        ValueError: no such rank.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
    count = len(documents)
    return documents[count * rank // world : count * (rank + 1) // world]


def as_bytes(tensor: Tensor) -> Tensor:
    """Any tensor as its bytes ``[n]`` uint8."""
    if not tensor.numel():  # its strides may be anything
        return torch.zeros(0, dtype=torch.uint8, device=tensor.device)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def from_bytes(data: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor that :func:`as_bytes` took apart."""
    return data.clone().view(dtype).view(*shape)  # a piece of a buffer need not be aligned; its copy is
