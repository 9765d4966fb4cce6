"""The corpus as the network encodes it at one moment of training.

It serves two things: hard negatives (what the network then mistakes for the answer), and latents to read while the
document side is frozen.

Axes: B questions, N documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msa.documents import Protocol
from msa.documents.batching import length_buckets, pad_left, pad_right
from msa.errors import TrainingError
from msa.model import DocumentMemory, MSAForCausalLM
from msa.training.data.samples import TrainingSet
from msa.training.files import replace_file


@dataclass
class Snapshot:
    """An encoded corpus and mined negatives.

    Attributes:
        step: optimiser steps before it was taken.
        numbers: corpus id → the number the document was encoded under, in the corpus's order.
        memory: latents of all documents in that order; None: they were only needed for mining.
        mined: sample's place in the training set → ids of the best wrong documents, best first.
    """

    step: int
    numbers: dict[str, int]
    memory: DocumentMemory | None = None
    mined: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def latents(self, names: Iterable[str]) -> DocumentMemory:
        """Latents of some documents, in that order."""
        assert self.memory is not None
        places = [self._places[name] for name in names]
        return self.memory.select(torch.tensor(places, device=self.memory.chunk_offsets.device))

    @cached_property
    def _places(self) -> dict[str, int]:
        """Corpus id → which document of the memory it is."""
        return {name: index for index, name in enumerate(self.numbers)}

    def save(self, path: Path) -> None:
        """Write everything into one file, which is there whole or not at all."""
        tensors = {} if self.memory is None else self.memory.tensors()
        facts = {"step": self.step, "numbers": self.numbers, "mined": list(self.mined.items())}
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"snapshot": json.dumps(facts)}
        replace_file(path, partial(save_file, tensors or {"empty": torch.zeros(0)}, metadata=metadata))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Snapshot:
        """Read what :meth:`save` wrote.

        Raises:
            TrainingError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                facts = json.loads(file.metadata()["snapshot"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{path} cannot be read ({error}); it holds what the run trains on until the next one is taken. "
                f"Put it back, or start again in another 'out' folder"
            ) from error
        mined = {int(place): tuple(names) for place, names in facts["mined"]}
        memory = DocumentMemory.from_tensors(tensors) if "chunk_offsets" in tensors else None
        return cls(facts["step"], facts["numbers"], memory, mined)


@torch.no_grad()
def take_snapshot(
    lm: MSAForCausalLM,
    protocol: Protocol,
    training_set: TrainingSet,
    *,
    step: int,
    numbers: Sequence[int],
    places: Iterable[int],
    negatives: int,
    bucket_tokens: int,
    keep_latents: bool,
) -> Snapshot:
    """Encode the whole corpus with the network's present weights and mine negatives from it.

    Args:
        lm: the network; its mode (training or not) is put back.
        protocol: the transcript.
        training_set: corpus and samples.
        step: optimiser steps so far.
        numbers: one per document, in the corpus's order.
        places: samples to mine for, by their places in the set.
        negatives: wrong documents to keep per sample, by the mean of the router layers' scores.
        bucket_tokens: tokens of a forward pass, padding included.
        keep_latents: whether the snapshot keeps the latents.
    """
    was_training = lm.training
    lm.eval()
    number_of = dict(zip(training_set.corpus, numbers, strict=True))
    memory = encode_corpus(lm, protocol, list(training_set.corpus.values()), numbers, bucket_tokens)
    wanted = sorted(set(places)) if negatives else []
    mined = _mine(lm, protocol, training_set, memory, wanted, negatives, bucket_tokens)
    lm.train(was_training)
    return Snapshot(step, number_of, memory if keep_latents else None, mined)


def encode_corpus(
    lm: MSAForCausalLM, protocol: Protocol, texts: Sequence[str], numbers: Sequence[int], bucket_tokens: int
) -> DocumentMemory:
    """Latents of all texts in their order, each under its number, buckets of similar lengths at a time."""
    encoded = [protocol.document_ids(number, text) for number, text in zip(numbers, texts, strict=True)]
    parts, order = [], []
    for group in length_buckets([len(ids) for ids in encoded], bucket_tokens):
        input_ids, lengths = pad_right([encoded[i] for i in group], lm.device)
        parts.append(lm.encode_documents(input_ids, lengths))
        order += group
    return DocumentMemory.concatenate(parts).select(torch.tensor(order, device=lm.device).argsort())


def mean_scores(
    lm: MSAForCausalLM, protocol: Protocol, memory: DocumentMemory, queries: Sequence[str], bucket_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Some of the questions at a time: which, and the mean of the router layers' document scores ``[B, N]``."""
    prefix_ids = torch.tensor(protocol.prefix_ids, dtype=torch.long, device=lm.device)
    prefix = lm.encode_prefix(prefix_ids) if len(prefix_ids) else None
    turns = [protocol.question_turn(query) for query in queries]
    for group in length_buckets([len(turn.ids) for turn in turns], bucket_tokens):
        ids, mask = pad_left([turns[i].ids for i in group], lm.device)
        routes, _ = pad_left([[int(m) for m in turns[i].marked] for i in group], lm.device)
        routing = lm.route(ids, memory, attention_mask=mask, routing_mask=routes, prefix=prefix)
        yield group, torch.stack([layer.doc_scores for layer in routing.values()]).mean(0)


def _mine(
    lm: MSAForCausalLM,
    protocol: Protocol,
    training_set: TrainingSet,
    memory: DocumentMemory,
    places: Sequence[int],
    count: int,
    bucket_tokens: int,
) -> dict[int, tuple[str, ...]]:
    names = list(training_set.corpus)
    place_of = {name: index for index, name in enumerate(names)}
    asked = [training_set.samples[place] for place in places]
    mined: dict[int, tuple[str, ...]] = {}
    for group, scores in mean_scores(lm, protocol, memory, [sample.query for sample in asked], bucket_tokens):
        positives = [(row, place_of[name]) for row, i in enumerate(group) for name in asked[i].positives]
        if positives:
            rows, columns = zip(*positives, strict=True)
            scores[list(rows), list(columns)] = float("-inf")
        best = scores.topk(min(count, len(names)), dim=1)
        # one copy for all rows: tens of thousands of questions are mined for at a time
        for i, indices, values in zip(group, best.indices.tolist(), best.values.tolist(), strict=True):
            kept = [index for index, value in zip(indices, values, strict=True) if value > float("-inf")]
            mined[places[i]] = tuple(names[index] for index in kept)
    return mined
