"""Two ranks encode together, in processes of their own; test_encoding.py starts this, because it forks.

    python encoding_ranks.py FOLDER

Each scenario writes FOLDER/SCENARIO/R.json for both ranks R: what was raised there, and what was logged as an error.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from in_ranks import LOST_AFTER_S, ended, start
from tiny import tiny_model

import msa.parallel.encoding as encoding
from msa.encoding import encode_in_batches
from msa.parallel import Ranks, end_encoding, follow_encoding, init_from_environment, lead_encoding

DOCUMENTS = [[5] * length for length in (3, 30, 7, 12)]
MODEL, OTHER = tiny_model(), tiny_model(seed=1)


def rank_0_is_slow(ranks: Ranks) -> None:
    """Longer than the ranks wait for each other: the other one loading, reading before the first window and between two."""
    if ranks.rank:
        follow_encoding(lambda: time.sleep(1.5 * LOST_AFTER_S) or MODEL.lm, ranks)
        return
    encoding.begin_encoding(ranks)
    for _ in range(2):
        time.sleep(2 * LOST_AFTER_S)
        together = lead_encoding(MODEL.lm, DOCUMENTS, ranks)
        alone = encode_in_batches(MODEL.lm, DOCUMENTS)
        assert all(torch.equal(together.keys[layer], alone.keys[layer]) for layer in alone.keys)
    end_encoding(ranks)


def interrupted(ranks: Ranks) -> None:
    """Ctrl-C reaches both while they encode."""

    def interrupt(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return encode_in_batches(*arguments, **options)

    encoding.encode_in_batches = interrupt  # type: ignore[assignment]
    encoding.batch_tokens_for = lambda lm: 32  # type: ignore[assignment] # several batches: both have something to do
    encode(ranks, MODEL)


def one_is_interrupted_early(ranks: Ranks) -> None:
    """Rank 0 is interrupted between two windows: the other one is let go."""
    if ranks.rank:
        follow_encoding(MODEL.lm, ranks)
        return
    try:
        lead_encoding(MODEL.lm, DOCUMENTS, ranks)
        raise KeyboardInterrupt
    finally:
        end_encoding(ranks)


def another_model(ranks: Ranks) -> None:
    """Rank 1 has other weights."""
    encode(ranks, OTHER if ranks.rank else MODEL)


def another_dtype(ranks: Ranks) -> None:
    """Rank 1 has the same weights in bfloat16."""
    if ranks.rank:
        MODEL.lm.bfloat16()
    encode(ranks, MODEL)


def encode(ranks: Ranks, model: Any) -> None:
    """Whatever happens, rank 0 lets the other one go."""
    if ranks.rank:
        follow_encoding(model.lm, ranks)
        return
    try:
        lead_encoding(model.lm, DOCUMENTS, ranks)
    finally:
        end_encoding(ranks)


def run(scenario: Callable[[Ranks], None]) -> dict[str, str]:
    """One rank of a scenario."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("msa").addHandler(handler)
    raised = ""
    try:
        scenario(init_from_environment(LOST_AFTER_S, "cpu"))
    except (Exception, KeyboardInterrupt) as error:
        raised = f"{type(error).__name__}: {error}"
    return {"raised": raised, "logged": "\n".join(errors)}


def main(folder: Path) -> None:
    """All scenarios, one after the other."""
    for scenario in (rank_0_is_slow, interrupted, one_is_interrupted_early, another_model, another_dtype):
        children = start(folder / scenario.__name__, 2, 2, lambda scenario=scenario: run(scenario))  # type: ignore[misc]
        assert [ended(child) for child in children] == [0, 0], scenario.__name__


if __name__ == "__main__":
    main(Path(sys.argv[1]))
