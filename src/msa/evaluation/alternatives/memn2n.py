"""End-to-end memory network (MemN2N, arXiv 1503.08895): the network, its words and its weights on disk.

Axes: S sentences (memory slots), J words of a sentence, h rows per word, Q questions, d embedding size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from msa.errors import CheckpointError, ModelNotFoundError
from msa.training.data.needles import NOT_IN_MEMORY

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_SENTENCE_WORDS = 48  # longer sentences are cut into several slots


@dataclass(frozen=True, kw_only=True)
class MemN2NConfig:
    """Shape of a memory network.

    Attributes:
        pointer: False: the paper's answer layer, a softmax over the training vocabulary; True: the answer is a word of
            the memory, and words are hashed, so that unseen ones have an embedding.
        size: d.
        hops: the paper's 3.
        slots: temporal positions that have an encoding of their own; older sentences share the last.
        buckets, hashes: with ``pointer``, rows of an embedding and how many of them a word is the sum of.
    """

    pointer: bool = False
    size: int = 64
    hops: int = 3
    slots: int = 256
    buckets: int = 8192
    hashes: int = 2

    def __post_init__(self) -> None:
        for name in ("size", "hops", "slots", "buckets", "hashes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def words_of(text: str) -> list[str]:
    """Lower-case words; ``wandering-age`` and uuids are one. The answer that there is none is one word too."""
    return [NOT_IN_MEMORY] if text == NOT_IN_MEMORY else _WORD.findall(text.lower())


def sentences_of(text: str) -> list[list[str]]:
    """Sentences as words, at most 48 words each; empty ones are left out."""
    found = (words_of(sentence) for sentence in _SENTENCE_END.split(text))
    return [words[i : i + _SENTENCE_WORDS] for words in found for i in range(0, len(words), _SENTENCE_WORDS)]


class MemN2N(nn.Module):
    """Bag of words with position encoding, temporal encoding, K hops, adjacent weight tying (paper §2, §4.1).

    With embeddings E_0 … E_K: the question is embedded by B = E_0, hop k's input memory by A_k = E_{k−1}, its output
    memory by C_k = E_k, and the answer layer is W = E_Kᵀ.

    Args:
        config: its shape.
        vocabulary: words that have an embedding, without ``pointer``; that of others is zero.
    """

    def __init__(self, config: MemN2NConfig, vocabulary: Sequence[str] = ()) -> None:
        super().__init__()
        self.config, self.vocabulary = config, list(vocabulary)
        self._row = {word: row for row, word in enumerate(self.vocabulary, start=1)}
        # without pointer the last row stands for unknown words and stays zero
        rows = config.buckets if config.pointer else len(self.vocabulary) + 1
        self.words = nn.ModuleList(nn.Embedding(rows + 1, config.size, padding_idx=0) for _ in range(config.hops + 1))
        self.times = nn.ParameterList(
            nn.Parameter(0.1 * torch.randn(config.slots, config.size)) for _ in range(config.hops + 1)
        )
        # the pointer's: which place of a sentence it prefers, and how much it minds the word there
        self.from_end = nn.Parameter(torch.zeros(_SENTENCE_WORDS))
        self.content = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            for k in range(config.hops + 1):
                weight = self._table(k).weight.normal_(0, 0.3 if config.pointer else 0.1)
                weight[[0] if config.pointer else [0, -1]] = 0

    def rows(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Rows of words ``[S, J, h]``, 0 where there is none."""
        width = max(map(len, sentences), default=1)
        rows = torch.zeros(len(sentences), max(width, 1), self.config.hashes if self.config.pointer else 1).long()
        for s, sentence in enumerate(sentences):
            if sentence:
                rows[s, : len(sentence)] = torch.tensor([self._rows_of(word) for word in sentence])
        return rows

    def _rows_of(self, word: str) -> list[int]:
        if not self.config.pointer:
            return [self._row.get(word, len(self.vocabulary) + 1)]
        digest = hashlib.blake2b(word.encode(), digest_size=4 * self.config.hashes).digest()
        pieces = [digest[i : i + 4] for i in range(0, len(digest), 4)]
        return [int.from_bytes(piece, "little") % self.config.buckets + 1 for piece in pieces]

    def memory(self, rows: Tensor) -> list[Tensor]:
        """Sentences ``[S, J, h]``, oldest first → what E_0 … E_K make of them, ``[S, d]`` each."""
        age = torch.arange(len(rows) - 1, -1, -1).clamp(max=self.config.slots - 1)
        return [self._encoded(k, rows) + time[age] for k, time in enumerate(self.times)]

    def attend(self, question: Tensor, memory: Sequence[Tensor], *, linear: bool = False) -> tuple[Tensor, Tensor]:
        """Hops over the memory.

        Args:
            question: ``[Q, J, h]``.
            memory: from :meth:`memory`.
            linear: without softmax (linear start, paper §4.2); a pointer keeps the last hop's, which it points by.

        Returns:
            The final state ``[Q, d]``, and the last hop's attention ``[Q, S]``.
        """
        state = self._encoded(0, question)
        num_linear = self.config.hops - int(self.config.pointer) if linear else 0
        for hop in range(self.config.hops):
            logits = state @ memory[hop].T
            attention = logits if hop < num_linear else logits.softmax(-1)
            state = state + attention @ memory[hop + 1]
        return state, attention

    def word_logits(self, state: Tensor) -> Tensor:
        """The paper's answer layer: ``[Q, V]``."""
        return state @ self._table(self.config.hops).weight[1 : len(self.vocabulary) + 1].T

    def pointed(self, state: Tensor, attention: Tensor, rows: Tensor) -> Tensor:
        """Probability of every word of the memory to be the answer, ``[Q, S, J]``: attention, then a word inside."""
        present = rows[..., 0] > 0
        within = torch.einsum("qd,sjd->qsj", state, self._table(self.config.hops)(rows).sum(2))
        place = (present.sum(1, keepdim=True) - 1 - torch.arange(rows.shape[1])).clamp(min=0)
        within = (self.content * within + self.from_end[place]).masked_fill(~present, -1e9).softmax(-1)
        return attention[..., None] * within

    @torch.no_grad()
    def quieten(self, words: Iterable[str]) -> None:
        """Make the embeddings of words small, for instance of common ones, so that rare ones stand out."""
        rows = torch.tensor(sorted({row for word in words for row in self._rows_of(word)}), dtype=torch.int64)
        for k in range(self.config.hops + 1):
            self._table(k).weight[rows] *= 0.05

    def _table(self, index: int) -> nn.Embedding:
        table = self.words[index]
        assert isinstance(table, nn.Embedding)
        return table

    def _encoded(self, index: int, rows: Tensor) -> Tensor:
        """Σ_j l_j · E x_j with l_kj = (1 − j/J) − (k/d)(1 − 2j/J), ``[S, J, h]`` → ``[S, d]``."""
        size = self.config.size
        lengths = (rows[..., 0] > 0).sum(1).clamp(min=1)[:, None, None]
        j = torch.arange(1, rows.shape[1] + 1)[None, :, None] / lengths
        k = torch.arange(1, size + 1)[None, None, :] / size
        return ((1 - j - k * (1 - 2 * j)) * self._table(index)(rows).sum(2)).sum(1)

    def save(self, path: str | Path) -> None:
        """Write weights, shape and vocabulary to one safetensors file."""
        metadata = {"memn2n": json.dumps({"config": asdict(self.config), "vocabulary": self.vocabulary})}
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> MemN2N:
        """Read what :meth:`save` wrote.

        Raises:
            ModelNotFoundError: no such file.
            CheckpointError: it is no memory network, or damaged.
        """
        if not Path(path).is_file():
            raise ModelNotFoundError(f"no file {str(path)!r} with the weights of a memory network")
        try:
            with safe_open(path, framework="pt") as file:
                stored = json.loads((file.metadata() or {})["memn2n"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network = cls(MemN2NConfig(**stored["config"]), stored["vocabulary"])
            network.load_state_dict(tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{str(path)!r} holds no memory network, or a damaged one: {error}") from error
        return network.eval()


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """All words of texts, sorted, and the answer that there is none."""
    found = {word for text in texts for sentence in sentences_of(text) for word in sentence}
    return sorted({*found, NOT_IN_MEMORY})
