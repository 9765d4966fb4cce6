"""Attention patterns: hand-checked masks, block-wise against one dense mask, and StreamingLLM against its literal cache."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny import random_tokens, tiny_lm

from msa.evaluation.alternatives import pattern_attention
from msa.evaluation.alternatives.pattern_attention import PatternCache, PatternReader, PatternRun, attend_dense
from msa.evaluation.alternatives.patterns import (
    FOREVER,
    BigBird,
    FullAttention,
    Longformer,
    SlidingWindow,
    StreamingLLM,
)
from msa.model.positions import apply_rope

PATTERNS = [
    FullAttention(),
    SlidingWindow(8),
    SlidingWindow(1),
    StreamingLLM(sinks=4, window=9),
    StreamingLLM(sinks=3, window=1),
    Longformer(window=6, global_ranges=((0, 3), (10, 13), (40, FOREVER))),
    Longformer(window=5),
    BigBird(window=8, global_ranges=((44, FOREVER),), block=4, random_blocks=2),
    BigBird(window=4, block=4, random_blocks=0),
]


@pytest.fixture
def small_blocks(monkeypatch):
    """Sizes at which a text of 50 tokens crosses every border."""
    monkeypatch.setattr(pattern_attention, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(pattern_attention, "_PIECE_TOKENS", 16)
    monkeypatch.setattr(pattern_attention, "_SLACK", 3)


def mask_of(pattern, length, layer=0):
    tokens = torch.arange(length)
    return ["".join("x" if seen else "." for seen in row) for row in pattern.sees(tokens, tokens, layer).tolist()]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (FullAttention(), ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]),
        (SlidingWindow(2), ["x.....", "xx....", ".xx...", "..xx..", "...xx.", "....xx"]),
        (StreamingLLM(sinks=1, window=2), ["x.....", "xx....", "xxx...", "x.xx..", "x..xx.", "x...xx"]),
        # token 1 is global, and so is everything from 5 on
        (Longformer(window=2, global_ranges=((1, 2), (5, FOREVER))), ["x.....", "xx....", ".xx...", ".xxx..", ".x.xx.", "xxxxxx"]),
        # blocks 01 23 45 67: each sees itself and the first
        (
            BigBird(window=2, block=2, random_blocks=0),
            ["x.......", "xx......", "xxx.....", "xxxx....", "xx..x...", "xx..xx..", "xx....x.", "xx....xx"],
        ),
        # a window of two blocks; tokens 6 and 7 ask
        (
            BigBird(window=2, block=1, random_blocks=0, global_ranges=((4, FOREVER),)),
            ["x.....", "xx....", "xxx...", "x.xx..", "xxxxx.", "xxxxxx"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_masks_checked_by_hand(pattern, expected):
    assert mask_of(pattern, len(expected)) == expected


def test_random_blocks_are_seeded_and_lie_between_the_first_block_and_the_window():
    pattern, same = (
        BigBird(window=4, block=2, random_blocks=2, seed=3),
        BigBird(window=4, block=2, seed=3, random_blocks=2),
    )
    none = BigBird(window=4, block=2, random_blocks=0)
    for layer in range(3):
        for block in range(12):
            chosen = pattern.random_choice(block, layer)
            assert chosen == same.random_choice(block, layer)
            assert len(chosen) == min(2, max(0, block - 2))
            assert all(1 <= index <= block - 2 for index in chosen)
            added = {
                column // 2
                for row in (2 * block, 2 * block + 1)
                for column in range(24)
                if mask_of(pattern, 24, layer)[row][column] != mask_of(none, 24, layer)[row][column]
            }
            assert added == set(chosen)
    assert [pattern.random_choice(11, layer) for layer in range(6)] != [pattern.random_choice(11, 0)] * 6
    assert [BigBird(seed=seed).random_choice(90, 0) for seed in range(4)] != [BigBird().random_choice(90, 0)] * 4


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_ranges_hold_every_column_that_is_seen(pattern):
    for first in range(0, 50, 3):
        for end in range(first + 1, min(first + 9, 51)):
            ranges = pattern.ranges(first, end, 1)
            assert all(a < b <= end for a, b in ranges)
            assert all(before[1] < after[0] for before, after in pairwise(ranges))
            held = {column for a, b in ranges for column in range(a, b)}
            rows, columns = torch.arange(first, end), torch.arange(50)
            seen = columns[pattern.sees(rows, columns, 1).any(0)].tolist()
            assert set(seen) <= held


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.usefixtures("small_blocks")
def test_block_wise_equals_the_dense_mask(pattern):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 50, 8, generator=generator) for heads in (6, 2, 2))
    rope, cache, outs = tiny_lm().model.rope, PatternCache(), []
    for first, end in ((0, 5), (5, 21), (21, 22), (22, 37), (37, 49), (49, 50)):
        reader = PatternReader(pattern, rope, cache, end - first)
        piece = slice(first, end)
        outs.append(
            reader.attend(SimpleNamespace(layer=0, rotates=True), None, q[:, :, piece], k[:, :, piece], v[:, :, piece])
        )
        cache.length = end
        cache.trim(pattern)
    torch.testing.assert_close(torch.cat(outs, 1), attend_dense(pattern, rope, q, k, v, 0), atol=2e-6, rtol=1e-5)
    if isinstance(pattern, StreamingLLM):
        assert cache.layers[0].length <= pattern.sinks + pattern.window + 3
        assert cache.dropped


@pytest.mark.parametrize("backbone", ["llama", "qwen3", "smollm3"])
@pytest.mark.parametrize(
    "pattern",
    [FullAttention(), SlidingWindow(60), StreamingLLM(window=57), Longformer(window=60), BigBird(window=64)],
    ids=repr,
)
def test_a_window_as_long_as_the_text_is_full_attention(backbone, pattern, monkeypatch):
    lm, ids = tiny_lm(backbone), random_tokens(60)[0]
    with torch.inference_mode():
        expected = lm(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(PatternRun(lm, pattern).read(ids), expected[-1], atol=2e-5, rtol=1e-5)
    monkeypatch.setattr(pattern_attention, "_BLOCK_ROWS", 11)
    run = PatternRun(lm, pattern)
    run.read(ids[:58])
    for place in (58, 59):
        torch.testing.assert_close(run.read([ids[place]]), expected[place], atol=2e-5, rtol=1e-5)
    if not pattern.renumbers:  # the same operations on the same numbers
        assert torch.equal(PatternRun(lm, pattern).read(ids), PatternRun(lm, FullAttention()).read(ids))


class LiteralCache:
    """StreamingLLM as its paper describes it: a list of unrotated keys per layer, rotated by place in the list."""

    def __init__(self, lm, sinks, window):
        self.rope, self.sinks, self.window = lm.model.rope, sinks, window
        self.held = [([], []) for _ in lm.model.layers]

    def attend(self, attention, hidden, q, k, v):
        keys, values = self.held[attention.layer]
        keys.append(k)
        values.append(v)
        if len(keys) > self.sinks + self.window:
            del keys[self.sinks], values[self.sinks]
        places = torch.arange(len(keys))[None]
        rotated = apply_rope(torch.cat(keys, 2), *self.rope(places, q.dtype))
        query = apply_rope(q, *self.rope(places[:, -1:], q.dtype))
        out = torch.nn.functional.scaled_dot_product_attention(query, rotated, torch.cat(values, 2), enable_gqa=True)
        return out.transpose(1, 2)


@pytest.mark.parametrize(("sinks", "window"), [(4, 12), (1, 3), (0, 6), (5, 1)])
@pytest.mark.usefixtures("small_blocks")
def test_streaming_llm_equals_feeding_tokens_one_by_one_into_its_cache(sinks, window):
    lm, ids = tiny_lm("llama", max_position_embeddings=32), random_tokens(70)[0]
    literal, one = LiteralCache(lm, sinks, window), torch.ones(())
    run = PatternRun(lm, StreamingLLM(sinks=sinks, window=window))
    with torch.inference_mode():
        for place, token in enumerate(ids):
            x = lm.model.embed_tokens(torch.tensor([[token]]))
            for layer in lm.model.layers:
                x = layer(x, (one, torch.zeros(())), literal)
            logits = lm.lm_head(lm.model.norm(x))[0, -1]
            if place == 63:
                torch.testing.assert_close(run.read(ids[:64]), logits, atol=5e-5, rtol=1e-4)
            elif place > 63:
                torch.testing.assert_close(run.read([token]), logits, atol=5e-5, rtol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_a_fork_leaves_the_cache_it_came_from_alone(lm):
    for pattern in (FullAttention(), StreamingLLM(sinks=2, window=6)):
        run = PatternRun(lm, pattern)
        run.read(random_tokens(40)[0])
        answers = [PatternRun(lm, pattern, run.cache.fork()).read(tokens) for tokens in random_tokens(200, 9, seed=1)]
        again = PatternRun(lm, pattern, run.cache.fork()).read(random_tokens(200, 9, seed=1)[1])
        assert torch.equal(answers[1], again)
        assert run.cache.length == 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: StreamingLLM(sinks=-1),
        lambda: SlidingWindow(0),
        lambda: Longformer(window=0),
        lambda: BigBird(window=100, block=64),
        lambda: BigBird(random_blocks=-1),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_nothing_to_read_is_refused(lm):
    with pytest.raises(ValueError, match="at least one token"):
        PatternRun(lm, FullAttention()).read([])
