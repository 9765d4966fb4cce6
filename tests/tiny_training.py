"""Small training runs: a network that learns fast, a few documents and questions over them, and their batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny import tiny_lm, tiny_tokenizer

from msa.documents import Protocol, ProtocolStrings
from msa.model import MSAForCausalLM
from msa.model.bundle import MSAModel
from msa.training.batches import Batches
from msa.training.config import LoraConfig, Phase, TrainConfig
from msa.training.data.collate import TrainingBatch, collate, draw_numbers
from msa.training.data.needles import NeedleConfig
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.steps import refusal_step, retrieval_steps
from msa.training.tiny import fresh_network
from msa.training.trainer import Trainer

SHORT = ProtocolStrings(
    prefix="<|im_start|>",
    question="{question}",
    question_end="<|im_end|>",
    end_of_retrieve="<think>",
    answer_request="<|im_start|>",
    answer_lead="",
    route_whole_turn=False,
    exclude_read=True,
)

CORPUS = {
    "ada": "Ada met Charles.",
    "rain": "Rain falls in May, and a little of it in June and in July too.",
    "charles": "Charles built engines that nobody had seen before.",
    "snow": "Snow falls in January.",
    "empty": "-",
    "cats": "Cats sleep.",
}
ONE_HOP = Sample(query="Who met Charles?", positives=("ada",), answer="Ada", source="one")
TWO_HOPS = Sample(
    query="What did the man whom Ada met build?",
    positives=("ada", "charles"),
    hops=(("ada",), ("charles",)),
    answer="Engines",
    source="two",
)
NO_ANSWER = Sample(query="When does it rain or snow?", positives=("snow", "rain"), source="weather")
UNANSWERABLE = Sample(query="Who was Zeno?", answer="Nobody here", source="none")


def all_steps_set() -> tuple[TrainingSet, list[Any]]:
    """Every step of every kind of sample, with the sample behind each."""
    pairs = [(sample, step) for sample in (ONE_HOP, TWO_HOPS, NO_ANSWER) for step in retrieval_steps(sample)]
    pairs.append((UNANSWERABLE, refusal_step(UNANSWERABLE, "cats")))
    return TrainingSet(corpus=dict(CORPUS), samples=[sample for sample, _ in pairs]), [step for _, step in pairs]


def all_steps_batch(protocol: Protocol, *, bucket_tokens: int = 120, seed: int = 0) -> TrainingBatch:
    """All of :func:`all_steps_set` in several buckets."""
    drawn, steps = all_steps_set()
    return collate(
        drawn,
        protocol,
        steps=steps,
        numbers=draw_numbers(len(drawn.corpus), 3, random.Random(seed)),
        max_document_tokens=500,
        bucket_tokens=bucket_tokens,
    )


class Recorded:
    """A source that hands out the same memories over and over."""

    def __init__(self, *sets: TrainingSet) -> None:
        self._sets = sets

    def draw(self, number: int, seed: str) -> TrainingSet:
        """Memory ``number``, from the first again after the last."""
        return self._sets[number % len(self._sets)]


class Repeating(Batches):
    """The batch of the first step over and over, document numbers included."""

    def batch(self, step: int, micro: int) -> TrainingBatch:
        """See :class:`Batches`."""
        return super().batch(0, 0)


SETS = (
    TrainingSet(corpus={name: CORPUS[name] for name in ("ada", "charles", "snow")}, samples=[ONE_HOP, TWO_HOPS]),
    TrainingSet(corpus={name: CORPUS[name] for name in ("rain", "snow", "cats")}, samples=[NO_ANSWER, UNANSWERABLE]),
)


# settings of runs that two processes share
TWO_AT_A_TIME: dict[str, Any] = {"micro_batches": 2}
SHARDED: dict[str, Any] = {"micro_batches": 4, "sharded": True}
MERGED_LORA: dict[str, Any] = {**TWO_AT_A_TIME, "trainable": "lora", "lora": LoraConfig(rank=2, merged=True)}


def learner(seed: int = 0, **settings: Any) -> MSAModel:
    """A tiny network whose random weights train fast, with a short transcript."""
    shape = {"num_hidden_layers": 2, "router_layers": [1], "hidden_size": 32, "num_attention_heads": 4}
    config = tiny_lm(**{"protocol": SHORT.to_config(), **shape, **settings}).config
    return MSAModel(fresh_network(config, seed=seed), tiny_tokenizer(), name="learner")


def phase(steps: int = 4, **changes: Any) -> Phase:
    """A phase that draws whatever its source has; short ids."""
    fields: dict[str, Any] = {"name": "main", "steps": steps, "learning_rate": 3e-3, "id_digits": 2}
    return Phase(needles=NeedleConfig(), **{**fields, **changes})


def config(out: Path | str, *phases: Phase, **changes: Any) -> TrainConfig:
    """A run of a few steps."""
    fields: dict[str, Any] = {"warmup_steps": 2, "checkpoint_every": 100, "log_every": 1}
    return TrainConfig(**{"out": str(out), "phases": phases or (phase(),), **fields, **changes})


def batches(model: MSAModel, run: TrainConfig, *sets: TrainingSet, kind: type[Batches] = Batches) -> Batches:
    """Batches of ``run`` over these memories in turn."""
    return kind(run, model.protocol, [Recorded(*(sets or SETS))] * len(run.phases))


def trainer(
    model: MSAModel, run: TrainConfig, *sets: TrainingSet, kind: type[Batches] = Batches, **options: Any
) -> Trainer:
    """A trainer of ``run`` over these memories in turn."""
    return Trainer(model, run, batches(model, run, *sets, kind=kind), **options)


def weights(lm: MSAForCausalLM) -> dict[str, Any]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
