"""Random tokens with spans of them quoted again: rows from which a fresh network learns to copy before anything else.

Copying what stands earlier in the row (an induction head) is what reading an answer out of an injected text needs. From
answers of a few tokens a row it is hardly learnt in thousands of steps; from these rows in a few hundred. Spans are
quoted from anywhere and in any order: where the distance between original and copy is always the same, attention
learns that distance, and nothing that is of use elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from msa.training.data.collate import RowBucket, rows_alone
from msa.training.data.steps import IGNORED
from msa.training.ranges import check_numbers


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Rows without documents.

    Attributes:
        questions: rows of a step.
        tokens: random tokens a row begins with, at most; at least half as many.
        quoted_tokens: tokens of spans quoted from them that follow.
        min_span, max_span: tokens of a span.
        few_tokens: share of rows made of few different tokens, where the last token alone does not tell what comes
            next: numbers and uuids are of that kind.
    """

    questions: int = 64
    tokens: int = 40
    quoted_tokens: int = 40
    min_span: int = 4
    max_span: int = 16
    few_tokens: float = 0.4

    def __post_init__(self) -> None:
        check_numbers(self, from_one=("questions", "quoted_tokens"), shares=("few_tokens",))
        if not 2 <= self.min_span <= self.max_span <= self.tokens // 2:
            raise ValueError(
                f"copying needs spans (min_span, max_span) of 2 to tokens/2 = {self.tokens // 2} tokens, "
                f"got {self.min_span} to {self.max_span}"
            )


def copy_rows(config: CopyConfig, vocabulary: Sequence[int], seed: str) -> RowBucket:
    """Rows over the token ids in ``vocabulary``; learnt are all but the first token of every quoted span."""
    rng = random.Random(seed)
    width = config.tokens + config.quoted_tokens
    rows = []
    for _ in range(config.questions):
        alphabet = rng.sample(vocabulary, min(rng.randint(10, 20), len(vocabulary)))
        pool = alphabet if rng.random() < config.few_tokens else vocabulary
        original = [rng.choice(pool) for _ in range(rng.randint(config.tokens // 2, config.tokens))]
        ids, labels = list(original), [IGNORED] * len(original)
        while len(ids) < width:
            size = rng.randint(config.min_span, config.max_span)
            start = rng.randrange(len(original) - size + 1)
            span = original[start : start + size]
            ids += span
            labels += [IGNORED, *span[1:]]
        rows.append((ids[:width], labels[:width]))
    return rows_alone(rows, ["copy"] * config.questions)
