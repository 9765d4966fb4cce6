"""Router warm-up: train one layer's routers on cached states of a frozen backbone (paper §3.4, L_aux alone).

Layers are independent of each other, so each is trained alone, in a minute or two of one CPU core.

Axes: Q questions, N documents, B questions of a step, n documents of a step, K documents a teacher scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msa.errors import TrainingError
from msa.ops import ROUTING_LOSSES, routing_divergence, routing_loss
from msa.training.router_scores import RouterMaps, document_scores, rows_of, score_pool
from msa.training.router_states import LayerStates


@dataclass(frozen=True, kw_only=True)
class RouterWarmupConfig:
    """How one layer's routers are trained.

    Attributes:
        learning_rate: Adam's at its peak, for maps scaled to elements of unit mean square: a warm-up, then a cosine.
        epochs: passes over the questions, unless ``steps`` says how many steps.
        steps: optimiser steps; None: counted from ``epochs``.
        batch_questions: questions per step; the relevant documents of all of them compete.
        random_documents: further documents per step, drawn from all that may be negatives.
        hard_documents: mined documents per question and step: the routers' best wrong ones; 0: none.
        mined_documents: how many of the best wrong documents of each question ``hard_documents`` are drawn from.
        mine_after: share of the steps after which they are mined, with the routers of that moment.
        temperature: τ of the loss.
        loss: one of :data:`msa.ops.ROUTING_LOSSES`.
        distillation: weight of the divergence from a teacher's scores, where there is a teacher.
        teacher_temperature: τ of the teacher's scores.
        seed: of everything drawn.

    Raises:
        ValueError: a number out of range or an unknown loss.
    """

    learning_rate: float = 3e-2
    epochs: float = 6.0
    steps: int | None = None
    batch_questions: int = 128
    random_documents: int = 1024
    hard_documents: int = 4
    mined_documents: int = 16
    mine_after: float = 0.5
    temperature: float = 0.05
    loss: str = "INFONCE_DECOUPLE"
    distillation: float = 0.0
    teacher_temperature: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ROUTING_LOSSES:
            raise ValueError(f"loss must be one of {', '.join(ROUTING_LOSSES)}, got {self.loss!r}")
        for name in ("learning_rate", "epochs", "batch_questions", "temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("random_documents", "hard_documents", "distillation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.hard_documents > self.mined_documents:
            raise ValueError(f"hard_documents ({self.hard_documents}) exceeds mined_documents ({self.mined_documents})")
        if not 0 <= self.mine_after <= 1:
            raise ValueError(f"mine_after must be a share in 0..1, got {self.mine_after}")

    def num_steps(self, num_questions: int) -> int:
        """Optimiser steps for so many questions."""
        return self.steps or math.ceil(self.epochs * num_questions / self.batch_questions)


@dataclass(frozen=True)
class TeacherScores:
    """What another retriever thinks of some documents of every question.

    Attributes:
        documents: ``[Q, K]`` int64 document indices, −1 where there is none.
        scores: ``[Q, K]`` float32.
    """

    documents: Tensor
    scores: Tensor


@dataclass(frozen=True)
class TrainedLayer:
    """Trained routers and the loss of every step."""

    maps: RouterMaps
    losses: list[float] = field(default_factory=list)


def mine_hard_documents(
    states: LayerStates,
    maps: RouterMaps,
    relevant: Sequence[Sequence[int]],
    questions: Sequence[int],
    allowed: Tensor,
    count: int,
) -> Tensor:
    """The ``count`` best wrong documents of each question ``[len(questions), count]``, best first; −1 fills up.

    Args:
        states, maps: of the layer.
        relevant: per question of ``states`` the indices of its relevant documents.
        questions: whom to mine for.
        allowed: documents that may be negatives ``[*]`` int64.
        count: documents per question.
    """
    forbidden = torch.ones(states.chunk_offsets.shape[0] - 1, dtype=torch.bool)
    forbidden[allowed] = False
    mined = []
    for start in range(0, len(questions), 1024):
        part = questions[start : start + 1024]
        scores = score_pool(states, maps, part).masked_fill(forbidden, float("-inf"))
        for row, question in enumerate(part):
            scores[row, list(relevant[question])] = float("-inf")
        best = scores.topk(min(count, scores.shape[1]), dim=1)
        found = best.indices.masked_fill(best.values == float("-inf"), -1)
        mined.append(torch.nn.functional.pad(found, (0, count - found.shape[1]), value=-1))
    return torch.cat(mined)


def train_router_layer(
    states: LayerStates,
    relevant: Sequence[Sequence[int]],
    start: RouterMaps,
    config: RouterWarmupConfig,
    *,
    questions: Sequence[int] | None = None,
    negatives: Sequence[int] | None = None,
    teacher: TeacherScores | None = None,
) -> TrainedLayer:
    """Train one layer's routers; the same on every run with the same seed.

    Args:
        states: the layer's cached states.
        relevant: per question of ``states`` the indices of its relevant documents.
        start: routers to start from; they are scaled, which cosine does not see, and not changed.
        config: how to train.
        questions: questions to train on; None: all. Those without relevant documents teach nothing and are left out.
        negatives: documents that may be random or mined negatives; None: all. Leave held-out documents out.
        teacher: scores to imitate with weight ``config.distillation``.

    Raises:
        TrainingError: a loss that is not finite; the maps of the step before are lost with it.
        ValueError: no question with relevant documents, or a teacher that does not fit the questions.
    """
    chosen = range(len(relevant)) if questions is None else questions
    usable = [question for question in chosen if relevant[question]]
    if not usable:
        raise ValueError("no question has a relevant document; there is nothing to learn from")
    if teacher is not None and teacher.documents.shape[0] != len(relevant):
        raise ValueError(f"the teacher scored {teacher.documents.shape[0]} questions, {len(relevant)} are there")
    return _LayerTraining(states, relevant, start, config, usable, negatives, teacher).run()


class _LayerTraining:
    """The loop of :func:`train_router_layer`."""

    def __init__(
        self,
        states: LayerStates,
        relevant: Sequence[Sequence[int]],
        start: RouterMaps,
        config: RouterWarmupConfig,
        questions: Sequence[int],
        negatives: Sequence[int] | None,
        teacher: TeacherScores | None,
    ) -> None:
        num_documents = states.chunk_offsets.shape[0] - 1
        self.states, self.relevant, self.config = states, relevant, config
        self.questions = torch.tensor(questions)
        self.negatives = torch.arange(num_documents) if negatives is None else torch.as_tensor(negatives).long()
        self.teacher = teacher if config.distillation else None
        self.generator = torch.Generator().manual_seed(config.seed)
        weights = [(w / w.square().mean().sqrt()).clone().requires_grad_() for w in (start.query, start.key)]
        self.maps = RouterMaps(weights[0], weights[1], start.head_dim)
        self.mined = torch.zeros(0, dtype=torch.int64)
        self.row_of = torch.full((len(relevant),), -1).index_copy(0, self.questions, torch.arange(len(questions)))

    def run(self) -> TrainedLayer:
        config, total = self.config, self.config.num_steps(len(self.questions))
        optimizer = torch.optim.Adam([self.maps.query, self.maps.key], lr=config.learning_rate, betas=(0.9, 0.98))
        warmup = max(1, min(20, total // 10))
        losses, queue = [], self.questions[:0]
        for step in range(total):
            if config.hard_documents and step == round(total * config.mine_after):
                self._mine()
            factor = min(1.0, (step + 1) / warmup) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            if len(queue) == 0:
                queue = self.questions[torch.randperm(len(self.questions), generator=self.generator)]
            batch, queue = queue[: config.batch_questions], queue[config.batch_questions :]
            loss = self._loss(batch)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the loss of step {step + 1} is {losses[-1]}, not finite; lower the learning rate, or look for "
                    "states that are not finite"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return TrainedLayer(RouterMaps(self.maps.query.detach(), self.maps.key.detach(), self.maps.head_dim), losses)

    def _mine(self) -> None:
        self.mined = mine_hard_documents(
            self.states,
            self.maps,
            self.relevant,
            self.questions.tolist(),
            self.negatives,
            self.config.mined_documents,
        )

    def _loss(self, batch: Tensor) -> Tensor:
        pairs = [(row, doc) for row, question in enumerate(batch.tolist()) for doc in self.relevant[question]]
        rows, docs = torch.tensor(pairs).T.contiguous()
        candidates = self._candidates(batch, docs)
        tokens, token_counts = rows_of(self.states.tokens, self.states.token_offsets, batch)
        chunks, chunk_counts = rows_of(self.states.chunks, self.states.chunk_offsets, candidates)
        scores = document_scores(self.maps.queries(tokens), token_counts, self.maps.keys(chunks), chunk_counts)
        positives = torch.zeros(scores.shape, dtype=torch.bool)
        positives[rows, torch.searchsorted(candidates, docs)] = True
        # routing_loss takes a score that is not a number for a document that cannot be seen
        loss = routing_loss(scores, positives, self.config.temperature, self.config.loss).mean() + 0.0 * scores.sum()
        if self.teacher is not None:
            loss = loss + self.config.distillation * self._divergence(scores, candidates, batch, self.teacher)
        return loss

    def _candidates(self, batch: Tensor, relevant: Tensor) -> Tensor:
        """Documents of this step, ascending: the relevant ones, random ones, and what was mined and taught."""
        config = self.config
        drawn = torch.randint(len(self.negatives), (config.random_documents,), generator=self.generator)
        parts = [relevant, self.negatives[drawn]]
        if len(self.mined):
            mined = self.mined[self.row_of[batch]]
            columns = torch.rand(mined.shape, generator=self.generator).argsort(1)[:, : config.hard_documents]
            parts.append(mined.gather(1, columns).flatten())
        if self.teacher is not None:
            parts.append(self.teacher.documents[batch].flatten())
        candidates = torch.unique(torch.cat(parts))
        return candidates[candidates >= 0]

    def _divergence(self, scores: Tensor, candidates: Tensor, batch: Tensor, teacher: TeacherScores) -> Tensor:
        """Mean over rows of the divergence from the teacher, whose documents are all among the candidates."""
        documents = teacher.documents[batch]
        columns = torch.searchsorted(candidates, documents.clamp(min=0)).clamp(max=len(candidates) - 1)
        taught = teacher.scores[batch].masked_fill(documents < 0, float("-inf"))
        spread = torch.full_like(scores, float("-inf")).scatter_reduce(1, columns, taught, "amax")
        config = self.config
        return routing_divergence(scores, spread, config.temperature, config.teacher_temperature).mean()
