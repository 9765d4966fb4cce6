"""Continuous batching: many questions decoded in one pass a token, each joining and leaving between two tokens.

A question is an iterator of events and of decodings that wait for a pass (:meth:`msa.Engine.steps`); whether it writes
ids or its answer, which memory it is about and how far it is makes no difference to the pass. What it draws, when it
stops, and what happens between two tokens is its own business and the same as if it were alone.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence

import torch

from msa.generation.decoding import Decoding
from msa.generation.types import Event
from msa.model import KVCache, MSAForCausalLM, RunningCache
from msa.routing.tiers import free_host_bytes

Question = Generator[Event | Decoding, None, None]

_SHARE_OF_FREE = 4  # of the memory that is free at first, the rows may take one part in so many


class Batcher:
    """Makes the passes that decodings wait for, together.

    Args:
        lm: the network of all of them.
        max_rows: decoded in one pass, at most; 1: each pass is the decoding's own, as without a batcher.
        max_bytes: keys and values of all rows together, as far as they would grow if every row used all the tokens it
            may; None: a quarter of the memory that is free now on the network's device. A single row has no limit.

    Raises:
        ValueError: ``max_rows`` below 1.
    """

    def __init__(self, lm: MSAForCausalLM, max_rows: int = 16, max_bytes: int | None = None) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows
        if max_bytes is None:
            free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else free_host_bytes()
            max_bytes = free // _SHARE_OF_FREE
        self.max_bytes = max_bytes
        self._lm = lm
        self._rows: list[Decoding] = []  # in the order of the cache's rows
        self._columns: dict[Decoding, int] = {}  # that each may come to have
        self._column_bytes = 0  # of one row
        self._cache = RunningCache(max_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def usage(self) -> float:
        """Share of ``max_bytes`` that the rows may come to take; a decoding that is alone has no row."""
        columns = max([*self._columns.values()], default=0)
        return len(self._rows) * columns * self._column_bytes / max(1, self.max_bytes)

    def advance(self, waiting: Sequence[Decoding]) -> list[Decoding]:
        """One pass for those that wait, the earliest first; returns those that were served.

        Args:
            waiting: every decoding that waits for its next token, also those that were not served the last time. One
                that was served before and is not among them has ended, and its row is freed.

        Raises:
            ValueError: a decoding of several rows.
            RuntimeError: memory ran out. Nothing has changed: with fewer it can be tried again.
        """
        served = self.seat(waiting)
        if not self._rows:
            return self._alone(served)
        logits = self._cache.decode(self._lm, [decoding.tokens[0] for decoding in self._rows])
        for row, decoding in enumerate(self._rows):
            decoding.give(logits[row : row + 1])
        return served

    def seat(self, waiting: Sequence[Decoding]) -> list[Decoding]:
        """Give rows to those that wait, the earliest first, as far as there is room; no pass is made.

        Args:
            waiting: as for :meth:`advance`.

        Returns:
            Those that the next pass will serve if no more come.

        Raises:
            ValueError, RuntimeError: as for :meth:`advance`.
        """
        if any(len(decoding.rows) != 1 for decoding in waiting):
            raise ValueError("only decodings of a single row can be batched; run one of several rows by itself")
        for decoding in [row for row in self._rows if row not in waiting]:
            self._leave(decoding)
        if self.max_rows == 1 or (not self._rows and len(waiting) == 1):
            return [*waiting[:1]]
        return [decoding for decoding in waiting if decoding in self._columns or self._join(decoding)]

    @staticmethod
    def _alone(waiting: Sequence[Decoding]) -> list[Decoding]:
        for decoding in waiting:
            decoding.advance()
        return [*waiting]

    def _join(self, decoding: Decoding) -> bool:
        """Give a decoding a row if there is room for it."""
        if len(self._rows) >= self.max_rows:
            return False
        prompt, generated = decoding.rows[0].prompt, decoding.rows[0].generated
        left = max(0, prompt.max_new_tokens - len(generated))
        columns = max(layer.length for layer in decoding.cache.layers) + 1 + left
        widest = max([columns, *self._columns.values()])
        if self._rows and RunningCache.bytes_of(decoding.cache, len(self._rows) + 1, widest) > self.max_bytes:
            return False
        self._column_bytes = RunningCache.bytes_of(decoding.cache, 1, 1)
        self._cache.join(decoding.cache)
        decoding.lend(self._reclaim)
        self._rows.append(decoding)
        self._columns[decoding] = columns
        return True

    def _leave(self, decoding: Decoding) -> None:
        row = self._rows.index(decoding)
        last = self._rows.pop()
        if last is not decoding:
            self._rows[row] = last
        self._cache.leave(row)
        del self._columns[decoding]
        if not self._rows:
            self._cache = RunningCache(self.max_bytes)  # nothing is held while nothing runs

    def _reclaim(self, decoding: Decoding) -> KVCache:
        """Take a row out, to go on alone."""
        cache = self._cache.copy_of(self._rows.index(decoding))
        self._leave(decoding)
        return cache


def answer_together(questions: Iterable[Question], batcher: Batcher) -> Iterator[tuple[int, Event]]:
    """Answer many questions, as many at a time as the batcher has rows; the next begins as soon as one has ended.

    Args:
        questions: each from :meth:`msa.Engine.steps`; taken one by one as there is room.
        batcher: of their network.

    Yields:
        The question's place in ``questions``, and its event.

    Raises:
        BaseException: what a question raised; the others are closed.
    """
    coming = enumerate(questions)
    running: dict[int, Question] = {}
    waiting: dict[int, Decoding] = {}
    more, crowded = True, False
    try:
        while running or more:
            for index in [index for index in running if index not in waiting]:
                yield from _until_it_waits(index, running, waiting)
            while more and not crowded and len(running) < batcher.max_rows:
                index, question = next(coming, (-1, None))
                more = question is not None
                if question is not None:
                    running[index] = question
                    yield from _until_it_waits(index, running, waiting)
                    crowded = len(batcher.seat([*waiting.values()])) < len(waiting)
            served = batcher.advance([*waiting.values()])
            crowded = len(served) < len(waiting)
            waiting = {index: decoding for index, decoding in waiting.items() if decoding not in served}
    finally:
        for question in running.values():
            question.close()
        batcher.advance([])


def _until_it_waits(
    index: int, running: dict[int, Question], waiting: dict[int, Decoding]
) -> Iterator[tuple[int, Event]]:
    """Let a question go on to the next pass that it waits for, or to its end."""
    for item in running[index]:
        if isinstance(item, Decoding):
            waiting[index] = item
            return
        yield index, item
    del running[index]
