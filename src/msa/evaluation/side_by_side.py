"""Every way of answering on the same questions while the documents grow: streamed in, each taken in once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from msa.evaluation.alternatives import ALTERNATIVES
from msa.evaluation.alternatives.memory_rows import MemoryAnswerer
from msa.evaluation.growth import batches, check_grown, check_not_beyond, note_growth, read_growth
from msa.evaluation.records import Record, RecordLog
from msa.evaluation.runner import Scorer, ask_questions
from msa.evaluation.scoring import score_ruler
from msa.evaluation.types import Answerer, Growing, Question

Make = Callable[..., Answerer]
Say = Callable[[str], None]


@contextmanager
def opened(make: Make, name: str) -> Iterator[Answerer]:
    """A way of answering, closed at the end if it can be closed."""
    answerer = make(name)
    try:
        yield answerer
    finally:
        close = getattr(answerer, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A comparison over documents that grow; what has been answered is not asked again.

    Rows of ours that score alike share one memory in ``folder``, which a stopped run goes on from; they are asked size
    by size, one after the other. The others hold their documents themselves, from their first size to their last, and
    take them in again when a stopped run goes on. No more than a batch of documents is held besides.

    Attributes:
        make: (name of the way, options) → the way.
        growing: documents and questions of all sizes.
        log: keeps each answer.
        folder: of the run: its memories, and what each size cost each way in ``growth.jsonl``.
        say: shows what is being done.
        scorer: metric values of one answer.
        max_new_tokens: for questions that do not say.
        limits: way → questions it is asked at each size, the first ones; others are asked all.
    """

    make: Make
    growing: Growing
    log: RecordLog
    folder: Path
    say: Say
    scorer: Scorer = score_ruler
    max_new_tokens: int = 64
    limits: Mapping[str, int] = field(default_factory=dict)

    def run(self, ways: Sequence[str]) -> list[Record]:
        """Ask what is missing; returns the records of all ways, size by size.

        Raises:
            EvaluationError: a memory was made for something else, or has grown beyond a size that is still to be asked.
        """
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(ways):
            memory = ALTERNATIVES[name].memory if name in ALTERNATIVES else ""
            groups.setdefault(memory or f"alone/{name}", []).append(name)
        for memory, names in groups.items():
            if memory.startswith("alone/"):
                self._ask_alone(names[0])
            else:
                self._ask_sharing(memory, names)
        places = [(name, size) for size in self.growing.sizes for name in dict.fromkeys(ways)]
        return [record for place in places for record in self._records(*place)]

    def _questions(self, name: str, size: int) -> tuple[Question, ...]:
        return tuple(self.growing.asked(size)[: self.limits.get(name)])

    def _records(self, name: str, size: int) -> list[Record]:
        return self.log.of_questions(name, self.growing.name, size, self._questions(name, size))

    def _is_missing(self, name: str, size: int) -> bool:
        return bool(self.log.missing(name, self.growing.name, size, self._questions(name, size)))

    def _ask_alone(self, name: str) -> None:
        """A way that holds its documents itself; neither it nor they are made where no question is left."""
        answerer: Answerer | None = None
        waiting: list[int] = []
        with ExitStack() as stack:
            for size in self.growing.sizes:
                waiting.append(size)
                if self._is_missing(name, size):
                    if answerer is None:
                        answerer = stack.enter_context(opened(self.make, name))
                    self._note(name, size, self._take_in(answerer, waiting))
                    waiting = []
                    self._ask(answerer, size)

    def _ask_sharing(self, memory: str, names: Sequence[str]) -> None:
        """Ways over one memory: it grows by a size, then each of them is asked."""
        folder, waiting = self.folder / memory, list[int]()
        for size in self.growing.sizes:
            waiting.append(size)
            left = [name for name in names if self._is_missing(name, size)]
            if left:
                self._grow(memory, left[0], size, waiting)
                waiting = []
            for name in left:
                with opened(partial(self.make, folder=folder, read_only=True), name) as answerer:
                    answerer.settle()
                    self._ask(answerer, size)

    def _grow(self, memory: str, name: str, size: int, parts: Sequence[int]) -> None:
        """Bring a memory to a size: what it holds already is looked for, not encoded."""
        folder, wanted = self.folder / memory, self.growing.num_documents(size)
        with opened(partial(self.make, folder=folder), name) as answerer:
            if not isinstance(answerer, MemoryAnswerer):
                raise TypeError(f"expected {name} to be a row of ours, found {type(answerer).__name__}")
            check_not_beyond(self.folder, answerer.stats()["documents"], wanted, size)
            cost = self._take_in(answerer, parts, settle=False)
            stats = answerer.stats()
            check_grown(self.folder, stats["documents"], wanted)
            kept = {key: stats[key] for key in ("tokens", "chunks", "bytes_on_disk")}
            self._note(memory, size, {**cost, **kept, "encoded_tokens": answerer.encoded_tokens})

    def _take_in(self, answerer: Answerer, parts: Sequence[int], *, settle: bool = True) -> dict[str, Any]:
        """Stream the documents of some sizes into a way; returns what that cost."""
        self.log.begin()  # what is taken in, and what it cost, belongs to these settings
        started, documents = time.perf_counter(), 0
        for part in parts:
            for batch in batches(self.growing.documents(part)):
                answerer.prepare(batch)
                documents += len(batch)
                self.say(f"{answerer.name}, {part:,} tokens: {documents:,} documents taken in")
        if settle:
            answerer.settle()
        return {"documents": documents, "seconds": time.perf_counter() - started}

    def _note(self, way: str, size: int, cost: Mapping[str, Any]) -> None:
        """Keep what a size cost, unless it is a look for what was there before."""
        noted = {(entry.get("way"), entry["size"]) for entry in read_growth(self.folder)}
        if (way, size) not in noted or cost.get("encoded_tokens"):
            note_growth(self.folder, {"way": way, "size": size, **cost})

    def _ask(self, answerer: Answerer, size: int) -> None:
        ask_questions(
            answerer,
            self.growing.name,
            self._questions(answerer.name, size),
            self.log,
            self.scorer,
            size_tokens=size,
            max_new_tokens=self.max_new_tokens,
            progress=lambda done, total: self.say(f"{answerer.name}, {size:,} tokens: question {done} of {total}"),
        )
