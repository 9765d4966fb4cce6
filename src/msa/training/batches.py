"""Where a phase's batches come from. Every batch is a pure function of (seed, phase, step, micro-batch).

So the order of the data needs no state of its own: a resumed run asks for the next step and gets what it would have.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import Protocol as TypingProtocol

from msa.documents import Protocol
from msa.errors import TrainingDataError
from msa.model import MSAForCausalLM
from msa.training.config import FileData, Phase, TrainConfig
from msa.training.data.collate import TrainingBatch, choose_steps, collate, draw_numbers, draw_repeating_numbers
from msa.training.data.copies import copy_rows
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.recalls import recall_rows
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.variables import VariableConfig, variable_world
from msa.training.snapshot import Snapshot, take_snapshot


class SampleSource(TypingProtocol):
    """Makes the memory and questions of one micro-batch."""

    def draw(self, number: int, seed: str) -> TrainingSet:
        """Micro-batch ``number``, counted from 0 over the whole phase; ``seed`` is its own."""


class NeedleSource:
    """Fresh made-up memories."""

    def __init__(self, worlds: NeedleWorlds, config: NeedleConfig) -> None:
        self.worlds, self._config = worlds, config

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        return self.worlds.world(self._config, seed)


class VariableSource:
    """Fresh made-up memories of variable assignments."""

    def __init__(self, haystack: Sequence[str], config: VariableConfig) -> None:
        self._haystack, self._config = haystack, config

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        return variable_world(self._config, self._haystack, seed)


class FileSource:
    """Samples of files in an order drawn anew each epoch; documents of a batch are in every row's memory.

    Args:
        training_set: what was read.
        config: how many questions and documents a batch has.
        seed: of the order.
        first: the question to begin with, counted over all epochs: what earlier phases have asked is not asked again.

    Raises:
        TrainingDataError: no samples.
    """

    def __init__(self, training_set: TrainingSet, config: FileData, seed: int, first: int = 0) -> None:
        if not training_set.samples:
            raise TrainingDataError(f"no samples to train on in {', '.join(config.paths)}")
        self._set, self._config, self._seed, self._first = training_set, config, seed, first
        self._names = list(training_set.corpus)
        self.snapshot: Snapshot | None = None
        self._epoch, self._order = -1, list(range(len(training_set.samples)))

    @property
    def training_set(self) -> TrainingSet:
        """What was read."""
        return self._set

    @cached_property
    def answered(self) -> list[int]:
        """Places in the set of the samples that have an answer."""
        return [place for place, sample in enumerate(self._set.samples) if sample.answer is not None]

    def draw(self, number: int, seed: str) -> TrainingSet:
        """See :class:`SampleSource`."""
        rng = random.Random(seed)
        first = number * self._config.questions
        samples = [self._sample(place) for place in range(first, first + self._config.questions)]
        named = dict.fromkeys(name for sample in samples for name in sample.named)
        missing = min(self._config.documents, len(self._names)) - len(named)
        while missing > 0:
            other = rng.choice(self._names)
            missing -= other not in named
            named[other] = None
        return TrainingSet(corpus={name: self._set.corpus[name] for name in named}, samples=samples)

    def take_snapshot(self, lm: MSAForCausalLM, protocol: Protocol, step: int, micros: range, **options: Any) -> None:
        """Encode the corpus; mine negatives for the questions of micro-batches ``micros``."""
        questions = range(micros.start * self._config.questions, micros.stop * self._config.questions)
        self.snapshot = take_snapshot(
            lm,
            protocol,
            self._set,
            step=step,
            places=[self._place(number) for number in questions],
            negatives=self._config.mined_negatives,
            **options,
        )

    @property
    def num_documents(self) -> int:
        """Documents of the corpus."""
        return len(self._names)

    @cached_property
    def digest(self) -> str:
        """What is trained on, hashed."""
        digest = hashlib.sha256()
        for name, text in self._set.corpus.items():
            digest.update(f"{len(name)} {len(text)} {name}{text}".encode())
        for sample in self._set.samples:
            digest.update(repr(sample).encode())
        return digest.hexdigest()[:16]

    def _place(self, number: int) -> int:
        """Which sample of the set question ``number`` of this phase is."""
        epoch, within = divmod(self._first + number, len(self._set.samples))
        if epoch != self._epoch:
            self._order = list(range(len(self._set.samples)))
            random.Random(f"{self._seed} epoch {epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[within]

    def _sample(self, number: int) -> Sample:
        return self.sample_at(self._place(number))

    def sample_at(self, place: int) -> Sample:
        """A sample of the set with the negatives mined for it."""
        sample = self._set.samples[place]
        mined = self.snapshot.mined.get(place, ()) if self.snapshot is not None else ()
        return replace(sample, documents=tuple(dict.fromkeys((*sample.documents, *mined)))) if mined else sample


def questions_before(config: TrainConfig, index: int) -> int:
    """How many questions earlier phases take from the same files as the phase at ``index``."""
    files = config.phases[index].files

    def told(one: FileData) -> tuple[object, ...]:
        return one.paths, one.corpus, one.min_hops, one.skip_bad

    same = [one for one in config.phases[:index] if one.files and files and told(one.files) == told(files)]
    return sum(one.steps * config.micro_batches * one.files.questions for one in same if one.files)


class Batches:
    """Token batches of a run.

    Args:
        config: the run's.
        protocol: the model's transcript.
        sources: one per phase; None for a phase of copies alone.
    """

    def __init__(self, config: TrainConfig, protocol: Protocol, sources: Sequence[SampleSource | None]) -> None:
        if len(sources) != len(config.phases):
            raise ValueError(f"{len(config.phases)} phases need as many sources, got {len(sources)}")
        self._config, self._protocol, self._sources = config, protocol, list(sources)
        control = set(protocol.tokenizer.get_added_vocab().values())
        self._vocabulary = [index for index in range(len(protocol.tokenizer)) if index not in control]

    @property
    def sources(self) -> list[SampleSource | None]:
        """One per phase."""
        return self._sources

    @property
    def digest(self) -> str | None:
        """What files say that is trained on, hashed; None: there are none."""
        digests = [source.digest for source in self.sources if isinstance(source, FileSource)]
        return " ".join(digests) or None

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """Micro-batch ``micro`` of optimiser step ``step``, both counted from 0."""
        index, phase = self._config.phase_at(step)
        first = sum(earlier.steps for earlier in self._config.phases[:index])
        number = (step - first) * self._config.micro_batches + micro
        return self._collate(self._sources[index], phase, number, f"{self._config.seed} {index} {number}")

    def refresh(self, lm: MSAForCausalLM, step: int, folder: Path, *, writes: bool) -> None:
        """Take the snapshot that optimiser step ``step`` trains on if it is due, or read it back in a resumed run.

        Args:
            lm: the network as it is before the step.
            step: counted from 0.
            folder: where snapshots are kept for as long as a checkpoint may need them.
            writes: whether this process writes them.

        Raises:
            TrainingError: a resumed run's snapshot is missing or damaged.
        """
        config = self._config
        index, phase = config.phase_at(step)
        source = self._sources[index]
        if not config.refresh_every or not isinstance(source, FileSource):
            return
        first = sum(earlier.steps for earlier in config.phases[:index])
        due = step - (step - first) % config.refresh_every
        if source.snapshot is not None and source.snapshot.step == due:
            return
        path = folder / f"step-{due:08d}.safetensors"
        if due < step:
            source.snapshot = Snapshot.load(path, lm.device)
            return
        rng = random.Random(f"{config.seed} snapshot {due}")
        # the next snapshot, or the next phase's data, takes over there
        stop = min(due + config.refresh_every, first + phase.steps)
        source.take_snapshot(
            lm,
            self._protocol,
            due,
            range((due - first) * config.micro_batches, (stop - first) * config.micro_batches),
            numbers=self._snapshot_numbers(source.num_documents, phase, rng),
            bucket_tokens=config.bucket_tokens,
            keep_latents=config.freeze_documents,
        )
        if writes and source.snapshot is not None:
            source.snapshot.save(path)
            oldest = due - config.refresh_every - (config.keep_checkpoints + 1) * config.checkpoint_every
            for old in folder.glob("step-*.safetensors"):
                if int(old.stem.removeprefix("step-")) < oldest:
                    old.unlink()

    def _snapshot_numbers(self, count: int, phase: Phase, rng: random.Random) -> list[int]:
        """Numbers of the whole corpus; only where its latents are trained on must they be as short as the phase's."""
        digits = phase.id_digits if self._config.freeze_documents else max(phase.id_digits, len(str(count)))
        return draw_numbers(count, digits, rng, phase.full_ids)

    def held_out(self, source: SampleSource | None, phase: Phase, number: int) -> TrainingBatch:
        """A batch of another source under a phase's settings, for evaluation."""
        return self._collate(source, phase, number, f"held out {number}")

    def _collate(self, source: SampleSource | None, phase: Phase, number: int, seed: str) -> TrainingBatch:
        copies = None if phase.copies is None else copy_rows(phase.copies, self._vocabulary, seed)
        if source is None:
            return TrainingBatch([], [], [], copies=copies)
        drawn = source.draw(number, seed)
        rng = random.Random(f"{seed} ids")
        memory = None
        if phase.repeat_ids:
            numbers = draw_repeating_numbers(len(drawn.corpus), phase.id_digits, rng)
        else:
            numbers = draw_numbers(len(drawn.corpus), phase.id_digits, rng, phase.full_ids)
        snapshot = source.snapshot if isinstance(source, FileSource) else None
        if snapshot is not None and snapshot.memory is not None:
            numbers, memory = [snapshot.numbers[name] for name in drawn.corpus], snapshot.latents(drawn.corpus)
        batch = collate(
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
            numbers=numbers,
            max_document_tokens=self._config.max_document_tokens,
            bucket_tokens=self._config.bucket_tokens,
            memory=memory,
        )
        recalls = None
        if phase.recalls is not None and phase.needles is not None and isinstance(source, NeedleSource):
            recalls = recall_rows(phase.recalls, source.worlds, phase.needles, self._protocol, phase.id_digits, seed)
        return replace(batch, copies=copies, recalls=recalls)
