"""The routing scorer over synthetic keys, beside plain scorers and other libraries, and its floors.

Axes: T tokens, Hq query heads, Hkv key/value heads, g query heads of a group, D head_dim, C chunks, N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from msa.bench.figures import Figure
from msa.bench.floors import in_cache, reading, seconds_per_operation
from msa.bench.peers import peer_search, peers_here
from msa.bench.timing import Times, added_mib, scaled, timed, timer_of
from msa.model import MSAConfig
from msa.ops import KeyBlock, RoutingSpec, halve_keys, quantize_keys
from msa.ops.route import measure_keys, select
from msa.ops.route.scoring import prepare_query

CHUNK_TOKENS, CHUNKS_PER_DOCUMENT, TOP_K, PIECE, SLICE = 64, 8, 16, 65536, 16384
FORMS = ("int8", "half", "exact")
PLAIN = ("as written", "folded")
PLAIN_CHUNKS = 65536
"""Plain scorers and other libraries are asked about so many at most; they need several times the keys' memory."""
Selector = Callable[[], list[int]]


@dataclass(frozen=True)
class Shape:
    """Heads of a model, and how its published settings compare."""

    kv_heads: int
    group: int
    head_dim: int
    similarity: str

    @classmethod
    def of(cls, config: MSAConfig) -> Shape:
        """A model's own."""
        kv_heads = config.num_key_value_heads or config.num_attention_heads
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        return cls(kv_heads, config.num_attention_heads // kv_heads, head_dim, config.routing_spec().similarity)

    def __str__(self) -> str:
        return f"{self.kv_heads} kv heads x {self.group} x {self.head_dim}, {self.similarity}"


SHAPES = {"default": Shape(3, 3, 64, "cosine"), "published": Shape(8, 4, 128, "dot")}


def draw_keys(num_chunks: int, shape: Shape, device: str | torch.device = "cpu", cosine: float = 0.0) -> Tensor:
    """``[C, Hkv, D]`` bfloat16, a piece at a time.

    Random, unlike each other: a first look by rounded numbers tells them apart. Keys that share a direction are harder
    for it, because what rounding can do grows with what they share and what tells them apart does not.

    Args:
        num_chunks: how many.
        shape: of the keys.
        device: where they are.
        cosine: of two of them, in the mean; above 0 they share a direction.
    """
    generator = torch.Generator(device).manual_seed(0)
    keys = torch.empty(num_chunks, shape.kv_heads, shape.head_dim, dtype=torch.bfloat16, device=device)
    shared = _shared_direction(shape, cosine).to(device)
    for start in range(0, num_chunks, PIECE):
        piece = keys[start : start + PIECE]
        piece.copy_(torch.randn(piece.shape, generator=generator, device=device).add_(shared))
    return keys


def draw_query(tokens: int, shape: Shape, cosine: float = 0.0) -> Tensor:
    """``[1, T, Hq, D]``; ``cosine`` above 0: its tokens share the direction of keys drawn with the same one."""
    size = (1, tokens, shape.kv_heads * shape.group, shape.head_dim)
    query = torch.randn(size, generator=torch.Generator().manual_seed(tokens))
    return query + _shared_direction(shape, cosine).repeat_interleave(shape.group, dim=0)


def _shared_direction(shape: Shape, cosine: float) -> Tensor:
    """``[Hkv, D]``: what is added to vectors of variance 1 for two of them to have this cosine in the mean."""
    direction = torch.randn(shape.kv_heads, shape.head_dim, generator=torch.Generator().manual_seed(1))
    direction *= shape.head_dim**0.5 / direction.norm(dim=-1, keepdim=True)
    return direction * (cosine / (1 - cosine)) ** 0.5


def offsets_of(num_chunks: int, chunks_per_document: int = CHUNKS_PER_DOCUMENT) -> Tensor:
    """``[N + 1]`` for documents of equal length, the last one perhaps shorter."""
    return torch.cat([torch.arange(0, num_chunks, chunks_per_document), torch.tensor([num_chunks])])


def prepare(form: str, keys: Tensor, similarity: str, *, in_place: bool = False) -> KeyBlock:
    """The keys in one form, as a memory holds them; ``in_place``: halved keys take the place of the given ones.

    On a CPU, int8 keys are looked at again from the stored ones.
    """
    if form == "int8":
        block = quantize_keys(keys, similarity)
        return block if keys.device.type == "cuda" else replace(block, stored=keys)
    if form == "half":
        return halve_keys(keys, similarity, out=keys) if in_place else halve_keys(keys, similarity)
    return measure_keys(keys, similarity)


def ready_keys(keys: Tensor, similarity: str) -> Tensor:
    """``[Hkv, C, D]`` contiguous, ready for a plain scorer's products; what is given may be overwritten."""
    if similarity == "cosine":
        keys = halve_keys(keys, "cosine", out=keys).keys
    return keys.transpose(0, 1).contiguous()


def plain_scorer(method: str, query: Tensor, keys: Tensor, shape: Shape) -> Callable[[], Tensor]:
    """A call that gives the score of every chunk ``[C]``, in bfloat16.

    Args:
        method: ``as written``: head by head with one broadcast product over slices of 16,384 chunks, as the authors'
            code does it; ``folded``: a group's query heads are rows of one product.
        query: ``[1, T, Hq, D]``.
        keys: ``[Hkv, C, D]`` of :func:`ready_keys`.
        shape: of both.
    """
    q = query[0].unflatten(1, (shape.kv_heads, shape.group)).permute(1, 2, 0, 3).to(keys.dtype)  # [Hkv, g, T, D]
    if shape.similarity == "cosine":
        q = torch.nn.functional.normalize(q, dim=-1)

    def score(part: Tensor) -> Tensor:
        if method == "as written":
            return (q @ part[:, None].transpose(2, 3)).mean((0, 1)).amax(0)  # of [Hkv, g, T, c]
        scores = (q.flatten(1, 2) @ part.transpose(1, 2)).unflatten(1, q.shape[1:3])
        return (scores.flatten(0, 1).sum(0) / (shape.kv_heads * shape.group)).amax(0)  # faster here than a mean

    return lambda: torch.cat([score(part) for part in keys.split(SLICE, dim=1)])


def plain_selector(scorer: Callable[[], Tensor], offsets: Tensor) -> Selector:
    """A call that selects the best documents by a plain scorer's chunk scores."""

    def best() -> list[int]:
        documents = torch.segment_reduce(scorer().float(), "max", offsets=offsets)
        return documents.topk(min(TOP_K, len(documents))).indices.tolist()

    return best


def peer_selectors(query: Tensor, keys: Tensor, shape: Shape, names: Iterable[str]) -> dict[str, Selector]:
    """Calls that select the best documents by other libraries that are not missing, a document having 8 chunks.

    Heads are summed before, as here: one product of Hkv·D numbers per token and chunk.

    Args:
        query: ``[1, T, Hq, D]``.
        keys: ``[Hkv, C, D]`` of :func:`ready_keys`.
        shape: of both.
        names: among :data:`~msa.bench.peers.PEERS`.
    """
    mask = torch.ones(query.shape[:2], dtype=torch.bool)
    rows = prepare_query(query, mask, shape.kv_heads, RoutingSpec(similarity=shape.similarity))[0][0]
    flat = keys.transpose(0, 1).flatten(1).float()
    return {name: peer_search(name, rows, flat, CHUNKS_PER_DOCUMENT, TOP_K) for name in names}


def bench_routing(
    shape: Shape, num_chunks: int, question_tokens: Sequence[int], repeats: int, device: torch.device
) -> list[Figure]:
    """The scorer over each form of keys, for questions of several lengths.

    Args:
        shape: heads of the keys, which are synthetic: one router layer's.
        num_chunks: size of the memory.
        question_tokens: lengths.
        repeats: rounds of each.
        device: where it runs; other libraries are measured on CPUs only.
    """
    timer = timer_of(device)
    keys, offsets = draw_keys(num_chunks, shape, device), offsets_of(num_chunks).to(device)
    blocks = {form: prepare(form, keys, shape.similarity) for form in FORMS}
    few = num_chunks <= PLAIN_CHUNKS
    ready = ready_keys(keys.clone(), shape.similarity) if few else keys[:0]
    peers, missing = peers_here() if few and device.type == "cpu" else ([], {})
    streams = {form: timer(reading(block.keys), repeats) for form, block in blocks.items()}
    dtypes = {torch.bfloat16 if device.type == "cuda" else block.keys.dtype for block in blocks.values()}
    operations = {dtype: seconds_per_operation(dtype, device) for dtype in dtypes}
    figures = []
    for tokens in question_tokens:
        query = draw_query(tokens, shape).to(device)
        others = _baselines(query, ready, offsets, shape, peers) if few else {}
        baselines = {name: timer(work, repeats) for name, work in others.items()}
        theirs = {name: added_mib(others[name], device) for name in PLAIN if name in others}
        for form, block in blocks.items():
            work = _selector(query, block, offsets, shape)
            memory = {"here": added_mib(work, device), **theirs}
            figures.append(
                Figure(
                    what=f"routing, {tokens} tokens, {form} keys",
                    times=timer(work, repeats),
                    baselines=baselines,
                    floors={"reading": streams[form], **_products(block.keys, tokens, operations, repeats)},
                    missing=missing,
                    details={
                        "chunks": num_chunks,
                        "heads": str(shape),
                        "key bytes": block.keys.nbytes,
                        "MiB added at the peak": memory,
                    },
                )
            )
    return figures


def _selector(query: Tensor, block: KeyBlock, offsets: Tensor, shape: Shape) -> Callable[[], Any]:
    mask, spec = query.new_ones(query.shape[:2], dtype=torch.bool), RoutingSpec(similarity=shape.similarity)
    return lambda: select(query, mask, [block], offsets, spec, TOP_K)


def _baselines(
    query: Tensor, ready: Tensor, offsets: Tensor, shape: Shape, peers: Sequence[str]
) -> dict[str, Selector]:
    """Plain scorers, and other libraries."""
    works = {name: plain_selector(plain_scorer(name, query, ready, shape), offsets) for name in PLAIN}
    return {**works, **peer_selectors(query, ready, shape, peers)} if peers else works


def _products(keys: Tensor, tokens: int, operations: Mapping[torch.dtype, Times], repeats: int) -> dict[str, Times]:
    """Seconds of multiplying the question with the keys: in cache, and at the speed of a large product."""
    num_chunks, length = keys.shape[0], keys[0].numel()
    factor = 2 * tokens * length * num_chunks
    if keys.device.type == "cuda":
        return {"peak": scaled(operations[torch.bfloat16], factor)}
    product = timed(in_cache(keys.dtype, tokens, length, num_chunks), repeats)
    return {"product": product, "peak": scaled(operations[keys.dtype], factor)}
