"""The routing scorer as one Triton kernel: keys stream through once; a score a chunk or the best documents leave it.

A program walks over a run of chunks for one row, a tile at a time:

    tile of keys ──► scores of all tokens ──► best token ──► best chunk of each document ──► the best so far

Everything between stays in registers and shared memory. A document and its score are one int64, so that they are
compared and kept together: the score's bits in an order that integers understand, then the document, the lower the
better. A document that goes on in another program's run is left to an atomic maximum in a place both know.

Axes: B rows, C chunks of a block, K = Hkv·D numbers a chunk, G token groups, S steps along K (M of them over the same
numbers, where query heads are compared one by one), R parts that a query is the sum of, N documents.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))
_LAST_DOCUMENT = tl.constexpr(2**31 - 1)
_NOWHERE = tl.constexpr(-2)  # no document, and not what stands beyond the last one either


@triton.jit
def _best_so_far(best: tl.tensor, document: tl.tensor, score: tl.tensor, its_document: tl.tensor) -> tl.tensor:
    """One step along a tile: the best score of the document that a chunk belongs to, up to this chunk."""
    return tl.where(document == its_document, tl.maximum(best, score), score), its_document


@triton.jit
def _packed(score: tl.tensor, document: tl.tensor) -> tl.tensor:
    """A score and its document as one int64 that is larger for a better score, then for a lower document."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0 is not less than 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (-document + _LAST_DOCUMENT).to(tl.int64)


@triton.jit
def _kept(best: tl.tensor, found: tl.tensor) -> tl.tensor:
    """The best of ``best`` and ``found``, as many as there are of ``best``; all but ``LOWEST`` differ."""
    top = tl.max(found, 0)
    least = tl.min(best, 0)
    while top > least:
        best = tl.where(best == least, top, best)
        found = tl.where(found == top, LOWEST, found)
        top = tl.max(found, 0)
        least = tl.min(best, 0)
    return best


@triton.jit
def _products(
    keys: tl.tensor,
    query: tl.tensor,
    chunk: tl.tensor,
    key_length: tl.tensor,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    PARTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAD_MAX: tl.constexpr,
    DOT: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Scores of chunks and a group's tokens ``[CHUNKS, TOKENS]``, heads reduced."""
    place = tl.arange(0, BLOCK)
    token = tl.arange(0, TOKENS)
    part_at = token[None, :] * BLOCK + place[:, None]
    scores = tl.full((CHUNKS, TOKENS), float("-inf") if HEAD_MAX else 0.0, tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        column = step // MEMBERS * WIDTH + place
        at = keys + chunk[:, None] * key_length + column[None, :]
        if EVEN:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=((place < WIDTH) & (column < key_length))[None, :], other=0.0)
        ready = tile.to(DOT)
        # tensor cores cut off what a long sum is too large for; short ones are added up elsewhere
        product = tl.zeros((CHUNKS, TOKENS), tl.float32)
        for part in tl.static_range(PARTS):
            q = tl.load(query + (step * PARTS + part) * (TOKENS * BLOCK) + part_at)
            product = tl.dot(ready, q.to(DOT), product)
        if NORMALIZE:
            wide = tile.to(tl.float32)
            product = product * (1.0 / tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), 1e-12))[:, None]
        scores = tl.maximum(scores, product) if HEAD_MAX else scores + product
    return scores


