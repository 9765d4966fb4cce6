"""The routing scorer on a GPU: :mod:`msa.ops.route.triton_kernel`, and what it is given.

Scores are those of float32, as the plain scorer's are, whatever the keys are kept in. Importing this needs triton.

Axes: B rows, T tokens, Hkv key/value heads, D head_dim, C chunks, N documents, P programs, k selected documents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from triton import cdiv, next_power_of_2
from triton.runtime.jit import JITFunction

from msa.ops.route.blocks import ExactKeys, KeyBlock
from msa.ops.route.triton_dispatch import KernelBuildError
from msa.ops.route.triton_kernel import score_kernel
from msa.ops.route.triton_query import PreparedQuery, prepare, sums_tokens
from msa.ops.route.types import RoutingSpec

# dtypes of keys, and of the products that lose nothing of them
PRODUCT_DTYPES = {
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
    torch.int8: torch.float16,
    torch.float8_e4m3fn: torch.float16,
}
_WARPS = 4
MOST_SELECTED = 128  # more would be kept in too many registers
_WIDEST_HEAD = 256
_GENERATION = 9  # of compute capability; others have less memory beside their processors, and were not tried
_NOTHING = -(2**63)
_LEAST_FOUND = _NOTHING + 2**32  # a place that nothing was found for holds less
_LAST_DOCUMENT = 2**31 - 1
_OF_THE_GPU = ("Triton Error [CUDA]", "CUDA error", "out of memory")  # in messages about a kernel that was built
# an interpreter's products are exact, but not of bfloat16
_DOT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16} if isinstance(score_kernel, JITFunction) else {}


@dataclass(frozen=True)
class Tiling:
    """How the work is cut; what is here was the fastest on an H200.

    Attributes:
        chunks: of a tile; tokens: of a group, at most; both powers of two, at least 16.
        programs: about so many, all rows together, where there are tiles for them; None: two a multiprocessor.
    """

    chunks: int = 128
    tokens: int = 64
    programs: int | None = None


@dataclass(frozen=True)
class _Run:
    """One launch: a block, and how its chunks are dealt out to programs."""

    block: KeyBlock
    first_chunk: int
    per_program: int
    programs: int
    first_program: int


@dataclass(eq=False)
class _Owners:
    """Whose each chunk is ``[C + 1]`` int32, −1 at the end, by a tensor of offsets as it was at ``version``.

    ``slots``: by bounds of runs, where documents meet that have chunks in several programs.
    """

    documents: Tensor
    version: int
    slots: dict[tuple[tuple[int, int, int], ...], Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class _Selection:
    """Where the kernel leaves candidates instead of scores, and what it has to know for it.

    Attributes:
        candidates: ``[B, P · (kept + 1)]`` int64: ``kept`` of each program, then a slot of each.
        documents: of :class:`_Owners`; slots: of :func:`_slots`.
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected; None: all may.
        first_slot: column of the first program's slot, behind all candidates.
    """

    candidates: Tensor
    documents: Tensor
    slots: Tensor
    doc_mask: Tensor | None
    kept: int
    first_slot: int


_known = WeakTensorKeyDictionary()


def is_supported(query: Tensor, blocks: Sequence[KeyBlock]) -> bool:
    """Whether the kernel can score these keys, without gradients, where they are: on a Hopper GPU."""
    here = query.device.type == "cuda" and all(block.keys.device == query.device for block in blocks)
    return here and torch.cuda.get_device_capability(query.device)[0] == _GENERATION and fits(query, blocks)


def fits(query: Tensor, blocks: Sequence[KeyBlock]) -> bool:
    """Whether dtypes and shapes are such as the kernel was written for, and there is something to score."""
    filled = [block.keys for block in blocks if block.keys.shape[0]]
    known = all(keys.dtype in PRODUCT_DTYPES and keys.is_contiguous() for keys in filled)
    return known and bool(filled) and query.numel() > 0 and filled[0].shape[2] <= _WIDEST_HEAD


def score_chunks(
    q: Tensor, mask: Tensor | None, blocks: Sequence[KeyBlock], spec: RoutingSpec, tiling: Tiling | None = None
) -> Tensor:
    """As :func:`msa.ops.route.scan.score_chunks`, without gradients.

    Raises:
        KernelBuildError: the kernel cannot be built here.
    """
    tiling = tiling or Tiling()
    scores = torch.empty(q.shape[0], _chunks(blocks), device=q.device)
    if not q.shape[1]:
        return scores.zero_()
    runs = _runs(blocks, q, tiling)
    queries = _Queries(q, mask, spec, tiling)
    for run in runs:
        _launch(run, queries, scores.shape[1], chunk_scores=scores)
    return scores


def select(
    q: Tensor,
    mask: Tensor | None,
    blocks: Sequence[KeyBlock],
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """The best documents by their best chunks: indices ``[B, top_k]`` int64 and scores, best first.

    −1 and −inf fill up; a row without routing tokens gets anything. Nothing else reaches the GPU's memory but
    ``top_k`` candidates of each program, and what it knows of documents that other programs have chunks of too.

    Args:
        q, mask: of :func:`msa.ops.route.scoring.prepare_query`.
        blocks: C chunks together, that :func:`fits` allows.
        chunk_offsets: ``[N + 1]`` int64.
        spec: similarity and reductions; over chunks the maximum.
        top_k: 1 to ``MOST_SELECTED``.
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
        tiling: how the work is cut.

    Raises:
        ValueError: offsets that do not end at C.
        KernelBuildError: the kernel cannot be built here.
    """
    tiling = tiling or Tiling()
    num_chunks = _chunks(blocks)
    owners = _owners(chunk_offsets, num_chunks)
    if not q.shape[1]:
        shape = q.shape[0], top_k
        return torch.full(shape, -1, device=q.device), torch.full(shape, float("-inf"), device=q.device)
    runs = _runs(blocks, q, tiling)
    queries = _Queries(q, mask, spec, tiling)
    programs, kept = sum(run.programs for run in runs), max(2, next_power_of_2(top_k))
    candidates = torch.full((q.shape[0], programs * (kept + 1)), _NOTHING, dtype=torch.int64, device=q.device)
    visible = None if doc_mask is None else doc_mask.contiguous()
    selection = _Selection(candidates, owners.documents, _slots(owners, runs), visible, kept, programs * kept)
    for run in runs:
        _launch(run, queries, num_chunks, selection=selection)
    found = candidates.topk(top_k, dim=1).values  # kept for one program are as many already
    missing = found < _LEAST_FOUND
    ordered = (found >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    indices = _LAST_DOCUMENT - (found & 0xFFFFFFFF)
    return indices.masked_fill_(missing, -1), scores.masked_fill_(missing, float("-inf"))


class _Queries:
    """One query in the forms that different blocks want."""

    def __init__(self, q: Tensor, mask: Tensor | None, spec: RoutingSpec, tiling: Tiling) -> None:
        self.q, self.mask, self.spec, self.tiling = q, mask, spec, tiling
        self._forms: dict[tuple[torch.dtype, torch.dtype, bool], PreparedQuery] = {}

    def form(self, block: KeyBlock, normalize: bool) -> PreparedQuery:
        """The query to multiply with the keys of a block."""
        key = (block.keys.dtype, PRODUCT_DTYPES[block.keys.dtype], normalize)
        if key not in self._forms:
            cut = self.tiling.chunks, self.tiling.tokens
            self._forms[key] = prepare(self.q, self.mask, self.spec, block.keys, normalize, key[1], *cut)
        return self._forms[key]


def _launch(
    run: _Run,
    queries: _Queries,
    all_chunks: int,
    chunk_scores: Tensor | None = None,
    selection: _Selection | None = None,
) -> None:
    """Score one block, into chunk scores ``[B, C]`` or for a selection."""
    block, spec, tiling = run.block, queries.spec, queries.tiling
    normalize = spec.similarity == "cosine" and isinstance(block, ExactKeys)
    # what was prepared for another similarity is refused
    block.rows(0, 0, spec.similarity)
    query = queries.form(block, normalize)
    head_max = spec.head_reduce == "max"
    members = queries.q.shape[3] if head_max else 1
    length = block.keys.shape[1] * block.keys.shape[2]
    unused = query.factor
    doc_mask = None if selection is None else selection.doc_mask
    _run_kernel(
        (query.parts.shape[0], run.programs),
        block.keys,
        unused if block.scale is None else block.scale.contiguous(),
        query.parts,
        query.factor,
        unused if selection is None else selection.documents,
        unused if doc_mask is None else doc_mask,
        unused if selection is None else selection.slots,
        unused if chunk_scores is None else chunk_scores,
        unused if selection is None else selection.candidates,
        block.keys.shape[0],
        length,
        run.first_chunk,
        all_chunks,
        run.per_program,
        run.first_program,
        0 if selection is None else selection.first_slot,
        0 if selection is None else selection.candidates.shape[1],
        doc_mask.shape[1] if doc_mask is not None and doc_mask.dim() == 2 else 0,
        query.parts.shape[1],
        WRITE=chunk_scores is not None,
        SELECT=selection is not None,
        SCALED=block.scale is not None,
        MASKED=doc_mask is not None,
        KEPT=2 if selection is None else selection.kept,
        MEMBERS=members,
        NORMALIZE=normalize,
        HEAD_MAX=head_max,
        TOKEN_MAX=not sums_tokens(spec),
        CHUNKS=tiling.chunks,
        **_form_constants(query, length * members),
        num_warps=_WARPS,
    )


def _form_constants(query: PreparedQuery, length: int) -> dict[str, Any]:
    """The kernel's constants that follow from a query's form; ``length``: elements that a chunk is multiplied with."""
    _, groups, steps, parts, tokens, width = query.parts.shape
    return {
        "STEPS": steps,
        "WIDTH": query.width,
        "EVEN": query.width == width and steps * width == length,
        "PARTS": parts,
        "ONE_GROUP": groups == 1,
        "DOT": _DOT.get(query.parts.dtype, tl.float32),
        "TOKENS": tokens,
        "BLOCK": width,
        "STAGES": query.stages,
    }


def _run_kernel(grid: tuple[int, int], *args: Any, **constants: Any) -> None:
    """Launch the kernel, which triton compiles for each new set of constants, and its launcher with a C compiler."""
    try:
        score_kernel[grid](*args, **constants)
    # a compiler that is missing or fails, a folder that cannot be written, a library that cannot be loaded: triton has
    # no base for them. They come before the launch
    except Exception as error:
        if any(word in str(error) for word in _OF_THE_GPU):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise KernelBuildError(f"it cannot be built ({type(error).__name__}: {reason})") from error


def _chunks(blocks: Sequence[KeyBlock]) -> int:
    return sum(block.keys.shape[0] for block in blocks)


def _runs(blocks: Sequence[KeyBlock], q: Tensor, tiling: Tiling) -> list[_Run]:
    """A launch for each block that is not empty, with programs by its share of all chunks."""
    wanted = cdiv(tiling.programs or 2 * _multiprocessors(q.device), q.shape[0])
    total, runs = _chunks(blocks), []
    first_chunk = first_program = 0
    for block in blocks:
        num_chunks = block.keys.shape[0]
        if not num_chunks:
            continue
        tiles = cdiv(num_chunks, tiling.chunks)
        per_program = tiling.chunks * cdiv(tiles, min(tiles, cdiv(wanted * num_chunks, total)))
        runs.append(_Run(block, first_chunk, per_program, cdiv(num_chunks, per_program), first_program))
        first_chunk += num_chunks
        first_program += runs[-1].programs
    return runs


def _owners(chunk_offsets: Tensor, num_chunks: int) -> _Owners:
    """Remembered, since every layer and question asks for the same."""
    tracked = not chunk_offsets.is_inference()
    known = _known.get(chunk_offsets) if tracked else None
    if known is not None and known.version == chunk_offsets._version and known.documents.shape[0] == num_chunks + 1:
        return known
    if int(chunk_offsets[-1]) != num_chunks:
        raise ValueError(f"chunk_offsets end at {int(chunk_offsets[-1])}, but there are {num_chunks} chunks")
    documents = torch.arange(chunk_offsets.shape[0] - 1, dtype=torch.int32, device=chunk_offsets.device)
    documents = documents.repeat_interleave(chunk_offsets.diff(), output_size=num_chunks)
    owners = _Owners(torch.nn.functional.pad(documents, (0, 1), value=-1), chunk_offsets._version if tracked else -1)
    if tracked:
        _known[chunk_offsets] = owners
    return owners


def _slots(owners: _Owners, runs: Sequence[_Run]) -> Tensor:
    """``[P, 2]`` int32: the first program whose run ends with the document that a program's begins, and ends, with."""
    key = tuple((run.first_chunk, run.per_program, run.block.keys.shape[0]) for run in runs)
    if key not in owners.slots:
        starts: list[int] = []
        stops: list[int] = []
        for run in runs:
            within = range(0, run.block.keys.shape[0], run.per_program)
            starts += [run.first_chunk + start for start in within]
            stops += [*starts[len(stops) + 1 :], run.first_chunk + run.block.keys.shape[0]]
        documents = owners.documents
        first = documents[torch.tensor(starts, device=documents.device)]
        last = documents[torch.tensor(stops, device=documents.device) - 1]
        owners.slots[key] = torch.searchsorted(last, torch.stack([first, last], 1), out_int32=True)
    return owners.slots[key]


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
