"""What routers see, computed once over a frozen backbone and kept on disk.

Pooling commutes with a linear map, so training a layer's routers needs only the pooled normed hidden state of every
chunk and the normed hidden state of every question token. They are written in shards, each named after the token ids it
was made of: an interrupted run goes on where it stopped, and texts that were read before are not read again.

Axes: N documents, C chunks, Q questions, T question tokens, H hidden, B texts of a batch, L padded length.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msa.documents.batching import length_buckets, pad_right
from msa.errors import TrainingError
from msa.model.attention import MemorySparseAttention, QuestionReader
from msa.model.bundle import MSAModel, model_fingerprint
from msa.ops import chunk_offsets_of, pool_chunks
from msa.ops.attend_memory import attend_causal
from msa.training.data.samples import Sample
from msa.training.files import replace_file

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_COUNTS = "counts"

Attend = Callable[[MemorySparseAttention, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LayerStates:
    """What the routers of one layer see; states are bfloat16, offsets int64.

    Attributes:
        chunks: ``[C, H]`` pooled normed hidden states of all documents' chunks.
        chunk_offsets: ``[N + 1]``; document i owns chunks ``offsets[i]:offsets[i + 1]``.
        tokens: ``[T, H]`` normed hidden states of all questions' routing tokens.
        token_offsets: ``[Q + 1]``; question i owns tokens ``offsets[i]:offsets[i + 1]``.
    """

    chunks: Tensor
    chunk_offsets: Tensor
    tokens: Tensor
    token_offsets: Tensor


@dataclass(frozen=True)
class RouterStates:
    """A folder of cached states; one layer at a time is read from it.

    Attributes:
        folder: where the shards are.
        layers: the router layers, ascending.
        documents, questions: names of the shards that hold the documents and the questions, in the order given.
    """

    folder: Path
    layers: tuple[int, ...]
    documents: tuple[str, ...]
    questions: tuple[str, ...]

    def layer(self, layer: int) -> LayerStates:
        """Read the states of one router layer.

        Raises:
            TrainingError: a shard is missing or damaged.
            ValueError: not a router layer.
        """
        if layer not in self.layers:
            raise ValueError(f"layer must be one of the router layers {list(self.layers)}, got {layer}")
        return LayerStates(*self._read(self.documents, layer), *self._read(self.questions, layer))

    def _read(self, shards: Sequence[str], layer: int) -> tuple[Tensor, Tensor]:
        """States ``[C or T, H]`` and offsets ``[N or Q, + 1]`` of consecutive shards."""
        states, counts = [], []
        for name in shards:
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    states.append(file.get_tensor(str(layer)))
                    counts.append(file.get_tensor(_COUNTS))
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"{self.folder / name} cannot be read ({error}). Delete it and cache the states again"
                ) from error
        return torch.cat(states), torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))


def cache_router_states(
    model: MSAModel,
    corpus: Mapping[str, str],
    samples: Sequence[Sample],
    folder: str | Path,
    *,
    batch_tokens: int = 4096,
    shard_texts: int = 512,
) -> RouterStates:
    """Run every document and question through the backbone up to its last router layer, in the model's dtype.

    Documents are encoded as the engine does (paper §3.1), numbered from 1 in the corpus's order; questions stand after
    the prefix at the positions they have when they route (§3.2), and only their routing tokens are kept. Shards that
    ``folder`` already holds are not computed again.

    Args:
        model: the model; its routers are not used.
        corpus: document id → text.
        samples: whose questions to read.
        folder: where to keep the states; made if it does not exist.
        batch_tokens: tokens per forward pass, padding included.
        shard_texts: documents or questions per shard.

    Raises:
        TrainingError: the folder holds states of another model, or its manifest cannot be read.
        ValueError: no documents or no samples, a question without routing tokens, or a model whose routers are not
            separate projections.
    """
    if not corpus or not samples:
        raise ValueError("router states need at least one document and one sample")
    if not model.lm.config.decouple_router:
        raise ValueError("this model routes with its attention's own projections; there are no routers to train")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(model, folder)
    protocol = model.protocol
    documents = [_Text(protocol.document_ids(number, text)) for number, text in enumerate(corpus.values(), start=1)]
    encoder = _Encoder(model, batch_tokens)
    document_shards = _fill(folder, "documents", documents, encoder, shard_texts)
    question_shards = _fill(folder, "questions", [_question(model, s.query) for s in samples], encoder, shard_texts)
    return RouterStates(folder, tuple(model.lm.config.router_layers), document_shards, question_shards)


@dataclass(frozen=True)
class _Text:
    """Token ids; of a question also which of them route."""

    ids: list[int]
    marked: list[bool] = field(default_factory=list)


def _question(model: MSAModel, query: str) -> _Text:
    """The question's turn, cut after its last routing token: what follows cannot change the states before it."""
    turn = model.protocol.question_turn(query)
    if True not in turn.marked:
        raise ValueError(f"the question {query!r} has no token that routes")
    end = len(turn.marked) - turn.marked[::-1].index(True)
    return _Text(turn.ids[:end], turn.marked[:end])


