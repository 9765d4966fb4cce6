"""Sizes, bytes moved and lower bounds of time for memories of 1M to 10B tokens; prints docs/scaling.md's tables.

    python benchmarks/scaling_formulas.py

Nothing here is measured: sizes follow from shapes, times are bytes divided by a nominal bandwidth.
Axes: N documents, C chunks, R router layers, Hq query heads, Hkv key/value heads, D head_dim, W ranks, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_SIZE = 64
DOCUMENT_TOKENS = 1024
TOP_K = 16
QUESTION_TOKENS = 32
RANK_BYTES = 60e9  # for routing keys, of an 80 GB accelerator
MEMORY_BANDWIDTH = 3.35e12  # bytes/s, HBM3 of an H100 SXM as its data sheet has it
LINK_BANDWIDTH = 50e9  # bytes/s into one rank, a nominal 400 Gbit/s
TOKENS = (10**6, 10**7, 10**8, 10**9, 10**10)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model the memory's size depends on."""

    name: str
    num_layers: int
    num_router_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Values of one pooled key, Hkv·D."""
        return self.num_key_value_heads * self.head_dim


SHAPES = (
    Shape(name="SmolLM2-135M", num_layers=30, num_router_layers=15, num_heads=9, num_key_value_heads=3, head_dim=64),
    Shape(name="Qwen3-4B", num_layers=36, num_router_layers=18, num_heads=32, num_key_value_heads=8, head_dim=128),
    Shape(name="Llama-3-8B", num_layers=32, num_router_layers=16, num_heads=32, num_key_value_heads=8, head_dim=128),
)


def count_chunks(tokens: int, document_tokens: int = DOCUMENT_TOKENS, chunk_size: int = CHUNK_SIZE) -> int:
    """C of equally long documents; each document's last chunk may be shorter."""
    return (tokens // document_tokens) * -(-document_tokens // chunk_size)


def routing_key_bytes(shape: Shape, num_chunks: int, *, int8: bool = False) -> int:
    """R·C·Hkv·D·2 in bf16; R·C·(Hkv·D + 4) in int8, a float32 scale per chunk and layer."""
    return shape.num_router_layers * num_chunks * (shape.width + 4 if int8 else 2 * shape.width)


def content_bytes(shape: Shape, num_chunks: int, *, num_layers: int | None = None, value_bytes: int = 2) -> int:
    """R·C·2·Hkv·D·2: keys and values in bf16, of all router layers unless told otherwise."""
    layers = shape.num_router_layers if num_layers is None else num_layers
    return layers * num_chunks * 2 * shape.width * value_bytes


def index_bytes(num_documents: int) -> int:
    """8(N + 1) + 8N + 16N: chunk offsets, numbers, and each document's rank and place there; on every rank."""
    return 8 * (num_documents + 1) + 24 * num_documents


def query_bytes(shape: Shape, tokens: int = QUESTION_TOKENS, *, value_bytes: int = 2) -> int:
    """T·Hq·D·2: rank 0's routing queries of one layer."""
    return tokens * shape.num_heads * shape.head_dim * value_bytes


def score_bytes(num_documents: int, num_chunks: int) -> int:
    """4(N + C): float32 scores of one layer and question."""
    return 4 * (num_documents + num_chunks)


def top_k_bytes(world: int, top_k: int = TOP_K) -> int:
    """8·k·W: the candidates' int64 indices of one layer and question."""
    return 8 * top_k * world


def ranks_needed(key_bytes: int) -> int:
    """The fewest ranks whose RANK_BYTES hold the routing keys."""
    return max(1, -(-key_bytes // int(RANK_BYTES)))


def received_bytes(shape: Shape, tokens: int, world: int) -> dict[str, float]:
    """What one rank (not rank 0) receives for a question over all router layers, per kind of exchange.

    The share from others is (W − 1) / W; winners are spread evenly over ranks.
    """
    layers, others = shape.num_router_layers, (world - 1) / world
    num_documents, num_chunks = tokens // DOCUMENT_TOKENS, count_chunks(tokens)
    return {
        "queries": layers * query_bytes(shape) if world > 1 else 0,
        "candidates": layers * top_k_bytes(world) * others,
        "scores": layers * score_bytes(num_documents, num_chunks) * others,
        "winners": content_bytes(shape, count_chunks(TOP_K * DOCUMENT_TOKENS)) * others,
    }


def size(num_bytes: float) -> str:
    """Bytes in decimal units, three digits.

    >>> size(0), size(999), size(57_600_000_000)
    ('0', '999 B', '57.6 GB')
    """
    digits, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if digits < 999.5:
            break
        digits, unit = digits / 1e3, larger
    return f"{digits:.3g} {unit}" if num_bytes else "0"


def duration(seconds: float) -> str:
    """Seconds in a readable unit, three digits."""
    if seconds == 0:
        return "0"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def count(number: int) -> str:
    """A number of tokens: 1M, 10B.

    >>> count(10**7), count(10**10)
    ('10M', '10B')
    """
    return f"{number // 10**9}B" if number >= 10**9 else f"{number // 10**6}M"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory_table(shape: Shape) -> str:
    """What has to be stored."""
    rows = []
    for tokens in TOKENS:
        num_documents, num_chunks = tokens // DOCUMENT_TOKENS, count_chunks(tokens)
        rows.append(
            [
                count(tokens),
                f"{num_documents:,}",
                f"{num_chunks:,}",
                size(routing_key_bytes(shape, num_chunks)),
                size(routing_key_bytes(shape, num_chunks, int8=True)),
                size(content_bytes(shape, num_chunks)),
                size(index_bytes(num_documents)),
            ]
        )
    return table(
        ["tokens", "documents", "chunks", "routing keys, bf16", "routing keys, int8", "content K/V", "index"], rows
    )


def query_table(shape: Shape, *, int8: bool) -> str:
    """What one question moves, and the derived lower bounds of its time, on the fewest ranks that hold the keys."""
    rows = []
    for tokens in TOKENS:
        num_chunks = count_chunks(tokens)
        keys = routing_key_bytes(shape, num_chunks, int8=int8)
        world = ranks_needed(keys)
        received = received_bytes(shape, tokens, world)
        held = shape.num_router_layers * score_bytes(tokens // DOCUMENT_TOKENS, num_chunks)
        rows.append(
            [
                count(tokens),
                str(world),
                size(keys / world),
                size(received["queries"] + received["candidates"]),
                size(received["winners"]),
                size(received["scores"]),
                size(held),
                duration(keys / world / MEMORY_BANDWIDTH),
                duration(sum(received.values()) / LINK_BANDWIDTH),
                duration((sum(received.values()) - received["scores"]) / LINK_BANDWIDTH),
            ]
        )
    columns = [
        "tokens",
        "ranks",
        "keys read per rank",
        "queries, candidates received",
        "winners received",
        "scores received",
        "scores held per rank",
        "≥ scoring",
        "≥ exchange",
        "≥ exchange without scores",
    ]
    return table(columns, rows)


def tables() -> str:
    """All of docs/scaling.md's tables."""
    parts = []
    for shape in SHAPES:
        parts += [
            f"### {shape.name}\n\n{shape.num_layers} layers, R = {shape.num_router_layers}, Hq = {shape.num_heads}, "
            f"Hkv x D = {shape.num_key_value_heads} x {shape.head_dim}.\n\n{memory_table(shape)}",
            f"One question, bf16 routing keys (times derived, not measured):\n\n{query_table(shape, int8=False)}",
            f"One question, int8 routing keys (times derived, not measured):\n\n{query_table(shape, int8=True)}",
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(tables())
