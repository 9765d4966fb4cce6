"""The configuration of a training run, and its YAML.

A run is a list of phases; a phase says how long, how fast, on which data and with which losses. Recipes are functions
that return a :class:`TrainConfig`; ``msa train`` reads one from YAML.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from msa.errors import TrainingError
from msa.training.data.copies import CopyConfig
from msa.training.data.needles import NeedleConfig
from msa.training.data.recalls import RecallConfig
from msa.training.data.variables import VariableConfig
from msa.training.id_probe import PLACES
from msa.training.objective import LossWeights
from msa.training.ranges import check_numbers

TRAINABLE = ("all", "routers", "lora")
PRECISIONS = ("no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")
_MAX_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True, kw_only=True)
class FileData:
    """Samples from files.

    Attributes:
        paths: sample files or folders, of any format under "Data".
        corpus: corpus files, where the samples name documents by id.
        held_out_paths: samples to evaluate on; empty: the training samples; the log then calls the metrics
            ``training/…`` and not ``held_out/…``.
        documents: documents in each step's memory: what the samples name, filled up with others of the corpus.
        questions: rows of each step.
        mined_negatives: documents per question that the network mistook for the answer when the corpus was last encoded
            (``refresh_every``); they are in the step's memory, and second tries read them. 0: none.
        hidden_paths: samples whose answering documents no step may show, as distractors either, such as a test's; what
            ``paths`` ask about themselves stays. Those of ``held_out_paths`` are hidden without being named here.
        min_hops: leave out samples of fewer retrieval steps: 2 trains on chains alone.
        skip_bad: leave out what cannot be read, with a warning, instead of stopping.
    """

    paths: tuple[str, ...]
    corpus: tuple[str, ...] = ()
    held_out_paths: tuple[str, ...] = ()
    hidden_paths: tuple[str, ...] = ()
    documents: int = 64
    questions: int = 32
    mined_negatives: int = 0
    min_hops: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, from_one=("documents", "questions"))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of a run.

    Attributes:
        name: shown in the log.
        steps: optimiser steps.
        learning_rate: peak; warm-up and cosine run over the whole run, not the phase.
        weights: of the losses.
        needles, variables, files: where batches come from, one of them at most.
        copies: rows to copy, beside them or alone.
        recalls: rows of several questions about one text, with the keys and values of ``needles``.
        id_digits: document numbers are drawn anew each step, of at most so many digits.
        full_ids: share of the documents whose numbers have all these digits; the others' lengths are uniform.
        repeat_ids: documents may share a number and all have ``id_digits`` digits: a first stage of one digit.
        chunk_size: tokens per chunk in this phase; 0: the model's own. Ids are read out of short chunks within minutes
            and out of long ones hardly ever, so a curriculum begins short. An adapter is used with the model's own.
        final_share: probability that a sample's row is its last step (reading and answering), not a retrieval.
        misses: documents without the answer that are read before a question is given up.
        second_tries: share of retrievals that come after such a document was read.
        past_documents: documents of earlier steps that stay in the memory as distractors, with the latents they had.
    """

    name: str
    steps: int
    learning_rate: float
    weights: LossWeights = field(default_factory=LossWeights)
    needles: NeedleConfig | None = None
    variables: VariableConfig | None = None
    copies: CopyConfig | None = None
    recalls: RecallConfig | None = None
    files: FileData | None = None
    id_digits: int = 7
    full_ids: float = 0.0
    repeat_ids: bool = False
    chunk_size: int = 0
    final_share: float = 0.3
    misses: int = 1
    second_tries: float = 0.0
    past_documents: int = 0

    @property
    def holds_out(self) -> bool:
        """Whether it is evaluated on other data than it is trained on."""
        return self.files is None or bool(self.files.held_out_paths)

    def __post_init__(self) -> None:
        given = [data for data in (self.needles, self.variables, self.files) if data is not None]
        if len(given) > 1 or not (given or self.copies):
            raise ValueError(f"phase {self.name!r} needs one of needles, variables and files, or copies, or both")
        if self.recalls and not self.needles:
            raise ValueError(f"phase {self.name!r}: recalls take their keys and values from needles; name them too")
        check_numbers(
            self,
            f"phase {self.name!r}",
            from_one=("steps", "id_digits", "misses"),
            positive=("learning_rate",),
            shares=("full_ids", "final_share", "second_tries"),
        )
        most = max((data.documents for data in given), default=0)
        if not self.repeat_ids and most > 10**self.id_digits - 1:
            raise ValueError(
                f"phase {self.name!r}: {most} documents need longer ids than id_digits {self.id_digits}; raise it, or "
                "set repeat_ids"
            )
        if self.weights.id_probe and self.id_digits > PLACES:
            raise ValueError(f"phase {self.name!r}: the id probe reads {PLACES} digits, id_digits is {self.id_digits}")
        if self.past_documents and self.files:
            raise ValueError(
                f"phase {self.name!r}: past_documents are for needles and variables, whose documents are new in every "
                "step; of files an earlier copy of the right document would count as wrong"
            )
        if any(data.questions < 1 for data in given):
            raise ValueError(f"phase {self.name!r}: questions must be a number 1 or more, got 0")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation.

    Attributes:
        rank: of the update.
        alpha: its scale times the rank.
        layers: decoder layers that get it; empty: all.
        targets: names of the linear layers that get it.
        merged: run on weights that it is added to once a step (training/merged_lora.py), with ``precision: bf16`` in
            bfloat16 throughout; False: PEFT's two products beside every use of a layer, under autocast. Merged, a small
            backbone's step takes two thirds of the operations.
    """

    rank: int = 16
    alpha: int = 32
    layers: tuple[int, ...] = ()
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    merged: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, from_one=("rank", "alpha"))

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run's result.

    Attributes:
        out: the folder of checkpoints, logs and the finished model.
        model: what to start from: a name, folder or hub id of an MSA model, or an adapter of an earlier run.
        phases: in order, each as below; at least one.
        seed: of data and order.
        haystack: text files that fill needles' documents; empty: a text that comes with the package.
        micro_batches: memories per optimiser step over all processes; gradients are averaged.
        precision: ``'no'`` (float32; in quotes, or YAML reads it as false), ``bf16`` or ``fp16`` mixed precision.
        sharded: of several processes (torchrun), each holds its part of weights, gradients and optimiser state (FSDP2,
            see training/sharding.py); else all of them.
        routing_bias: strength of the routing bias that routers begin with where the model has none; none: as the model
            is.
        routing_temperature: τ of the routing loss; none: the model's. A routing bias keeps its own.
        trainable: ``all`` weights, the ``routers`` alone, or ``lora`` beside the routers.
        lora: the settings of LoRA, with ``trainable: lora``.
        freeze_documents: encode documents without gradients (the document side is not trained).
        refresh_every: steps between encodings of the whole corpus with the weights of that moment, in phases that read
            files: negatives are mined from it, and with ``freeze_documents`` every step reads these latents instead of
            encoding its documents. 0: never.
        checkpoint_documents: keep no activations of documents; each bucket is encoded again in the backward pass, so
            the memory grows with ``bucket_tokens`` and not with the documents.
        checkpoint_layers: the same for the rows, layer by layer.
        max_document_tokens: longer documents are refused.
        bucket_tokens: tokens of a bucket of rows or documents of similar lengths once padded, at most.
        router_rate: learning rate of routers and routing bias, as a multiple of a phase's; none: as all others.
        warmup_steps: steps the learning rate takes to rise to its peak.
        min_learning_rate: share of the peak the cosine ends at.
        decay_steps: steps the cosine takes; 0: as many as the phases have.
        optimizer: ``adamw``, or ``muon`` for the matrices inside the layers (see training/optimizers.py).
        weight_decay, betas: of the optimiser.
        max_grad_norm: gradients are scaled down to this norm.
        checkpoint_every, keep_checkpoints: steps between checkpoints, and how many stay.
        log_every, evaluate_every: steps between lines of the log, and between evaluations on held-out data.
        stop_after_minutes: save a checkpoint and stop after so long; the same command goes on. 0: never.
    """

    out: str
    model: str = "smollm2-135m"
    phases: tuple[Phase, ...] = ()
    seed: int = 0
    haystack: tuple[str, ...] = ()
    micro_batches: int = 1
    precision: str = "no"
    sharded: bool = False
    routing_bias: float | None = None
    routing_temperature: float | None = None
    trainable: str = "all"
    lora: LoraConfig = field(default_factory=LoraConfig)
    freeze_documents: bool = False
    refresh_every: int = 0
    checkpoint_documents: bool = False
    checkpoint_layers: bool = False
    max_document_tokens: int = 2048
    bucket_tokens: int = 4096
    router_rate: float | None = None
    warmup_steps: int = 100
    min_learning_rate: float = 0.1
    decay_steps: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    evaluate_every: int = 500
    stop_after_minutes: float = 0.0

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a training run needs at least one phase")
        for name, allowed in (
            ("trainable", TRAINABLE),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        sizes = ("micro_batches", "max_document_tokens", "bucket_tokens")
        intervals = ("checkpoint_every", "keep_checkpoints", "log_every", "evaluate_every")
        positive = ("routing_bias", "routing_temperature", "router_rate", "max_grad_norm")
        shares = ("min_learning_rate",)
        check_numbers(self, from_one=(*sizes, *intervals), positive=positive, shares=shares)
        if self.seed > _MAX_SEED:
            raise ValueError(f"seed must be at most {_MAX_SEED}, got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be 0 or more and below 1, got {self.betas}")
        if self.lora.merged and self.trainable == "lora" and self.precision == "fp16":
            raise ValueError("merged LoRA trains in bf16 or float32, not in fp16: set precision to bf16 or no")
        if self.precision == "fp16" and (self.router_rate is not None or self.optimizer == "muon"):
            raise ValueError("fp16 trains with one optimiser: set precision to bf16, or use adamw without router_rate")
        if self.freeze_documents and any(phase.weights.closing_id for phase in self.phases):
            raise ValueError("closing_id trains the document side: set its weight to 0 with freeze_documents")
        if self.sharded and (self.precision == "fp16" or self.optimizer == "muon"):
            raise ValueError("sharded training is in bf16 or float32 and by adamw: set precision and optimizer so")
        mining = [phase.name for phase in self.phases if phase.files is not None and phase.files.mined_negatives]
        if mining and not self.refresh_every:
            raise ValueError(f"phase {mining[0]!r} mines negatives: say how often with refresh_every")

    @property
    def merges_lora(self) -> bool:
        """Whether the network runs on merged weights, in its own precision and without autocast."""
        return self.trainable == "lora" and self.lora.merged

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, Phase]:
        """The phase of a step, counted from 0, and its index."""
        for index, phase in enumerate(self.phases):
            if step < phase.steps:
                return index, phase
            step -= phase.steps
        return len(self.phases) - 1, self.phases[-1]

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, and a cosine over ``decay_steps`` down to ``min_learning_rate`` of the phase's peak."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / (self.decay_steps or self.total_steps))))
        return (
            self.phase_at(step)[1].learning_rate
            * warm
            * (self.min_learning_rate + (1 - self.min_learning_rate) * cosine)
        )

    def to_yaml(self) -> str:
        """The whole configuration, defaults included."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read a configuration.

        Raises:
            TrainingError: a file that cannot be read, an unknown key or a value that does not fit; names the key.
        """
        path = Path(path)
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainingError(f"cannot read the configuration {path}: {error}") from error
        config: TrainConfig = _build(cls, fields, str(path))
        return config


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as the annotated type, with one clear error that names the key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:
        return None if value is None else _build(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise TrainingError(f"{where}: expected a list, found {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise TrainingError(f"{where}: expected {len(kinds)} values, found {len(value)}")
        return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except ValueError:
            pass
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TrainingError(f"{where}: expected {kind.__name__}, found {value!r}")


def _build_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TrainingError(f"{where}: expected keys and values, found {value!r}")
    kinds = typing.get_type_hints(kind)
    unknown = sorted(set(map(str, value)) - set(kinds))
    if unknown:
        raise TrainingError(f"{where}: unknown key(s) {', '.join(unknown)}; known are {', '.join(kinds)}")
    built = {name: _build(kinds[name], item, f"{where}: {name}") for name, item in value.items()}
    try:
        return kind(**built)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{where}: {error}") from error