@triton.jit
def _chunk_scores(
    keys: tl.tensor,
    query: tl.tensor,
    chunk: tl.tensor,
    key_length: tl.tensor,
    groups: tl.tensor,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    PARTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAD_MAX: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    TOKEN_MAX: tl.constexpr,
    DOT: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Scores of chunks ``[CHUNKS]``: the best of all tokens, or their sum."""
    reduced = tl.full((CHUNKS,), float("-inf") if TOKEN_MAX else 0.0, tl.float32)
    # a short question needs no loop, and is faster without
    if ONE_GROUP:
        groups = 1
    for group in range(groups):
        scores = _products(
            keys,
            query + group * (STEPS * PARTS * TOKENS * BLOCK),
            chunk,
            key_length,
            STEPS,
            WIDTH,
            EVEN,
            MEMBERS,
            PARTS,
            NORMALIZE,
            HEAD_MAX,
            DOT,
            CHUNKS,
            TOKENS,
            BLOCK,
            STAGES,
        )
        reduced = tl.maximum(reduced, tl.max(scores, 1)) if TOKEN_MAX else reduced + tl.sum(scores, 1)
    return reduced


# numbers that change with a memory or a question: not worth compiling again for
_CHANGING = [
    "num_chunks",
    "first_chunk",
    "all_chunks",
    "first_program",
    "first_slot",
    "width",
    "mask_stride",
    "groups",
]


@triton.jit(do_not_specialize=_CHANGING)
def score_kernel(
    keys: tl.tensor,  # [C, K]
    key_scale: tl.tensor,  # [C] float32, where SCALED
    query: tl.tensor,  # [B, G, S, R, TOKENS, BLOCK]
    factor: tl.tensor,  # [B] float32, not negative, on every score of a row
    owner: tl.tensor,  # [chunks of all blocks + 1] int32: whose each chunk is; -1 at the end
    doc_mask: tl.tensor,  # [1 or B, N] bool, where MASKED
    slots: tl.tensor,  # [programs of all launches, 2] int32: of the documents at either end of a run
    chunk_scores: tl.tensor,  # [B, chunks of all blocks] float32, where WRITE
    candidates: tl.tensor,  # [B, width] int64, where SELECT: KEPT for each program of all launches, then their slots
    num_chunks: tl.tensor,
    key_length: tl.tensor,
    first_chunk: tl.tensor,  # of this block among all
    all_chunks: tl.tensor,
    per_program: tl.tensor,  # a multiple of CHUNKS
    first_program: tl.tensor,  # of this launch among all
    first_slot: tl.tensor,
    width: tl.tensor,
    mask_stride: tl.tensor,
    groups: tl.tensor,
    WRITE: tl.constexpr,
    SELECT: tl.constexpr,
    SCALED: tl.constexpr,
    MASKED: tl.constexpr,
    KEPT: tl.constexpr,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MEMBERS: tl.constexpr,
    PARTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAD_MAX: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    TOKEN_MAX: tl.constexpr,
    DOT: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Scores of one row (axis 0 of the grid) and one run of chunks (axis 1); see the top of this file."""
    row = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    start = program * per_program
    stop = tl.minimum(start + per_program, num_chunks)
    query += row * groups * (STEPS * PARTS * TOKENS * BLOCK)
    keys += start.to(tl.int64) * key_length
    row_factor = tl.load(factor + row)
    if SELECT:
        owner += first_chunk
        candidates += row * width
        doc_mask += row * mask_stride
        # documents that go on before or after this run
        head = tl.load(owner + start)
        before = tl.load(owner + start - 1, mask=first_chunk + start > 0, other=-1)
        head = tl.where(before == head, head, _NOWHERE)
        tail = tl.load(owner + stop - 1)
        tail = tl.where(tl.load(owner + stop) == tail, tail, _NOWHERE)
        head_best = tl.full((), float("-inf"), tl.float32)
        tail_best = tl.full((), float("-inf"), tl.float32)
        # the document that the tile before ended with
        document = tl.full((), _NOWHERE, tl.int32)
        document_best = tl.full((), float("-inf"), tl.float32)
        best = tl.arange(0, KEPT).to(tl.int64) + LOWEST
    within = tl.arange(0, CHUNKS)
    for tile in range(start, stop, CHUNKS):
        chunk = tile + within
        real = chunk < stop
        scores = _chunk_scores(
            keys,
            query,
            tl.minimum(chunk, num_chunks - 1) - tile,
            key_length,
            groups,
            STEPS,
            WIDTH,
            EVEN,
            MEMBERS,
            PARTS,
            NORMALIZE,
            HEAD_MAX,
            ONE_GROUP,
            TOKEN_MAX,
            DOT,
            CHUNKS,
            TOKENS,
            BLOCK,
            STAGES,
        )
        keys += CHUNKS * key_length
        scores = scores * row_factor
        if SCALED:
            scores = scores * tl.load(key_scale + chunk, mask=real, other=0.0)
        if WRITE:
            tl.store(chunk_scores + row * all_chunks + first_chunk + chunk, scores, mask=real)
        if SELECT:
            theirs = tl.load(owner + chunk, mask=real, other=-1)
            scores = tl.where(real, scores, float("-inf"))
            head_best = tl.maximum(head_best, tl.max(tl.where(theirs == head, scores, float("-inf")), 0))
            tail_best = tl.maximum(tail_best, tl.max(tl.where(theirs == tail, scores, float("-inf")), 0))
            scores = tl.where(theirs == document, tl.maximum(scores, document_best), scores)
            scores, _ = tl.associative_scan((scores, theirs), 0, _best_so_far)
            last = tl.minimum(tile + CHUNKS, stop) - 1
            document = tl.load(owner + last)
            document_best = tl.max(tl.where(chunk == last, scores, float("-inf")), 0)
            complete = real & (theirs != tl.load(owner + chunk + 1, mask=real, other=-1))
            complete = complete & (theirs != head) & (theirs != tail)
            if MASKED:
                complete = complete & tl.load(doc_mask + theirs, mask=complete, other=0).to(tl.int1)
            best = _kept(best, tl.where(complete, _packed(scores, theirs), LOWEST))
    if SELECT:
        program += first_program
        tl.store(candidates + program * KEPT + tl.arange(0, KEPT), best)
        _leave(candidates + first_slot, slots + 2 * program, head_best, head, doc_mask, MASKED)
        _leave(candidates + first_slot, slots + 2 * program + 1, tail_best, tail, doc_mask, MASKED)


@triton.jit
def _leave(
    shared: tl.tensor, slot: tl.tensor, best: tl.tensor, document: tl.tensor, doc_mask: tl.tensor, MASKED: tl.constexpr
) -> None:
    """What this run knows of a document that others have chunks of as well."""
    known = document >= 0
    if MASKED:
        known = known & tl.load(doc_mask + document, mask=known, other=0).to(tl.int1)
    tl.atomic_max(shared + tl.load(slot), _packed(best, document), mask=known)
