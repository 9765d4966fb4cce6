"""Encoding from text to committed segment, beside bare forward passes and batches in document order."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa.bench.figures import Figure
from msa.bench.floors import seconds_per_operation
from msa.bench.timing import alternated, scaled, seconds_of, times_of
from msa.bench.twin import transformers_twin
from msa.documents.batching import pad_right
from msa.encoding.encoder import batch_tokens_for, batches_of, encode_in_batches
from msa.memory import Memory
from msa.model.attention import MemorySparseAttention
from msa.model.bundle import MSAModel
from msa.ops.attend_memory import attend_causal
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.words import haystack_sentences

_WORD = re.compile(r"\b[a-z]{4,12}\b")
_WARM_UP, _MOST_DOCUMENTS = 40, 1000


class BareReader:
    """Causal attention of each document over itself; keeps nothing."""

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`."""
        return attend_causal(q, k, v)


def made_up_documents(
    count: int, seed: str, words: tuple[Sequence[str], Sequence[str]] | None = None
) -> list[dict[str, str]]:
    """Held-out sentences around needles, as ``Memory.add`` takes them.

    Args:
        count: documents.
        seed: the same documents for the same seed and words.
        words: adjectives and nouns that the needles' keys are made of; None: words of the sentences, whatever they are.
    """
    sentences = haystack_sentences(held_out=True)
    found = sorted({word for sentence in sentences for word in _WORD.findall(sentence)})
    adjectives, nouns = words or (found, found)
    worlds = NeedleWorlds(adjectives, nouns, sentences)
    world = worlds.world(NeedleConfig(documents=count, questions=0, max_filler=80), seed, set())
    return [{"id": name, "text": text} for name, text in world.corpus.items()]


def batches_in_order(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Neighbours grouped in document order, each group at most ``batch_tokens`` tokens once padded.

    >>> batches_in_order([2, 1, 5, 1], batch_tokens=6)
    [[0, 1], [2], [3]]
    """
    groups: list[list[int]] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def padding(groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Tokens once padded over real tokens.

    >>> padding([[0, 1], [2]], [2, 1, 5])
    1.125
    """
    return sum(len(group) * max(lengths[i] for i in group) for group in groups) / sum(lengths)


class Works:
    """What is measured, each over the same documents."""

    def __init__(self, model: MSAModel, documents: Sequence[dict[str, str]], batch_tokens: int | None = None) -> None:
        self.model, self.documents = model, documents
        self.batch_tokens = batch_tokens = batch_tokens or batch_tokens_for(model.lm)
        numbered = enumerate(documents, start=1)
        self.sequences = [model.protocol.document_ids(number, document["text"]) for number, document in numbered]
        self.lengths = [len(ids) for ids in self.sequences]
        self.bucketed = batches_of(self.lengths, batch_tokens, model.device)
        self.in_order = batches_in_order(self.lengths, batch_tokens)
        self._batches = [pad_right([self.sequences[i] for i in group], model.device) for group in self.bucketed]
        self._naive = [pad_right([self.sequences[i] for i in group], model.device) for group in self.in_order]
        self._twin = transformers_twin(model)

    def by_name(self) -> dict[str, Callable[[], Any]]:
        """Name → what to time."""
        works: dict[str, Callable[[], Any]] = {"bare_forward": self.bare_forward}
        if self._twin is not None:
            works["transformers_forward"] = self.transformers_forward
        return {**works, "encoder": self.encoder, "add": self.add, "naive": self.naive}

    def bare_forward(self) -> None:
        """Every layer of the backbone over length-bucketed batches padded beforehand; no logits, nothing kept."""
        for ids, _ in self._batches:
            self.model.lm.model(ids, torch.arange(ids.shape[1], device=ids.device)[None], BareReader())

    def needed_layers(self) -> None:
        """The same as far as documents need it: of the last router layer keys and values, of later ones nothing."""
        last = self.model.lm.config.router_layers[-1]
        for ids, _ in self._batches:
            self.model.lm.model.read_until(ids, torch.arange(ids.shape[1], device=ids.device)[None], BareReader(), last)

    def transformers_forward(self) -> None:
        """The same with transformers' model of these weights."""
        if self._twin is None:
            raise ValueError(f"transformers has no model with the weights of {self.model.name!r} to compare with")
        for ids, _ in self._batches:
            self._twin.model(ids, use_cache=False)

    def encoder(self) -> None:
        """Token ids to latents."""
        encode_in_batches(self.model.lm, self.sequences, batch_tokens=self.batch_tokens)

    def add(self) -> None:
        """Texts to a committed memory."""
        with (
            tempfile.TemporaryDirectory() as folder,
            Memory.open(Path(folder) / "memory", model=self.model) as memory,
        ):
            memory.add(self.documents)
            if len(memory) != len(self.documents):
                raise RuntimeError(f"{len(memory)} of {len(self.documents)} documents were stored")

    def naive(self) -> None:
        """Batches in document order."""
        for ids, lengths in self._naive:
            self.model.lm.encode_documents(ids, lengths)


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Speed of one work over that of another, medians over the rounds."""

    def faster(name: str, reference: str) -> float:
        pairs = zip(times[reference], times[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    references = [name for name in ("bare_forward", "transformers_forward") if name in times]
    pairs = [(name, reference) for name in ("encoder", "add") for reference in references]
    found = {f"{name} / {reference}": faster(name, reference) for name, reference in pairs}
    return {**found, "encoder / naive": faster("encoder", "naive"), "add / naive": faster("add", "naive")}


@torch.inference_mode()
def bench_encoding(model: MSAModel, seconds: float, repeats: int) -> list[Figure]:
    """Text to committed segment, and token ids to latents.

    Args:
        model: encodes.
        seconds: about so long may each way take in a round; as many documents are made up.
        repeats: rounds.
    """
    documents = made_up_documents(_MOST_DOCUMENTS, "encoding")
    warm_up = Works(model, documents[:_WARM_UP])
    alternated({**warm_up.by_name(), "needed_layers": warm_up.needed_layers}, 1)
    count = int(_WARM_UP * seconds / seconds_of(warm_up.bare_forward))
    works = Works(model, documents[: max(_WARM_UP, count)])
    rounds = alternated({**works.by_name(), "needed_layers": works.needed_layers}, repeats)
    times = {name: times_of(seconds_of_work) for name, seconds_of_work in rounds.items()}
    tokens = sum(works.lengths)
    needed = [model.lm.model.layer(index) for index in range(model.lm.config.router_layers[-1])]
    weights = sum(weight.numel() for layer in needed for weight in layer.parameters())
    floors = {
        "needed layers": times["needed_layers"],
        "peak": scaled(seconds_per_operation(model.lm.dtype, model.device), 2 * weights * tokens),
    }
    names = {"bare_forward": "bare forward", "transformers_forward": "transformers", "naive": "document order"}
    baselines = {shown: times[name] for name, shown in names.items() if name in times}
    details = {"documents": len(works.documents), "tokens": tokens, "padding": padding(works.bucketed, works.lengths)}
    figures = {"text to committed segment": "add", "token ids to latents": "encoder"}
    return [
        Figure(
            what=f"encoding, {what}",
            times=times[name],
            baselines=baselines,
            floors=floors,
            amount=tokens,
            unit="tokens",
            details=details,
        )
        for what, name in figures.items()
    ]
