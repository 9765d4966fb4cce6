"""A configuration → a trained model in ``<out>/model`` (or an adapter beside it), with its log and curves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from msa.documents import Protocol
from msa.errors import TrainingDataError, TrainingError
from msa.model import MSAForCausalLM
from msa.model.bundle import MSAModel, model_fingerprint
from msa.model.routing_temperature import set_routing_temperature
from msa.training.batches import (
    Batches,
    FileSource,
    NeedleSource,
    SampleSource,
    VariableSource,
    questions_before,
)
from msa.training.config import Phase, TrainConfig
from msa.training.data.formats import read_training_set
from msa.training.data.needles import NeedleWorlds
from msa.training.data.samples import TrainingSet
from msa.training.data.words import haystack_sentences, needle_words
from msa.training.files import replace_file
from msa.training.metrics import evaluate
from msa.training.parameters import save_trained
from msa.training.trainer import Trainer

log = logging.getLogger(__name__)

_HELD_OUT_BATCHES = 4
Source = SampleSource | None  # None: a phase of copies alone


def train(model: MSAModel, config: TrainConfig) -> Path | None:
    """Train ``model`` in place from the last checkpoint of ``config.out`` on, and save the result.

    Returns:
        The finished model's folder, or adapter file where only routers or LoRA were trained (:func:`msa.load` reads
        both); None if the run stopped before its end.

    Raises:
        TrainingDataError: files that cannot be read.
        TrainingError: an adapter that would be written over the one it is trained over; and see :class:`Trainer`.
    """
    out = Path(config.out)
    result = out / ("model" if config.trainable == "all" else "adapter.safetensors")
    if model.name == str(result.resolve()) and config.trainable != "all":
        raise TrainingError(f"the result would be written over {result}, which it needs; use another 'out' folder")
    # what the adapter's file says it belongs to; zoo.load reads it
    base = {"model": model.name, "backbone": model_fingerprint(model.lm, routers=False)}
    begin_routing(model.lm, config)
    sources, held_out = sources_of(model, config)
    batches = Batches(config, model.protocol, sources)
    trainer = Trainer(model, config, batches, evaluate=held_out_evaluation(model, config, batches, held_out))
    if not trainer.run():
        return None
    if not trainer.accelerator.is_main_process:
        return result
    save_result(model, config, result, base)
    (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    log.info("trained %s", result)
    return result


def begin_routing(lm: MSAForCausalLM, config: TrainConfig) -> None:
    """The routing bias and the temperature of the routing loss that the configuration names."""
    if config.routing_bias is not None:
        lm.add_routing_bias(config.routing_bias)
    if config.routing_temperature is not None:
        set_routing_temperature(lm, config.routing_temperature)


def save_result(model: MSAModel, config: TrainConfig, result: Path, base: dict[str, str]) -> None:
    """Write what was trained: the whole model, or an adapter that names in ``base`` what it belongs to."""
    if config.trainable != "all":
        metadata = {**base, "config": config.to_yaml()}
        replace_file(result, lambda path: save_trained(model.lm, path, lora_scale=config.lora.scale, metadata=metadata))
        return
    weights = None
    if config.sharded:  # a state_dict would divide the gathered weights again
        weights = {name: p.detach() for name, p in model.lm.named_parameters(remove_duplicate=False)}
    model.save_pretrained(result, weights)


def sources_of(model: MSAModel, config: TrainConfig) -> tuple[list[Source], list[Source]]:
    """Per phase the source of its batches, and one of held-out data beside it."""
    worlds: dict[bool, NeedleWorlds] = {}
    files: dict[object, TrainingSet] = {}
    training: list[Source] = []
    held_out: list[Source] = []
    for index, phase in enumerate(config.phases):
        if phase.needles is not None:
            for side in (False, True):
                if side not in worlds:
                    sentences = haystack_sentences(config.haystack, held_out=side)
                    worlds[side] = NeedleWorlds(*needle_words(held_out=side), sentences)
            training.append(NeedleSource(worlds[False], phase.needles))
            held_out.append(NeedleSource(worlds[True], phase.needles))
        elif phase.variables is not None:
            for side, sources in ((False, training), (True, held_out)):
                sentences = haystack_sentences(config.haystack, held_out=side)
                sources.append(VariableSource(sentences, phase.variables))
        elif phase.files is None:
            training.append(None)
            held_out.append(None)
        else:
            seen, other = (_file_set(model, config, phase, files, held_out=side) for side in (False, True))
            hidden = [other] if phase.files.held_out_paths else []
            if phase.files.hidden_paths:
                hidden.append(read_training_set(phase.files.hidden_paths, corpus=phase.files.corpus))
            seen = without_answers(seen, hidden)
            training.append(FileSource(seen, phase.files, config.seed, questions_before(config, index)))
            held_out.append(FileSource(other, phase.files, config.seed))
    return training, held_out


def _file_set(
    model: MSAModel, config: TrainConfig, phase: Phase, known: dict[object, TrainingSet], *, held_out: bool
) -> TrainingSet:
    assert phase.files is not None
    paths = phase.files.held_out_paths if held_out and phase.files.held_out_paths else phase.files.paths
    key = (paths, phase.files.corpus, phase.files.skip_bad, phase.files.min_hops, phase.id_digits)
    if key not in known:
        whole = read_within_limits(
            paths, phase.files.corpus, config, model.protocol, phase.id_digits, skip_bad=phase.files.skip_bad
        )
        known[key] = whole.of_hops(phase.files.min_hops)
        if not known[key].samples:
            raise TrainingDataError(
                f"no sample in {', '.join(paths)} has {phase.files.min_hops} retrieval steps or more; "
                f"lower min_hops of phase {phase.name!r}, or add samples with hops"
            )
    return known[key]


def read_within_limits(
    paths: Sequence[str | Path],
    corpus: Sequence[str | Path],
    config: TrainConfig,
    protocol: Protocol,
    id_digits: int,
    *,
    skip_bad: bool = False,
) -> TrainingSet:
    """Files of samples, and further ones of documents that they name, as far as the run's documents may be long.

    Raises:
        TrainingDataError: see :func:`read_training_set`.
    """
    return read_training_set(
        paths,
        corpus=corpus,
        # the id stands at both ends, between control tokens
        max_document_tokens=config.max_document_tokens,
        count_tokens=lambda text: len(protocol.document_ids(10**id_digits - 1, text)),
        skip_bad=skip_bad,
    )


def without_answers(training: TrainingSet, others: Sequence[TrainingSet]) -> TrainingSet:
    """The training set without documents that others' questions are about, but for those it asks about itself."""
    named = {name for sample in training.samples for name in sample.named}
    hidden = {name for other in others for sample in other.samples for name in sample.positives} - named
    corpus = {name: text for name, text in training.corpus.items() if name not in hidden}
    return TrainingSet(corpus=corpus, samples=training.samples)


def held_out_evaluation(
    model: MSAModel, config: TrainConfig, batches: Batches, sources: Sequence[Source]
) -> Callable[[MSAForCausalLM, int], dict[str, float]]:
    """Metrics on a few held-out batches of the phase a step belongs to."""
    prefix = torch.tensor(model.protocol.prefix_ids, dtype=torch.long)

    def metrics(lm: MSAForCausalLM, step: int) -> dict[str, float]:
        index, phase = config.phase_at(step - 1)
        drawn = [batches.held_out(sources[index], phase, number) for number in range(_HELD_OUT_BATCHES)]
        return evaluate(lm, [batch.to(lm.device) for batch in drawn], prefix.to(lm.device))

    return metrics


def write_metrics(metrics: dict[str, float], path: Path) -> None:
    """Metrics as JSON."""
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
