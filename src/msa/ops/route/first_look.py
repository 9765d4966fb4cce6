"""A first look at all chunks by the fastest product this machine has, and how far it can be off.

The query is rounded to the keys' own int8 or bfloat16. By Cauchy and Schwarz a score is then off by at most the length
of what rounding took from the query times that of the longest key, which is known; so is how far a sum and its rounding
to bfloat16 can be off. With ``slack`` and ``share`` of them, exact is between

    S − slack − share·|S|    and    S + slack + share·|S|

for every score S of the first look. Documents that are out of reach of the best need no second one, and the selection
is that of exact scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msa.ops.route.blocks import FastForm, KeyBlock, longest_possible, scales_of
from msa.ops.route.products import RESULT_DTYPES, SHORTEST, Product, fast_product
from msa.ops.route.scan import Pieces, chunks_per_tile, on_tiles, tiles_of
from msa.ops.route.types import RoutingSpec

# a sum of K products in float32 is off by less than (K + a few roundings more) of these
_FLOAT_ERROR = 2**-23
# a large product: chunks for each thread, and bytes of their scores; of keys, which stay where they are, twice as many
_LARGE_CHUNKS, _LARGE_BYTES = 8192, 2 * 1024 * 1024


@dataclass(frozen=True)
class FirstLook:
    """Scores of all chunks, and their bounds.

    Attributes:
        chunk_scores: ``[B, C]`` float32; anything for a row without routing tokens.
        slack: ``[B]`` float32; share: both as above.
    """

    chunk_scores: Tensor
    slack: Tensor
    share: float

    def reach(self, scores: Tensor) -> Tensor:
        """The lowest scores that can be exactly as high as ``scores`` ``[B, n]`` are, or higher."""
        slack = self.slack[:, None]
        # what they are at least; 0 x inf is no number
        lowest = scores - slack - (self.share * scores.abs() if self.share else 0.0)
        reach = lowest - slack
        return reach / torch.where(reach < 0, 1 - self.share, 1 + self.share)


def first_look(
    q: Tensor, mask: Tensor | None, blocks: list[KeyBlock], spec: RoutingSpec, tile: int | None
) -> FirstLook | None:
    """Arguments as of :func:`msa.ops.route.scan.score_chunks`; None where the machine or the keys allow none."""
    if spec.head_reduce != "mean" or spec.chunk_reduce != "max" or q.device.type != "cpu":
        return None
    form = _common_form(blocks, spec.similarity) if q.numel() and q.shape[2] >= SHORTEST else None
    product = None if form is None else fast_product(form.dtype)
    if form is None or product is None:
        return None
    rows = _all_routing(q, mask, spec.query_reduce)
    rounded, step, lost = _rounded(rows, form.dtype)

    def look(run: Sequence[Pieces]) -> list[tuple[Tensor, float]]:
        return _look(rounded, run, form, spec.similarity, product)

    tiles, large = _tiles(rounded, blocks, tile)
    found = look(tiles) if large else on_tiles(look, tiles, q.device)
    scores = torch.cat([scores for scores, _ in found], dim=1)
    scales = scales_of(blocks)
    if scales is not None:
        scores.mul_(scales)
    if step is not None:
        scores.mul_(step)
    longest = max(longest for _, longest in found) if form.longest is None else form.longest
    lengths = q.norm(dim=2)
    length = (lengths if mask is None else lengths * mask).amax(1)
    terms = rows.shape[2] + q.shape[1] + 8
    slack = (lost + length * (form.error + terms * _FLOAT_ERROR)) * longest
    return FirstLook(scores, slack, 0.0 if form.dtype == torch.int8 else torch.finfo(form.dtype).eps / 2)


def _common_form(blocks: Sequence[KeyBlock], similarity: str) -> FastForm | None:
    """What the fast rows of all blocks are; None where they differ or a block has none."""
    forms = [block.fast_form(similarity) for block in blocks if block.keys.shape[0]]
    known = [form for form in forms if form is not None]
    if not known or len(known) < len(forms) or len({(form.dtype, form.error) for form in known}) > 1:
        return None
    longest = [form.longest for form in known if form.longest is not None]
    return FastForm(known[0].dtype, max(longest) if len(longest) == len(known) else None, known[0].error)


def _all_routing(q: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """``[B, T', K]`` whose largest score is that of the query ``[B, T, K]`` after its reduction: without a mask.

    A mean of scores is the score of a mean; for a maximum the places without a routing token repeat the first one.
    """
    if mask is None:
        return {"max": q, "mean": q.mean(1, keepdim=True), "last": q[:, -1:]}[reduction]
    marked = mask[:, :, None]
    if reduction == "mean":
        return (q * marked).sum(1, keepdim=True) / marked.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    chosen = places.amax(1) if reduction == "last" else mask.int().argmax(1)
    one = q.gather(1, chosen[:, None, None].expand(-1, 1, q.shape[2]))
    return one if reduction == "last" else torch.where(marked, q, one)


def _rounded(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows ``[B, T, K]`` in a dtype, what int8 is to be multiplied by ``[B, 1]``, and the most length lost ``[B]``."""
    if dtype == torch.int8:
        step = rows.abs().amax((1, 2), keepdim=True) / 127
        step = torch.where(step > 0, step, 1.0)
        rounded = (rows / step).round_().clamp_(-127, 127).to(torch.int8)
        return rounded, step[:, 0], (rows - rounded * step).norm(dim=2).amax(1)
    rounded = rows.to(dtype)
    return rounded, None, (rows - rounded).norm(dim=2).amax(1)


def _tiles(rows: Tensor, blocks: Sequence[KeyBlock], tile: int | None) -> tuple[list[Pieces], bool]:
    """What to multiply rows ``[B, T, K]`` with at a time, and whether that is enough for all threads together.

    A large product on all threads is faster than many small ones, each on a thread of its own; but a memory of many
    small blocks has no large ones, unless its keys are copied.
    """
    num_rows, itemsize = rows.shape[0] * rows.shape[1], rows.element_size()
    small = tile or chunks_per_tile(num_rows, rows.shape[2], itemsize, rows.device)
    if tile is None:
        widest = max(num_rows * RESULT_DTYPES[rows.dtype].itemsize, rows.shape[2] * itemsize // 2)
        most = min(_LARGE_CHUNKS, _LARGE_BYTES // widest) * torch.get_num_threads()
        large = tiles_of(blocks, max(small, most), small)
        if sum(block.keys.shape[0] for block in blocks) >= most // 4 * len(large):
            return large, True
    return tiles_of(blocks, small), False


def _look(
    query: Tensor, tiles: Sequence[Pieces], form: FastForm, similarity: str, product: Product
) -> list[tuple[Tensor, float]]:
    """The best token's score ``[B, c]`` of each tile; and the longest key possible, where that is not known."""
    batch, tokens, length = query.shape
    rows = query.reshape(batch * tokens, length).contiguous()
    tile = max(sum(stop - start for _, start, stop in pieces) for pieces in tiles)
    result = torch.empty(batch * tokens * tile, dtype=RESULT_DTYPES[form.dtype])
    heads = tiles[0][0][0].keys.shape[1:]
    scratch = torch.empty(tile, *heads, dtype=form.dtype)
    found = []
    for pieces in tiles:
        keys = _fast_keys(pieces, similarity, scratch)
        scores = result[: batch * tokens * len(keys)].view(batch * tokens, len(keys))
        product(rows, keys.flatten(1), scores)
        best = scores.view(batch, tokens, len(keys)).amax(1).float()
        found.append((best, longest_possible(keys) if form.longest is None else math.nan))
    return found


def _fast_keys(pieces: Pieces, similarity: str, scratch: Tensor) -> Tensor:
    """The chunks of one tile; only one that crosses a border is copied."""
    if len(pieces) > 1:
        return torch.cat([block.fast_rows(start, stop, similarity) for block, start, stop in pieces])
    block, start, stop = pieces[0]
    return block.fast_rows(start, stop, similarity, scratch[: stop - start])