def _check_manifest(model: MSAModel, folder: Path) -> None:
    """Write the manifest of a new folder, or refuse a folder of another model."""
    expected = {
        "format": FORMAT_VERSION,
        "backbone": model_fingerprint(model.lm, routers=False),
        "layers": list(model.lm.config.router_layers),
        "hidden_size": model.lm.config.hidden_size,
    }
    path = folder / MANIFEST
    if not path.exists():
        replace_file(path, lambda file: file.write_text(json.dumps(expected) + "\n", encoding="utf-8"))
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}). Delete the folder and cache the states again") from error
    if found != expected:
        raise TrainingError(
            f"{folder} holds the states of another model: expected {expected}, found {found}. Choose another folder"
        )


class _Encoder:
    """Texts → their states in every router layer."""

    def __init__(self, model: MSAModel, batch_tokens: int) -> None:
        self.model, self.lm, self.batch_tokens = model, model.lm, batch_tokens
        self.context = [*model.protocol.prefix_ids, model.lm.config.top_k_docs]

    @torch.inference_mode()
    def encode(self, texts: Sequence[_Text]) -> dict[str, Tensor]:
        """One shard: layer → states ``[C or T, H]`` in the order given, and how many rows each text has."""
        pieces: dict[int, list[Tensor]] = {
            layer: [torch.empty(0)] * len(texts) for layer in self.lm.config.router_layers
        }
        counts = torch.zeros(len(texts), dtype=torch.int64)
        for batch in length_buckets([len(text.ids) for text in texts], self.batch_tokens):
            ids, lengths = pad_right([texts[i].ids for i in batch], self.lm.device)
            marked = [texts[i].marked for i in batch]
            states, rows = self._questions(ids, marked) if marked[0] else self._documents(ids, lengths)
            counts[batch] = rows
            for layer, of_layer in states.items():
                for i, piece in zip(batch, of_layer.split(rows.tolist()), strict=True):
                    pieces[layer][i] = piece
        return {_COUNTS: counts} | {str(layer): torch.cat(of_layer) for layer, of_layer in pieces.items()}

    def _documents(self, ids: Tensor, lengths: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Documents ``[B, L]`` → pooled chunk states per layer, and chunks per document ``[B]``."""
        size = self.lm.config.chunk_size
        reader = _StateReader(
            attend_as=lambda attention, hidden, q, k, v: attend_causal(q, k, v),
            keep=lambda hidden: pool_chunks(hidden, lengths, size),
        )
        return self._run(ids, 0, reader), chunk_offsets_of(lengths, size).diff().cpu()

    def _questions(self, ids: Tensor, marked: list[list[bool]]) -> tuple[dict[int, Tensor], Tensor]:
        """Questions ``[B, L]`` → states of their routing tokens per layer, and tokens per question ``[B]``."""
        mask = pad_right([[int(routes) for routes in row] for row in marked], self.lm.device)[0].bool()
        prefix = self.model.prefix
        # padding on the right needs no mask: no token attends to what comes after it
        inner = QuestionReader(
            spec=self.lm.config.routing_spec(training=False),
            top_k=self.lm.config.top_k_docs,
            prefix=prefix,
            keep_cache=False,
            attend_selected=False,
        )
        reader = _StateReader(attend_as=inner.attend, keep=lambda hidden: hidden[mask])
        return self._run(ids, prefix.num_tokens + self.lm.config.top_k_docs, reader), mask.sum(1).cpu()

    def _run(self, ids: Tensor, start: int, reader: _StateReader) -> dict[int, Tensor]:
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        last = self.lm.config.router_layers[-1]
        hidden, _ = self.lm.model.read_until(ids, positions, reader, last)
        reader.add(last, hidden)
        return reader.states


@dataclass
class _StateReader:
    """Attends as ``attend`` does and keeps ``keep(hidden)`` of every router layer."""

    attend_as: Attend
    keep: Callable[[Tensor], Tensor]
    states: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, attention: MemorySparseAttention, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`msa.model.attention.Reader`."""
        if attention.is_router:
            self.add(attention.layer, hidden)
        return self.attend_as(attention, hidden, q, k, v)

    def add(self, layer: int, hidden: Tensor) -> None:
        """Keep one layer's states."""
        self.states[layer] = self.keep(hidden).to("cpu", torch.bfloat16)


def _fill(folder: Path, kind: str, texts: Sequence[_Text], encoder: _Encoder, shard_texts: int) -> tuple[str, ...]:
    """Compute the shards that are not there yet; the names of all."""
    names, started, done = [], time.perf_counter(), 0
    shards = [texts[start : start + shard_texts] for start in range(0, len(texts), shard_texts)]
    for number, shard in enumerate(shards, start=1):
        content = json.dumps([FORMAT_VERSION, encoder.context, [[text.ids, text.marked] for text in shard]])
        names.append(f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors")
        if (folder / names[-1]).exists():
            continue
        tensors = encoder.encode(shard)
        replace_file(folder / names[-1], partial(save_file, tensors))
        done += sum(len(text.ids) for text in shard)
        rate = done / (time.perf_counter() - started)
        logger.info("%s: shard %d of %d, %d tokens read, %.0f tokens/s", kind, number, len(shards), done, rate)
    return tuple(names)
