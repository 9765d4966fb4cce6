"""The lean routing scorer: exact, tiled over chunks, never a tensor of heads x tokens x chunks.

Few keys, and all that gradients flow through, are scored in float32. Many keys on a CPU get a first look in their own
int8 or bfloat16, up to three times as fast, and a second one where it can matter for the selection. On a GPU that has
triton, one kernel scores 16-bit and 8-bit keys (:mod:`msa.ops.route.triton_scorer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msa.ops.route.blocks import KeyBlock, as_blocks
from msa.ops.route.first_look import first_look
from msa.ops.route.refine import chunks_in_reach, chunks_of, chunks_to_refine, refine, rescore
from msa.ops.route.scan import has_gradients, score_chunks
from msa.ops.route.scoring import prepare_query
from msa.ops.route.triton_dispatch import if_built, triton_scorer
from msa.ops.route.types import Routing, RoutingSpec, reduce_chunks, select_documents

# with fewer multiplications a first look saves nothing
_FIRST_LOOK_PRODUCTS = 32 * 1024 * 1024
# with more of all chunks in reach of the best, float32 throughout is as fast
_LARGEST_SHARE = 0.2


def route(
    query: Tensor,
    query_mask: Tensor,
    keys: Tensor | Sequence[KeyBlock],
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
    tile_chunks: int | None = None,
) -> Routing:
    """Select each row's ``top_k`` documents (Eq. 2). Differentiable in ``query`` and ``keys``.

    Args:
        query: routing queries ``[B, T, Hq, D]``, before any normalisation.
        query_mask: bool ``[B, T]``, True on the tokens that route. A row without any selects nothing.
        keys: routing keys ``[C, Hkv, D]`` of all documents, before any normalisation; or key blocks
            (:class:`ExactKeys`, :class:`HalfKeys`, :class:`QuantizedKeys`, in any mixture) of C chunks together. Where
            compact blocks have their ``stored`` keys, each row's best 4 x ``top_k`` documents are scored again from
            them.
        chunk_offsets: ``[N + 1]`` int64; document i owns chunks ``offsets[i]:offsets[i + 1]``.
        spec: similarity, scale and reductions.
        top_k: documents to select per row.
        doc_mask: bool ``[N]`` or ``[B, N]``, False for documents that must not be selected.
        tile_chunks: chunks scored at a time, by plain torch on every device; None: as many as keep a tile small (2 MB
            on a CPU).

    Returns:
        :class:`Routing`; scores are float32 whatever the dtype of query and keys. Selected documents and their scores
        are exact for the blocks' own keys. For the ``stored`` ones they are wherever the best are among the best
        4 x ``top_k`` by the compact keys, each by its best chunk there: rounding can put others ahead where keys lie
        closer together than it moves them. Of many keys on a CPU, those of about the best 16 x ``top_k`` are exact;
        what is further off keeps a first look's scores, with the query rounded to int8 (for int8 keys) or query and
        score to bfloat16.

    Raises:
        ValueError: blocks of different shapes, or prepared for another similarity than the spec's; offsets that do not
            end at C.
    """
    blocks = as_blocks(keys, query)
    q, mask = prepare_query(query, query_mask, blocks[0].keys.shape[1], spec)
    question = _Question(q, mask, ~query_mask.any(1, keepdim=True), spec, blocks, chunk_offsets, doc_mask)
    stored = any(block.stored is not None for block in blocks)
    found = _looked_twice(question, top_k, tile_chunks)
    if found is None:
        scorer = triton_scorer(query, blocks) if tile_chunks is None else None
        scores = if_built(lambda: scorer.score_chunks(q, mask, blocks, spec)) if scorer else None
        if scores is None:
            scores = score_chunks(q, mask, blocks, spec, tile_chunks)
        chunk_scores = question.silenced(scores)
        doc_scores = question.documents(chunk_scores)
    else:
        chunk_scores, doc_scores = found
    if stored:
        deciding = chunks_to_refine(chunk_scores, doc_scores, chunk_offsets, spec.chunk_reduce, top_k)
        chunk_scores = question.silenced(refine(q, mask, blocks, chunk_scores, deciding, spec))
        doc_scores = question.updated(doc_scores, chunk_scores, deciding)
    doc_indices, best = select_documents(doc_scores, top_k)
    return Routing(doc_indices=doc_indices, scores=best, doc_scores=doc_scores, chunk_scores=chunk_scores)


@dataclass(frozen=True)
class Selection:
    """A row's best documents, and nothing about the others.

    Attributes:
        doc_indices: ``[B, k]`` int64, best first, −1 where fewer than k can be selected.
        scores: their scores ``[B, k]`` float32, −inf where there is no document.
    """

    doc_indices: Tensor
    scores: Tensor


def select(
    query: Tensor,
    query_mask: Tensor,
    keys: Tensor | Sequence[KeyBlock],
    chunk_offsets: Tensor,
    spec: RoutingSpec,
    top_k: int,
    doc_mask: Tensor | None = None,
) -> Selection:
    """What :func:`route` selects, where nobody asks for the scores of all documents and chunks.

    Arguments, errors and result as there. On a GPU that has triton no score but those of each program's candidates
    leaves the kernel, as far as documents have the score of their best chunk and blocks no ``stored`` keys.
    """
    blocks = as_blocks(keys, query)
    scorer = triton_scorer(query, blocks)
    stored = any(block.stored is not None for block in blocks)
    found = None
    if scorer is not None and not stored and spec.chunk_reduce == "max" and 0 < top_k <= scorer.MOST_SELECTED:
        q, mask = prepare_query(query, query_mask, blocks[0].keys.shape[1], spec)
        found = if_built(lambda: scorer.select(q, mask, blocks, chunk_offsets, spec, top_k, doc_mask))
    if found is None:
        routing = route(query, query_mask, blocks, chunk_offsets, spec, top_k, doc_mask)
        return Selection(routing.doc_indices, routing.scores)
    indices, scores = found
    silent = ~query_mask.any(1, keepdim=True)
    return Selection(indices.masked_fill(silent, -1), scores.masked_fill(silent, float("-inf")))


@dataclass(frozen=True)
class _Question:
    """A prepared query, and the documents it is asked of; ``silent`` ``[B, 1]``: rows without routing tokens."""

    q: Tensor
    mask: Tensor | None
    silent: Tensor
    spec: RoutingSpec
    blocks: list[KeyBlock]
    chunk_offsets: Tensor
    doc_mask: Tensor | None

    def silenced(self, chunk_scores: Tensor) -> Tensor:
        """Chunk scores ``[B, C]``, −inf in silent rows."""
        return chunk_scores.masked_fill(self.silent, float("-inf")) if bool(self.silent.any()) else chunk_scores

    def documents(self, chunk_scores: Tensor) -> Tensor:
        """Chunk scores ``[B, C]`` → document scores ``[B, N]``; −inf for those a row may not see."""
        scores = reduce_chunks(chunk_scores, self.chunk_offsets, self.spec.chunk_reduce)
        return scores if self.doc_mask is None else scores.masked_fill(~self.doc_mask, float("-inf"))

    def updated(self, doc_scores: Tensor, chunk_scores: Tensor, chunks: Tensor) -> Tensor:
        """Document scores after the scores of ``chunks`` ``[c]`` changed; what was −inf stays so."""
        documents = (torch.searchsorted(self.chunk_offsets, chunks, right=True) - 1).unique()
        theirs, _ = chunks_of(documents, self.chunk_offsets)
        offsets = torch.nn.functional.pad(self.chunk_offsets.diff()[documents].cumsum(0), (1, 0))
        scores = reduce_chunks(chunk_scores[:, theirs], offsets, self.spec.chunk_reduce)
        hidden = doc_scores[:, documents] == float("-inf")
        return doc_scores.index_copy(1, documents, scores.masked_fill(hidden, float("-inf")))


def _looked_twice(question: _Question, top_k: int, tile: int | None) -> tuple[Tensor, Tensor] | None:
    """Chunk scores ``[B, C]`` and document scores ``[B, N]``, exact where they decide the best of a row.

    None: few keys, gradients, a machine or keys without a first look, or too much in reach of the best.
    """
    q, mask, blocks, spec = question.q, question.mask, question.blocks, question.spec
    num_chunks = sum(block.keys.shape[0] for block in blocks)
    if num_chunks * q.numel() < _FIRST_LOOK_PRODUCTS or top_k < 1 or has_gradients(q, blocks):
        return None
    look = first_look(q, mask, blocks, spec, tile)
    if look is None:
        return None
    chunk_scores = question.silenced(look.chunk_scores)
    doc_scores = question.documents(chunk_scores)
    chunks = chunks_in_reach(look, chunk_scores, doc_scores, question.chunk_offsets, top_k)
    if len(chunks) > _LARGEST_SHARE * num_chunks:
        return None
    chunk_scores = question.silenced(rescore(q, mask, blocks, chunk_scores, chunks, spec))
    return chunk_scores, question.updated(doc_scores, chunk_scores, chunks)
