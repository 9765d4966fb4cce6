"""Retrieval-augmented generation: a retriever chooses texts, the same backbone reads them and answers."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping

from msa.documents.splitting import split_text
from msa.evaluation.alternatives.prompts import (
    counting_tokens,
    document_template,
    free_tokens,
    read_and_answer,
    reading_prompt,
)
from msa.evaluation.alternatives.retrievers import Found, Retriever
from msa.evaluation.alternatives.taken_in import take_in
from msa.evaluation.alternatives.text_file import TextFile
from msa.evaluation.types import Prediction, Question
from msa.generation.budget import Candidate, fit_documents
from msa.generation.reread import question_likelihoods
from msa.model.bundle import MSAModel

_REREAD_TOKENS = 128  # what question_likelihoods reads of a text


class RagAnswerer:
    """Top-k retrieval, then the backbone reads with the prompt of routed mode (or the transcript it was trained on).

    Long documents are cut into the same parts as the memory cuts them into, so retrieval chooses among the same units;
    ``retrieved`` names their documents. Texts are fitted into the context best first, as the memory does it. One round:
    there is no second retrieval after reading. ``tokens_seen`` counts the backbone's tokens, reranking included, not
    the retriever's.

    With ``rerank_from`` that many candidates are put in the order of how likely the backbone finds the question after
    reading them (Sachan et al., arXiv 2204.07496, with this backbone instead of a larger one), piece by piece of at
    most 128 tokens; a candidate counts as its best piece.

    Args:
        name: of the row.
        model: reads and answers.
        retriever: chooses; must be empty.
        top_k: texts to read.
        rerank_from: candidates to rerank; 0: none.

    Raises:
        ValueError: ``top_k`` below 1, or ``rerank_from`` below ``top_k``.
    """

    def __init__(
        self, name: str, model: MSAModel, retriever: Retriever, *, top_k: int = 5, rerank_from: int = 0
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if rerank_from and rerank_from < top_k:
            raise ValueError(f"rerank_from must be 0 or at least top_k = {top_k}, got {rerank_from}")
        self.name = name
        self._model, self._retriever = model, retriever
        self._top_k, self._rerank_from = top_k, rerank_from
        self._taken: dict[str, bytes] = {}
        self._documents: list[str] = []  # the id of each part's document
        self._texts = TextFile()

    def prepare(self, documents: Mapping[str, str]) -> None:
        """See :class:`msa.evaluation.Answerer`.

        Raises:
            ValueError: a document taken in earlier is given with another text.
        """
        protocol = self._model.protocol
        new: list[str] = []
        for name, text in take_in(self._taken, documents).items():
            spans = split_text(
                text, max_tokens=protocol.strings.max_document_tokens, token_starts=protocol.plain_starts
            )
            new += [text[start:end] for start, end in spans]
            self._documents += [name] * len(spans)
        self._retriever.add(new)
        for part in new:
            self._texts.append(part)

    def settle(self) -> None:
        """See :class:`msa.evaluation.Answerer`."""
        self._retriever.settle()

    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """See :class:`msa.evaluation.Answerer`."""
        started = time.perf_counter()
        with counting_tokens(self._model) as tokens_seen:
            found = self._retriever.search(question.question, self._rerank_from or self._top_k)
            if self._rerank_from:
                found = self._reranked(found, question.question)
            found = found[: self._top_k]
            candidates = [self._candidate(one) for one in found]
            title = candidates[0].name if candidates else ""
            free = free_tokens(self._model, question, max_new_tokens, title)
            if free < 0:
                context = self._model.lm.config.max_position_embeddings
                note = f"question and answer take {context - free} tokens, the context ends at {context}"
                return Prediction(text="", read=(), note=note)
            fitted = fit_documents(self._model.protocol, candidates, document_template(self._model), free, 1)
            prompt = reading_prompt(self._model, fitted.documents, question, title)
            written = read_and_answer(self._model, prompt, max_new_tokens)
            seen = tokens_seen()
        names = [self._documents[one.index] for one in found]
        return Prediction(
            text=written.text,
            retrieved=tuple(dict.fromkeys(names)),
            read=tuple(dict.fromkeys(self._documents[number] for number, _ in fitted.documents)),
            seconds=time.perf_counter() - started,
            first_token_s=written.first_token - started,
            tokens_seen=seen,
            note="; ".join(fitted.notes),
        )

    def resident_bytes(self) -> int:
        """Bytes of the index, and of where each text is found; the texts are on disk, as a memory's are."""
        return self._retriever.resident_bytes() + self._texts.resident_bytes()

    def _candidate(self, found: Found) -> Candidate:
        text = self._texts[found.index]
        starts = self._model.protocol.plain_starts(text) if found.place else []
        return Candidate(
            number=found.index,
            name=self._documents[found.index],
            text=text,
            best_chunk=bisect_left(starts, found.place),
        )

    def _reranked(self, found: list[Found], question: str) -> list[Found]:
        """Candidates in the order of the question's likelihood after their best piece."""
        protocol = self._model.protocol
        pieces: list[str] = []
        owners: list[int] = []
        for rank, one in enumerate(found):
            text = self._texts[one.index]
            for start, end in split_text(text, max_tokens=_REREAD_TOKENS, token_starts=protocol.plain_starts):
                pieces.append(text[start:end])
                owners.append(rank)
        if len(found) < 2:
            return found
        best = [float("-inf")] * len(found)
        for rank, score in zip(
            owners, question_likelihoods(self._model.lm, protocol, pieces, question).tolist(), strict=True
        ):
            best[rank] = max(best[rank], score)
        return [found[rank] for rank in sorted(range(len(found)), key=lambda rank: -best[rank])]
