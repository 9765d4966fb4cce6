"""Where a phase's batches come from. Every batch is a pure function of (seed, phase, step, micro-batch).

So the order of the data needs no state of its own: a resumed run asks for the next step and gets what it would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol as TypingProtocol

from msa.documents import Protocol
from msa.errors import TrainingDataError
from msa.training.config import FileData, Phase, TrainConfig
from msa.training.data.collate import TrainingBatch, choose_steps, collate, draw_numbers, draw_repeating_numbers
from msa.training.data.copies import CopyConfig, copy_batch
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.variables import VariableConfig, variable_world


class SampleSource(TypingProtocol):
    """Makes the memory and questions of one micro-batch."""

    def draw(self, number: int, seed: str) -> TrainingSet:
        """Micro-batch ``number``, counted from 0 over the whole phase; ``seed`` is its own."""


class NeedleSource:
    """Fresh made-up memories."""

    def __init__(self, worlds: NeedleWorlds, config: NeedleConfig) -> None:
        self._worlds, self._config = worlds, config

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        return self._worlds.world(self._config, seed)


class VariableSource:
    """Fresh made-up memories of variable assignments."""

    def __init__(self, haystack: Sequence[str], config: VariableConfig) -> None:
        self._haystack, self._config = haystack, config

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        return variable_world(self._config, self._haystack, seed)


class CopySource:
    """Rows to copy, without documents.

    Args:
        vocabulary: token ids that may occur.
        config: their number and length.
    """

    def __init__(self, vocabulary: Sequence[int], config: CopyConfig) -> None:
        self._vocabulary, self._config = list(vocabulary), config

    def batch(self, seed: str) -> TrainingBatch:
        """A batch, a pure function of ``seed``."""
        return copy_batch(self._config, self._vocabulary, seed)


class FileSource:
    """Samples of files in an order drawn anew each epoch; documents of a batch are in every row's memory.

    Args:
        training_set: what was read.
        config: how many questions and documents a batch has.
        seed: of the order.

    Raises:
        TrainingDataError: no samples.
    """

    def __init__(self, training_set: TrainingSet, config: FileData, seed: int) -> None:
        if not training_set.samples:
            raise TrainingDataError(f"no samples to train on in {', '.join(config.paths)}")
        self._set, self._config, self._seed = training_set, config, seed
        self._names = list(training_set.corpus)
        self._epoch, self._order = -1, list(range(len(training_set.samples)))

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        rng = random.Random(seed)
        first = number * self._config.questions
        samples = [self._sample(place) for place in range(first, first + self._config.questions)]
        named = dict.fromkeys(i for sample in samples for i in (*sample.positives, *sample.documents))
        missing = min(self._config.documents, len(self._names)) - len(named)
        while missing > 0:
            other = rng.choice(self._names)
            missing -= other not in named
            named[other] = None
        return TrainingSet(corpus={name: self._set.corpus[name] for name in named}, samples=samples)

    def _sample(self, place: int) -> Sample:
        epoch, within = divmod(place, len(self._set.samples))
        if epoch != self._epoch:
            self._order = list(range(len(self._set.samples)))
            random.Random(f"{self._seed} epoch {epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._set.samples[self._order[within]]


class Batches:
    """Token batches of a run.

    Args:
        config: the run's.
        protocol: the model's transcript.
        sources: one per phase.
    """

    def __init__(self, config: TrainConfig, protocol: Protocol, sources: Sequence[SampleSource | CopySource]) -> None:
        if len(sources) != len(config.phases):
            raise ValueError(f"{len(config.phases)} phases need as many sources, got {len(sources)}")
        self._config, self._protocol, self._sources = config, protocol, list(sources)

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """Micro-batch ``micro`` of optimiser step ``step``, both counted from 0."""
        index, phase = self._config.phase_at(step)
        first = sum(earlier.steps for earlier in self._config.phases[:index])
        number = (step - first) * self._config.micro_batches + micro
        return self._collate(self._sources[index], phase, number, f"{self._config.seed} {index} {number}")

    def held_out(self, source: SampleSource | CopySource, phase: Phase, number: int) -> TrainingBatch:
        """A batch of another source under a phase's settings, for evaluation."""
        return self._collate(source, phase, number, f"held out {number}")

    def _collate(self, source: SampleSource | CopySource, phase: Phase, number: int, seed: str) -> TrainingBatch:
        if isinstance(source, CopySource):
            return source.batch(seed)
        drawn = source.draw(number, seed)
        rng = random.Random(f"{seed} ids")
        draw = draw_repeating_numbers if phase.repeat_ids else draw_numbers
        return collate(
            drawn,
            self._protocol,
            steps=choose_steps(
                drawn.samples,
                list(drawn.corpus),
                phase.final_share,
                rng,
                misses=phase.misses,
                second_tries=phase.second_tries,
            ),
            numbers=draw(len(drawn.corpus), phase.id_digits, rng),
            max_document_tokens=self._config.max_document_tokens,
            bucket_tokens=self._config.bucket_tokens,
        )
