"""Batches with rows beside them that answer from texts in the prompt, as routed mode asks for answers."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from msa.documents import Protocol
from msa.model import MSAForCausalLM
from msa.training.batches import Batches, FileSource, SampleSource
from msa.training.config import Phase, TrainConfig
from msa.training.data.collate import TrainingBatch
from msa.training.data.reading import reading_rows

MOST_READ = 4  # documents in the prompt of a row that reads


class ReadingBatches(Batches):
    """:class:`Batches` of files with ``rows`` rows beside them that read; mines only for phases that ask for it.

    Args:
        settings: the run's configuration.
        protocol: the transcript; its ``reader_prompt`` begins with its prefix.
        sources: one per phase that has data, see :class:`Batches`.
        rows: that read, of every step over files; 0: none.
    """

    def __init__(
        self, settings: TrainConfig, protocol: Protocol, sources: list[SampleSource | None], rows: int
    ) -> None:
        super().__init__(settings, protocol, sources)
        self._rows = rows

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """See :meth:`Batches.batch`."""
        index, _ = self._config.phase_at(step)
        seed = f"{self._config.seed} reading {step} {micro}"
        return self._with_reading(super().batch(step, micro), self.sources[index], seed)

    def held_out(self, source: SampleSource | None, phase: Phase, number: int) -> TrainingBatch:
        """See :meth:`Batches.held_out`."""
        return self._with_reading(super().held_out(source, phase, number), source, f"held out reading {number}")

    def refresh(self, lm: MSAForCausalLM, step: int, folder: Path, *, writes: bool) -> None:
        """See :meth:`Batches.refresh`."""
        files = self._config.phase_at(step)[1].files
        if files is not None and files.mined_negatives:
            super().refresh(lm, step, folder, writes=writes)

    def _with_reading(self, batch: TrainingBatch, source: SampleSource | None, seed: str) -> TrainingBatch:
        if not self._rows or not isinstance(source, FileSource) or not source.answered:
            return batch
        rng = random.Random(seed)
        places = [source.answered[rng.randrange(len(source.answered))] for _ in range(self._rows)]
        samples = [source.sample_at(place) for place in places]
        return replace(batch, recalls=reading_rows(source.training_set, samples, self._protocol, MOST_READ, rng))
