"""Segments: immutable safetensors files that hold the latents of the parts of one commit.

Axes: n parts, C chunks, n_kv key-value heads, D head dimension.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa.bank.schema import KINDS, BankSpec, Kind, layout_problem
from msa.errors import BankCorruptError, BankError

SEGMENTS = "segments"
SUFFIX = ".safetensors"
TEMPORARY_SUFFIX = ".tmp"
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
_HEADER_ALIGNMENT = 64
_READ_BYTES = 1 << 22

Pieces = Callable[[Kind, int], Iterable[Tensor]]


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """What the catalog knows of a segment file; ``checksum`` is the SHA-256 of the whole file, in hex."""

    name: str
    checksum: str
    num_bytes: int
    num_parts: int
    num_chunks: int

    @property
    def file_name(self) -> str:
        """Path of the file inside the memory folder."""
        return f"{SEGMENTS}/{self.name}{SUFFIX}"


def tensor_name(kind: Kind, layer: int) -> str:
    """Name of a tensor inside a segment file.

    >>> tensor_name("keys", 3)
    'layers.3.keys'
    """
    return f"layers.{layer}.{kind}"


class Segment:
    """An open segment; its tensors are memory-mapped, so opening one reads only the header and the offsets.

    Attributes:
        name: the segment's name in the catalog.
        numbers: ``[n]`` int64, ascending; deleted parts stay listed until the bank is compacted.
        chunk_offsets: ``[n + 1]`` int64; part ``i`` owns chunks ``chunk_offsets[i]:chunk_offsets[i + 1]``.

    Raises:
        BankCorruptError: the file is missing, has another size, or is not the segment the catalog describes.
    """

    def __init__(self, folder: Path, info: SegmentInfo, spec: BankSpec) -> None:
        self.name = info.name
        file = folder / info.file_name
        try:
            found = file.stat().st_size
            if found != info.num_bytes:
                raise BankCorruptError(f"{file} is damaged: expected {info.num_bytes:,} bytes, found {found:,}")
            self._handle = safe_open(str(file), framework="pt")
            self._check_header(info, spec)
            # Copied, so that routing tables stay readable whatever becomes of the mapping.
            self.numbers: Tensor = self._handle.get_tensor("numbers").clone()
            self.chunk_offsets: Tensor = self._handle.get_tensor("chunk_offsets").clone()
        except FileNotFoundError as error:
            raise BankCorruptError(f"{file} is missing: restore it from a copy, or add its documents again") from error
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise BankCorruptError(f"{file} is damaged: {error}") from error
        problem = layout_problem(self.numbers, self.chunk_offsets)
        if problem or int(self.chunk_offsets[-1]) != info.num_chunks:
            raise BankCorruptError(f"{file} is damaged: {problem or 'its offsets do not end at its last chunk'}")

    def tensor(self, kind: Kind, layer: int) -> Tensor:
        """Return one kind of one layer, ``[C, n_kv, D]``, memory-mapped: read pages load on first use."""
        tensor: Tensor = self._handle.get_tensor(tensor_name(kind, layer))
        return tensor

    def _check_header(self, info: SegmentInfo, spec: BankSpec) -> None:
        expected = {name: (_CODES[dtype], list(shape)) for name, dtype, shape in _entries(spec, info)}
        found = {}
        for name in self._handle.keys():  # noqa: SIM118 - the handle is no mapping
            part = self._handle.get_slice(name)
            found[name] = (part.get_dtype(), list(part.get_shape()))
        if found != expected:
            wrong = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise ValueError(f"tensor {wrong!r} should be {expected.get(wrong)}, found {found.get(wrong)}")


def write_segment(
    folder: Path, name: str, *, spec: BankSpec, numbers: Tensor, chunk_offsets: Tensor, pieces: Pieces
) -> SegmentInfo:
    """Write a segment durably: temporary name, fsync, rename, fsync of the folder.

    Args:
        folder: the memory folder.
        name: the segment's name, never used before.
        spec: shape of the latents.
        numbers: ``[n]`` int64.
        chunk_offsets: ``[n + 1]`` int64.
        pieces: gives, for a kind and a layer, tensors ``[c, n_kv, D]`` that concatenate to ``[C, n_kv, D]``;
            one piece is in memory at a time.

    Raises:
        BankError: the disk is full or failed; neither the temporary nor the final file is left behind.
    """
    counts = SegmentInfo(name=name, checksum="", num_bytes=0, num_parts=len(numbers), num_chunks=int(chunk_offsets[-1]))
    file = folder / counts.file_name
    temporary = file.with_name(f".{file.name}{TEMPORARY_SUFFIX}")
    try:
        file.parent.mkdir(exist_ok=True)
        checksum, num_bytes = _write_file(temporary, spec, counts, numbers, chunk_offsets, pieces)
        os.replace(temporary, file)
        fsync_folder(file.parent)
    except BaseException as error:
        for leftover in (temporary, file):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BankError(
                f"writing {file} failed ({error.strerror or error}). The memory keeps its previous state; "
                "free disk space or repair the disk, then try again"
            ) from error
        raise
    return SegmentInfo(
        name=name, checksum=checksum, num_bytes=num_bytes, num_parts=counts.num_parts, num_chunks=counts.num_chunks
    )


def _write_file(
    file: Path, spec: BankSpec, counts: SegmentInfo, numbers: Tensor, chunk_offsets: Tensor, pieces: Pieces
) -> tuple[str, int]:
    header = _header(spec, counts)
    digest = hashlib.sha256()
    num_bytes = 0
    with open(file, "wb") as out:

        def write(data: bytes | memoryview) -> None:
            nonlocal num_bytes
            digest.update(data)
            num_bytes += len(data)
            out.write(data)

        write(header)
        write(_bytes(numbers))
        write(_bytes(chunk_offsets))
        for layer in spec.layers:
            for kind in KINDS:
                for piece in pieces(kind, layer):
                    write(_bytes(piece))
        expected = len(header) + sum(_num_bytes(dtype, shape) for _, dtype, shape in _entries(spec, counts))
        if num_bytes != expected:
            raise ValueError(f"the pieces of segment {counts.name} hold {num_bytes:,} bytes, expected {expected:,}")
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest(), num_bytes


def file_checksum(file: Path) -> str:
    """Return the SHA-256 of a file in hex, reading a few megabytes at a time."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(spec: BankSpec, counts: SegmentInfo) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Every tensor of a segment in file order; int64 first, so that all are aligned."""
    latents = (counts.num_chunks, spec.num_key_value_heads, spec.head_dim)
    return [
        ("numbers", torch.int64, (counts.num_parts,)),
        ("chunk_offsets", torch.int64, (counts.num_parts + 1,)),
        *((tensor_name(kind, layer), spec.torch_dtype, latents) for layer in spec.layers for kind in KINDS),
    ]


def _header(spec: BankSpec, counts: SegmentInfo) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, dtype, shape in _entries(spec, counts):
        end = begin + _num_bytes(dtype, shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True)
class BankSnapshot:
    """One state of a bank: its version, the numbers of the present parts ``[n]`` ascending, and its segments."""

    version: int
    live_numbers: NDArray[np.int64]
    segments: tuple[Segment, ...]
