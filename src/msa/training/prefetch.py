"""Batches prepared ahead by worker processes, so that a GPU does not wait for a tokenizer.

Every batch is a pure function of the step, so who prepares it changes nothing. Workers are forked: they share what was
read without copying it, and are forked anew whenever negatives were mined. Should one die or hang, the training process
prepares batches itself from then on; a ``DataLoader`` would end the run instead, by a signal in the midst of a step.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import fields, is_dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa.model import MSAForCausalLM
from msa.training.batches import Batches, FileSource, SampleSource
from msa.training.config import Phase, TrainConfig
from msa.training.data.collate import TrainingBatch
from msa.training.snapshot import Snapshot

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0
# set in each worker: functions that are sent to it can be given numbers, but not a training set again and again
_worker_batches: Batches


class Prefetched(Batches):
    """:class:`Batches` with workers, for a run of one process.

    Args:
        batches: where batches come from.
        config: the run's.
        workers: processes; 0: none, every batch is prepared when it is asked for.
        ahead: batches under way at a time.

    Raises:
        ValueError: fewer workers than 0, or none ahead.
    """

    def __init__(self, batches: Batches, config: TrainConfig, *, workers: int, ahead: int = 16) -> None:
        if workers < 0 or ahead < 1:
            raise ValueError(f"prefetching needs 0 workers or more and a batch ahead, got {workers} and {ahead}")
        self._inner, self._run, self._workers, self._ahead = batches, config, workers, ahead
        self._pool: ProcessPoolExecutor | None = None
        self._forked: list[BaseProcess] = []
        self._pending: dict[tuple[int, int], Future[TrainingBatch]] = {}
        self._drawn: dict[tuple[SampleSource | None, str, int], TrainingBatch] = {}

    @property
    def sources(self) -> list[SampleSource | None]:
        """See :meth:`Batches.sources`."""
        return self._inner.sources

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """See :meth:`Batches.batch`."""
        if not self._workers:
            return self._inner.batch(step, micro)
        try:
            self._submit(step, micro)
            prepared = self._pending.pop((step, micro)).result(timeout=_PATIENCE_S)
        except (BrokenExecutor, FutureTimeoutError, OSError) as error:
            log.warning("workers that prepare batches failed (%r); going on without them", error)
            self._workers = 0
            self.close()
            for process in self._forked:  # one that hangs would keep this process from ending
                process.kill()
            return self._inner.batch(step, micro)
        batch: TrainingBatch = _mapped(prepared, np.ndarray, torch.from_numpy)
        return batch

    def refresh(self, lm: MSAForCausalLM, step: int, folder: Path, *, writes: bool) -> None:
        """See :meth:`Batches.refresh`; workers learn of a new snapshot by being forked after it."""
        before = self._snapshots()
        self._inner.refresh(lm, step, folder, writes=writes)
        if any(now is not then for now, then in zip(self._snapshots(), before, strict=True)):
            self.close()

    def held_out(self, source: SampleSource | None, phase: Phase, number: int) -> TrainingBatch:
        """See :meth:`Batches.held_out`; drawn once."""
        key = (source, repr(phase), number)
        if key not in self._drawn:
            self._drawn[key] = self._inner.held_out(source, phase, number)
        return self._drawn[key]

    def close(self) -> None:
        """End the workers; they come back with the next batch."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _snapshots(self) -> list[Snapshot | None]:
        return [source.snapshot for source in self._inner.sources if isinstance(source, FileSource)]

    def _submit(self, step: int, micro: int) -> None:
        """Have this batch and those after it under way."""
        if self._pool is None:
            others = multiprocessing.active_children()
            context = multiprocessing.get_context("fork")
            # a fork takes its arguments along, whatever they are
            self._pool = ProcessPoolExecutor(self._workers, context, _start, (self._inner,))
            self._pending[step, micro] = self._pool.submit(_prepare, step, micro)
            self._forked = [child for child in multiprocessing.active_children() if child not in others]
        micros = self._run.micro_batches
        first = step * micros + micro
        for place in range(first, min(first + self._ahead, self._run.total_steps * micros)):
            key = divmod(place, micros)
            if key not in self._pending:
                self._pending[key] = self._pool.submit(_prepare, *key)


def _start(batches: Batches) -> None:
    global _worker_batches
    _worker_batches = batches
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # threads of the parent do not live on in a forked process


def _prepare(step: int, micro: int) -> TrainingBatch:
    """A batch of arrays, which are sent as they are; each tensor would take a file descriptor of shared memory."""
    batch: TrainingBatch = _mapped(_worker_batches.batch(step, micro), Tensor, Tensor.numpy)
    return batch


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A batch with everything of one kind in it changed."""
    if isinstance(value, kind):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), kind, change) for f in fields(value)})
    return [_mapped(item, kind, change) for item in value] if isinstance(value, list) else value
