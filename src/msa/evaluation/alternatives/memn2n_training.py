"""Training a memory network on made-up memories with needles: the task ``msa-tiny`` was trained on."""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from msa.errors import TrainingError
from msa.evaluation.alternatives.memn2n import MemN2N, MemN2NConfig, sentences_of, vocabulary_of, words_of
from msa.training.data.needles import NOT_IN_MEMORY, NeedleConfig, NeedleWorlds
from msa.training.data.samples import TrainingSet

logger = logging.getLogger(__name__)

_COMMON = 3  # a word is common that is found in more sentences of the first memories


@dataclass(frozen=True, kw_only=True)
class MemN2NTraining:
    """How a memory network is trained; :meth:`choosing` and :meth:`pointing` are the two variants' settings.

    Attributes:
        network: its shape.
        needles: the made-up memories.
        steps: memories read, one a step.
        worlds: distinct memories. Without ``pointer`` they also are where the vocabulary comes from.
        linear_steps: share of the steps without softmax, see :meth:`MemN2N.attend`.
        learning_rate: of Adam, falling linearly to zero.
        seed: of weights and memories.
    """

    network: MemN2NConfig
    needles: NeedleConfig
    steps: int
    worlds: int
    linear_steps: float
    learning_rate: float
    seed: int = 0

    @classmethod
    def choosing(cls) -> MemN2NTraining:
        """The paper's variant over a fixed set of small memories."""
        needles = NeedleConfig(documents=16, questions=16, max_filler=20)
        return cls(
            network=MemN2NConfig(), needles=needles, steps=2000, worlds=200, linear_steps=0.1, learning_rate=1e-2
        )

    @classmethod
    def pointing(cls) -> MemN2NTraining:
        """The pointer variant; every memory is new, so nothing can be learnt but the task."""
        return cls(
            network=MemN2NConfig(pointer=True, size=128, buckets=16384),
            needles=NeedleConfig(documents=32, questions=32, max_filler=20),
            steps=1000,
            worlds=1000,
            linear_steps=0.0,
            learning_rate=2e-3,
        )


def train_memn2n(worlds: NeedleWorlds, training: MemN2NTraining) -> MemN2N:
    """A trained network.

    Departures from the paper's training: Adam instead of annealed SGD, one memory with all its questions a step, no
    random noise among the memories. With ``pointer`` the embeddings of words that are common in the first memories
    start small, without which it did not learn to tell keys apart.

    Raises:
        ValueError: fewer than one step or memory.
        TrainingError: the loss is no longer finite.
    """
    if training.steps < 1 or training.worlds < 1:
        raise ValueError(f"steps and worlds must be at least 1, got {training.steps} and {training.worlds}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        return _train(worlds, training)


def _train(worlds: NeedleWorlds, training: MemN2NTraining) -> MemN2N:
    rng = random.Random(training.seed)
    pointer = training.network.pointer
    fixed = [] if pointer else [_world(worlds, training, number) for number in range(training.worlds)]
    network = MemN2N(training.network, () if pointer else vocabulary_of(chain.from_iterable(map(_texts, fixed))))
    if pointer:
        network.quieten(_common_words(worlds, training))
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    order: list[int] = []
    for step in range(training.steps):
        order = order or rng.sample(range(training.worlds), training.worlds)
        number = order.pop()
        world = _world(worlds, training, number) if pointer else fixed[number]
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1 - step / training.steps)
        loss = _loss(network, world, linear=step < training.linear_steps * training.steps)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss of the memory network is {float(loss)} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == training.steps:
            logger.info("memory network, step %d of %d: loss %.3f", step + 1, training.steps, float(loss.detach()))
    return network.eval()


def _texts(world: TrainingSet) -> list[str]:
    return [*world.corpus.values(), *(sample.query for sample in world.samples)]


def _common_words(worlds: NeedleWorlds, training: MemN2NTraining) -> list[str]:
    counts: Counter[str] = Counter()
    for number in range(min(30, training.worlds)):
        for text in _texts(_world(worlds, training, number)):
            for sentence in sentences_of(text):
                counts.update(set(sentence))
    return [word for word, count in counts.items() if count > _COMMON]


def _world(worlds: NeedleWorlds, training: MemN2NTraining, number: int) -> TrainingSet:
    return worlds.world(training.needles, f"memn2n {training.seed} {number}")


def _loss(network: MemN2N, world: TrainingSet, *, linear: bool) -> Tensor:
    """Mean negative log-likelihood of the answers of one memory's questions."""
    sentences = [[NOT_IN_MEMORY], *(words for text in world.corpus.values() for words in sentences_of(text))]
    rows = network.rows(sentences)
    questions = network.rows([words_of(sample.query) for sample in world.samples])
    answers = network.rows([words_of(sample.answer or "")[:1] for sample in world.samples])[:, 0]
    state, attention = network.attend(questions, network.memory(rows), linear=linear)
    if not network.config.pointer:
        return torch.nn.functional.cross_entropy(network.word_logits(state), answers[:, 0] - 1)
    is_answer = (rows[None] == answers[:, None, None]).all(-1)
    found = (network.pointed(state, attention, rows) * is_answer).sum((1, 2))
    return -(found.clamp(min=1e-9)).log().mean()
