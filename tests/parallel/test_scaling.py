"""docs/scaling.md: its formulas agree with real tensors, and its tables with its formulas."""

from pathlib import Path

import torch
from scaling import formulas
from tiny import random_tokens, tiny_lm

from msa.encoding import encode_in_batches
from msa.model import DocumentMemory

ROOT = Path(__file__).parents[2]
TINY = formulas.Shape(name="tiny", num_layers=4, num_router_layers=2, num_heads=6, num_key_value_heads=2, head_dim=8)


def num_bytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def encoded() -> DocumentMemory:
    return encode_in_batches(tiny_lm().to(torch.bfloat16), random_tokens(*[10] * 7))


def test_sizes_are_those_of_real_tensors():
    memory = encoded()
    num_chunks = formulas.count_chunks(70, document_tokens=10, chunk_size=4)
    assert num_chunks == int(memory.chunk_offsets[-1]) == 21
    assert formulas.routing_key_bytes(TINY, num_chunks) == num_bytes(*memory.routing_keys.values())
    assert formulas.content_bytes(TINY, num_chunks) == num_bytes(*memory.keys.values(), *memory.values.values())
    numbers = owner = place = torch.arange(7)
    assert formulas.index_bytes(7) == num_bytes(memory.chunk_offsets, numbers, owner, place)


def test_int8_keys_have_a_scale_per_chunk_and_layer():
    memory, quantized = encoded(), []
    for keys in memory.routing_keys.values():
        scales = keys.float().flatten(1).abs().amax(1) / 127
        quantized += [(keys.float() / scales[:, None, None]).round().to(torch.int8), scales]
    assert formulas.routing_key_bytes(TINY, 21, int8=True) == num_bytes(*quantized)


def test_the_papers_sizes_come_out():
    """100M tokens: 56 GB of routing keys and 169 GB in all, as the paper has them, to 3 %."""
    shape, chunks = formulas.SHAPES[1], formulas.count_chunks(10**8)
    keys = formulas.routing_key_bytes(shape, chunks)
    assert abs(keys / 56e9 - 1) < 0.03
    assert abs((keys + formulas.content_bytes(shape, chunks)) / 169e9 - 1) < 0.03


def test_the_documents_tables_are_the_scripts():
    assert formulas.tables() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
