"""The memory network as a row of the comparison."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from msa.evaluation.alternatives.memn2n import MemN2N, sentences_of, words_of
from msa.evaluation.alternatives.taken_in import take_in
from msa.evaluation.types import Prediction, Question
from msa.training.data.needles import NOT_IN_MEMORY


class MemN2NAnswerer:
    """A trained :class:`MemN2N` over the documents' sentences; the backbone is not used.

    As in the paper an answer is one word. The paper's variant chooses it from the vocabulary it was trained with: it
    cannot write a value it has never seen, nor tell keys apart that it has never seen; on held-out needles it fails by
    construction. The pointer variant is ours, in the network's favour: words are hashed into embeddings, so unseen ones
    can be compared, and the answer is copied out of the memory by the last hop's attention and a softmax over the words
    of each sentence. Departures of both: the memory holds all sentences (the paper keeps the last 50), those older than
    the encoded ages share one temporal encoding, a sentence that says that there is no answer is always there, and
    training as :func:`msa.evaluation.alternatives.memn2n_training.train_memn2n` says.

    ``retrieved`` names the documents of the sentences that the last hop attends to most; ``tokens_seen`` counts words.

    Args:
        name: of the row.
        network: trained.
        num_retrieved: documents to name.
    """

    def __init__(self, name: str, network: MemN2N, *, num_retrieved: int = 10) -> None:
        self.name = name
        self.network = network.eval()
        self._num_retrieved = num_retrieved
        self._taken: dict[str, bytes] = {}
        self._sentences: list[list[str]] = [[NOT_IN_MEMORY]]
        self._owners: list[str] = [""]
        self._rows: Tensor | None = None
        self._memory: list[Tensor] = []

    @torch.inference_mode()
    def prepare(self, documents: Mapping[str, str]) -> None:
        """See :class:`msa.evaluation.Answerer`.

        Raises:
            ValueError: a document taken in earlier is given with another text.
        """
        for name, text in take_in(self._taken, documents).items():
            found = sentences_of(text)
            self._sentences += found
            self._owners += [name] * len(found)
            self._rows = None

    @torch.inference_mode()
    def settle(self) -> None:
        """See :class:`msa.evaluation.Answerer`; all embeddings are computed anew, because sentences have aged."""
        if self._rows is not None:
            return
        self._rows = self.network.rows(self._sentences)
        self._memory = self.network.memory(self._rows)

    @torch.inference_mode()
    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """See :class:`msa.evaluation.Answerer`; the answer is one word whatever ``max_new_tokens``."""
        started = time.perf_counter()
        words = words_of(question.question)
        if not words:
            raise ValueError(f"question {question.id!r} has no words; ask something")
        self.settle()
        assert self._rows is not None
        state, attention = self.network.attend(self.network.rows([words]), self._memory)
        if self.network.config.pointer:
            text = self._pointed(state, attention[0])
        else:
            text = self.network.vocabulary[int(self.network.word_logits(state)[0].argmax())]
        best = attention[0].topk(min(4 * self._num_retrieved, len(self._owners))).indices.tolist()
        owners = dict.fromkeys(self._owners[i] for i in best if self._owners[i])
        seconds = time.perf_counter() - started
        return Prediction(
            text=text,
            retrieved=tuple(owners)[: self._num_retrieved],
            seconds=seconds,
            first_token_s=seconds,
            tokens_seen=len(words),
        )

    def resident_bytes(self) -> int:
        """Bytes of the embedded memory, of its words' rows, and of the words."""
        tensors = [*self._memory, *([] if self._rows is None else [self._rows])]
        words = sum(len(word.encode()) for sentence in self._sentences for word in sentence)
        return words + sum(tensor.nbytes for tensor in tensors)

    def _pointed(self, state: Tensor, attention: Tensor) -> str:
        """The word with most probability, counted over the sentences with most attention; its occurrences add up."""
        assert self._rows is not None
        best = attention.topk(min(64, len(attention))).indices
        probabilities = self.network.pointed(state, attention[None, best], self._rows[best])[0]
        totals: dict[str, float] = {}
        for row, index in zip(probabilities.tolist(), best.tolist(), strict=True):
            for word, probability in zip(self._sentences[index], row, strict=False):
                totals[word] = totals.get(word, 0.0) + probability
        return max(totals, key=lambda word: totals[word])
