"""Latents files: immutable safetensors with the pooled states of the parts of one segment, a checksum per tensor.

Axes: n parts, C chunks, n_kv key-value heads, D head dimension.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa.bank.files import checksum, unreadable, written_durably
from msa.bank.manifest import FileInfo, SegmentInfo, latents_name
from msa.bank.schema import BankSpec, Kind, layout_problem
from msa.errors import BankCorruptError

_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.int8: "I8"}
_HEADER_ALIGNMENT = 64
_CHECKSUM_KEY = "xxh3-128 of {}"
_UNKNOWN = "0" * 32
_BLOCK_BYTES = 1 << 22
_READ_BYTES = 1 << 28  # of one read; more than 2 GiB it would not do
_READERS = 16  # reads of the disk that are under way at the same time

Pieces = Callable[[Kind, int], Iterable[Tensor]]


def tensor_name(kind: Kind, layer: int) -> str:
    """Name of a tensor inside a latents file.

    >>> tensor_name("keys", 3)
    'layers.3.keys'
    """
    return f"layers.{layer}.{kind}"


class LatentsFile:
    """An open latents file; its tensors are memory-mapped, so opening one reads only the header and the offsets.

    Attributes:
        numbers: ``[n]`` int64, ascending; deleted parts stay listed until the memory is compacted.
        chunk_offsets: ``[n + 1]`` int64; part ``i`` owns chunks ``chunk_offsets[i]:chunk_offsets[i + 1]``.
        superseded: ``[s]`` int64, as in the segment's documents: a second copy, so that damage to either file never
            brings back what was deleted or replaced.

    Raises:
        BankCorruptError: the file is missing, has another size, or is not what the manifest describes.
        BankError: it cannot be read at present; see :func:`msa.bank.files.unreadable`.
    """

    def __init__(self, folder: Path, info: SegmentInfo, spec: BankSpec) -> None:
        self.file = folder / latents_name(info.name)
        try:
            self._checksums, self._places = _checked_header(self.file, info, spec)
            self._mapped: dict[str, Tensor] = {}
            self._descriptor = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # what is beside a row is of no use
            self._handle = _opened_to_map(self.file)
            # copied, so that routing tables stay readable whatever becomes of the mapping
            self.numbers = self._checked("numbers").clone()
            self.chunk_offsets = self._checked("chunk_offsets").clone()
            self.superseded = self._checked("superseded").clone()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BankCorruptError(
                f"{self.file} is missing: restore it from a copy, or add its documents again"
            ) from error
        except (OSError, MemoryError) as error:
            raise unreadable(self.file, error) from error
        except (RuntimeError, SafetensorError, ValueError, KeyError) as error:
            raise BankCorruptError(f"{self.file} is damaged: {error}") from error
        problem = layout_problem(self.numbers, self.chunk_offsets) if info.num_parts else None
        if problem or int(self.chunk_offsets[-1]) != info.num_chunks:
            raise BankCorruptError(f"{self.file} is damaged: {problem or 'its offsets do not end at its last chunk'}")

    def tensor(self, kind: Kind, layer: int) -> Tensor:
        """One kind of one layer, ``[C, n_kv, D]`` (scales: ``[C]``), memory-mapped: pages load on first use."""
        return self._map(tensor_name(kind, layer))

    def load(self, kind: Kind, layer: int, first: int, end: int) -> Tensor:
        """The chunks ``first:end`` of one kind of one layer in memory of their own.

        Reading is much faster than touching mapped pages one by one. All chunks together are checked.

        Raises:
            BankCorruptError: the checksum of the whole tensor is wrong.
            BankError: the file cannot be read.
        """
        name = tensor_name(kind, layer)
        mapped = self._map(name)
        loaded = torch.empty((end - first, *mapped.shape[1:]), dtype=mapped.dtype)
        if loaded.numel():
            self._read(self._places[name] + first * loaded[0].nbytes, _bytes(loaded))
        if len(loaded) == len(mapped) and checksum(_bytes(loaded)) != self._checksums[name]:
            raise BankCorruptError(f"{self.file} is damaged: the checksum of {name} is wrong")
        return loaded

    def rows(self, kind: Kind, layer: int, rows: Tensor) -> Tensor:
        """Single chunks ``[n]`` of one kind of one layer: ``[n, n_kv, D]``, read from the file, many at a time.

        Of a file larger than RAM this reads what is asked for; touching mapped pages reads their neighbours too, one
        page after the other.

        Raises:
            BankCorruptError: the file ends too early.
            BankError: it cannot be read.
        """
        mapped = self._map(tensor_name(kind, layer))
        found = torch.empty((len(rows), *mapped.shape[1:]), dtype=mapped.dtype)
        if not found.numel():
            return found
        data, row_bytes, begin = _bytes(found), found[0].nbytes, self._places[tensor_name(kind, layer)]
        # a document's chunks stand side by side
        cuts = [0, *((rows.diff() != 1).nonzero().flatten() + 1).tolist(), len(rows)]
        runs = [
            (data[a * row_bytes : b * row_bytes], begin + int(rows[a]) * row_bytes) for a, b in itertools.pairwise(cuts)
        ]
        readers = min(_READERS, len(runs))  # a job for each, of many reads: handing one over costs more than a read
        shares = [runs[len(runs) * i // readers : len(runs) * (i + 1) // readers] for i in range(readers)]
        for _ in _reading().map(self._read_runs, shares):  # what one of them raises comes out here
            pass
        return found

    def _read_runs(self, runs: Sequence[tuple[memoryview, int]]) -> None:
        for data, place in runs:
            self._read(place, data)

    def _read(self, place: int, data: memoryview) -> None:
        """Fill ``data`` from the file as it was opened, which may have no name any more."""
        while len(data):
            try:
                count = os.preadv(self._descriptor, [data[:_READ_BYTES]], place)
            except OSError as error:
                raise unreadable(self.file, error) from error
            if not count:
                raise BankCorruptError(f"{self.file} is damaged: it ends too early")
            place, data = place + count, data[count:]

    def problems(self, check: Callable[[], None] = lambda: None) -> Iterator[str]:
        """A line for every tensor whose checksum is wrong; ``check`` is called before each and may raise.

        Read, not mapped: the kernel ends a process that touches a mapped page which cannot be read.

        Raises:
            BankError: the file cannot be read.
        """
        for name, expected in self._checksums.items():
            check()
            try:
                if self._checksum_on_disk(name) != expected:
                    yield f"{self.file} is damaged: the checksum of {name} is wrong"
            except FileNotFoundError as error:
                yield f"{self.file} cannot be read ({error.strerror or error})"
                return
            except OSError as error:
                raise unreadable(self.file, error) from error

    def _checksum_on_disk(self, name: str) -> str:
        digest, left = xxhash.xxh3_128(), self._map(name).nbytes
        with open(self.file, "rb", buffering=0) as stream:
            stream.seek(self._places[name])
            while left and (block := stream.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    def _map(self, name: str) -> Tensor:
        tensor = self._mapped.get(name)
        if tensor is None:
            tensor = self._mapped[name] = self._handle.get_tensor(name)
        return tensor

    def _checked(self, name: str) -> Tensor:
        tensor = self._map(name)
        if checksum(_bytes(tensor)) != self._checksums[name]:
            raise BankCorruptError(f"{self.file} is damaged: the checksum of {name} is wrong")
        return tensor


@functools.cache
def _reading() -> ThreadPoolExecutor:
    """Threads that wait for the disk."""
    return ThreadPoolExecutor(_READERS, thread_name_prefix="msa-read")


# a child process has none of its parent's threads
os.register_at_fork(after_in_child=_reading.cache_clear)


def _opened_to_map(file: Path) -> Any:
    """What maps tensors of a file whose size and header are right.

    Raises:
        OSError: it cannot be opened at present.
    """
    try:
        return safe_open(str(file), framework="pt")
    except (OSError, RuntimeError, SafetensorError) as error:
        # it opens the file twice, and says that it is not there, or what the system told torch, whatever the reason is
        os.close(os.open(file, os.O_RDONLY))
        told = re.search(r"\((\d+)\)$", str(error))
        raise OSError(int(told[1]) if told else errno.EIO, str(error)) from error


def _checked_header(file: Path, info: SegmentInfo, spec: BankSpec) -> tuple[dict[str, str], dict[str, int]]:
    """Check size and header against the manifest; by tensor name its checksum, and where in the file it begins."""
    found = file.stat().st_size
    if found != info.latents.num_bytes:
        raise BankCorruptError(f"{file} is damaged: expected {info.latents.num_bytes:,} bytes, found {found:,}")
    with open(file, "rb") as stream:
        head = stream.read(8)
        size = int.from_bytes(head, "little")
        head += stream.read(size) if size <= found else b""
    if checksum(head) != info.latents.checksum:
        raise BankCorruptError(f"{file} is damaged: the checksum of its header is wrong")
    metadata = json.loads(head[8:])["__metadata__"]
    checksums = {name: metadata[_CHECKSUM_KEY.format(name)] for name, _, _ in _entries(spec, info)}
    if head != _header(spec, info, checksums):
        raise BankCorruptError(f"{file} is damaged: it does not hold the tensors its manifest describes")
    places, place = {}, len(head)
    for name, dtype, shape in _entries(spec, info):
        places[name] = place
        place += _num_bytes(dtype, shape)
    return checksums, places


def write_latents(
    folder: Path,
    name: str,
    *,
    spec: BankSpec,
    numbers: Tensor,
    chunk_offsets: Tensor,
    superseded: Tensor,
    pieces: Pieces,
) -> SegmentInfo:
    """Write a latents file durably; the folder is not synced.

    Args:
        folder: of the segments.
        name: the segment's, never used before.
        spec: shape of the latents.
        numbers: ``[n]`` int64.
        chunk_offsets: ``[n + 1]`` int64.
        superseded: ``[s]`` int64.
        pieces: gives, for a kind and a layer, tensors ``[c, n_kv, D]`` that concatenate to ``[C, n_kv, D]``;
            one piece is in memory at a time.

    Returns:
        The segment, still without its documents.

    Raises:
        BankError: the disk is full or failed; nothing is left behind.
    """
    info = _sized(name, len(numbers), int(chunk_offsets[-1]), len(superseded))
    with written_durably(folder / latents_name(name)) as temporary, open(temporary, "wb+") as out:
        out.write(_header(spec, info, {}))
        checksums = {
            "numbers": _write(out, [numbers]),
            "chunk_offsets": _write(out, [chunk_offsets]),
            "superseded": _write(out, [superseded]),
        }
        for kind, layer, _, _ in spec.layout(info.num_chunks):
            checksums[tensor_name(kind, layer)] = _write(out, pieces(kind, layer))
        header = _header(spec, info, checksums)
        expected = len(header) + sum(_num_bytes(dtype, shape) for _, dtype, shape in _entries(spec, info))
        if out.tell() != expected:
            raise ValueError(f"the pieces of segment {name} hold {out.tell():,} bytes, expected {expected:,}")
        out.seek(0)
        out.write(header)
    return replace(info, latents=FileInfo(num_bytes=expected, checksum=checksum(header)))


def num_latents_bytes(spec: BankSpec, num_parts: int, num_chunks: int) -> int:
    """Bytes of a latents file of so many parts and chunks, without its header."""
    return sum(_num_bytes(dtype, shape) for _, dtype, shape in _entries(spec, _sized("", num_parts, num_chunks, 0)))


def _sized(name: str, num_parts: int, num_chunks: int, num_superseded: int) -> SegmentInfo:
    unknown = FileInfo(num_bytes=0, checksum="")
    return SegmentInfo(
        name=name,
        documents=unknown,
        latents=unknown,
        num_parts=num_parts,
        num_chunks=num_chunks,
        num_superseded=num_superseded,
    )


def _write(out: BinaryIO, pieces: Iterable[Tensor]) -> str:
    """Write tensors one after the other; their common checksum."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        data = _bytes(piece)
        digest.update(data)
        out.write(data)
    return digest.hexdigest()


def _entries(spec: BankSpec, info: SegmentInfo) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Every tensor of a file in order, larger elements first, so that all are aligned."""
    return [
        ("numbers", torch.int64, (info.num_parts,)),
        ("chunk_offsets", torch.int64, (info.num_parts + 1,)),
        ("superseded", torch.int64, (info.num_superseded,)),
        *((tensor_name(kind, layer), dtype, shape) for kind, layer, dtype, shape in spec.layout(info.num_chunks)),
    ]


def _header(spec: BankSpec, info: SegmentInfo, checksums: Mapping[str, str]) -> bytes:
    """The header, of the same length whatever the checksums."""
    entries = _entries(spec, info)
    metadata = {_CHECKSUM_KEY.format(name): checksums.get(name, _UNKNOWN) for name, _, _ in entries}
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for name, dtype, shape in entries:
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
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
