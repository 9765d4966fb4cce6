"""Map-reduce summarisation: documents are compressed to summaries beforehand, questions are answered from those."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from msa.documents.splitting import split_text
from msa.evaluation.alternatives.prompts import (
    document_template,
    free_tokens,
    read_and_answer,
    reading_prompt,
    stop_ids,
    transcript,
)
from msa.evaluation.alternatives.taken_in import take_in
from msa.evaluation.types import Prediction, Question
from msa.generation.budget import Candidate, fit_documents
from msa.generation.decoding import Decoding, Prompt
from msa.model.bundle import MSAModel

log = logging.getLogger(__name__)

_POOREST = 8  # tokens of a summary on average; fewer are worth a warning
INSTRUCTION = "Summarise the text above. Keep every name, number and fact."


class MapReduceAnswerer:
    """Documents are summarised in groups (map), summaries in groups again until they fit a budget (reduce).

    Both happen without knowing the questions, in :meth:`prepare` and :meth:`settle`; what the summaries left out cannot
    be answered. The first summaries are kept, so further documents cost their own; the reduction is done anew. The
    backbone is given the text as routed mode gives it documents to read, and the instruction as a question.

    Args:
        name: of the row.
        model: summarises, reads and answers.
        group_tokens: text per summary, in tokens; longer documents are cut.
        summary_tokens: tokens of one summary, at most; less than half of ``group_tokens``, so that every reduction
            makes fewer summaries.
        budget_tokens: tokens all summaries together may have in the prompt; None: half of the context.
        batch: summaries written at a time.

    Raises:
        ValueError: sizes that could not be kept.
    """

    def __init__(
        self,
        name: str,
        model: MSAModel,
        *,
        group_tokens: int = 512,
        summary_tokens: int = 128,
        budget_tokens: int | None = None,
        batch: int = 16,
    ) -> None:
        context = model.lm.config.max_position_embeddings
        budget = context // 2 if budget_tokens is None else budget_tokens
        if summary_tokens < 1 or 2 * summary_tokens > group_tokens:
            raise ValueError(
                f"summary_tokens must be at least 1 and at most half of group_tokens, got {summary_tokens} and "
                f"{group_tokens}"
            )
        if budget < summary_tokens:
            raise ValueError(f"budget_tokens must hold a summary of {summary_tokens} tokens, got {budget}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        frame = len(self._summary_ids(model, ""))
        if frame + group_tokens + summary_tokens > context:
            raise ValueError(
                f"group_tokens {group_tokens} and summary_tokens {summary_tokens} do not fit the context of {context} "
                "tokens; lower them"
            )
        self.name = name
        self._model = model
        self._group_tokens, self._summary_tokens, self._budget, self._batch = (
            group_tokens,
            summary_tokens,
            budget,
            batch,
        )
        self._taken: dict[str, bytes] = {}
        self._stale = False
        self._mapped: list[str] = []
        self.summaries: list[str] = []

    def prepare(self, documents: Mapping[str, str]) -> None:
        """See :class:`msa.evaluation.Answerer`; a document taken in before is not summarised again.

        Raises:
            ValueError: it is given with another text.
        """
        new = take_in(self._taken, documents)
        groups = self._groups([*new.values()])
        written = self._summarised(groups)
        self._mapped += written
        sizes = sum(map(self._size, written))
        if groups and sizes < _POOREST * len(groups):
            log.warning(
                "%s: %d texts of up to %d tokens were summarised in %.1f tokens each; %s hardly summarises, and what "
                "follows is that",
                self.name,
                len(groups),
                self._group_tokens,
                sizes / len(groups),
                self._model.name,
            )
        self._stale = self._stale or bool(new)

    def settle(self) -> None:
        """See :class:`msa.evaluation.Answerer`."""
        if not self._stale:
            return
        self._stale = False
        summaries = self._mapped
        while len(summaries) > 1 and sum(map(self._size, summaries)) > self._budget:
            summaries = self._summarised(self._groups(summaries))
        self.summaries = list(summaries)

    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """See :class:`msa.evaluation.Answerer`."""
        started = time.perf_counter()
        self.settle()
        free = free_tokens(self._model, question, max_new_tokens)
        if free < 0:
            context = self._model.lm.config.max_position_embeddings
            return Prediction(
                text="", note=f"question and answer take {context - free} tokens, the context ends at {context}"
            )
        candidates = [Candidate(number=i, name=f"summary {i}", text=text) for i, text in enumerate(self.summaries)]
        fitted = fit_documents(self._model.protocol, candidates, document_template(self._model), free, 1)
        prompt = reading_prompt(self._model, fitted.documents, question)
        written = read_and_answer(self._model, prompt, max_new_tokens)
        return Prediction(
            text=written.text,
            seconds=time.perf_counter() - started,
            first_token_s=written.first_token - started,
            tokens_seen=len(prompt.ids),
            note="; ".join(fitted.notes),
        )

    def resident_bytes(self) -> int:
        """Bytes of the summaries that are read, and of those kept for further documents."""
        return sum(len(text.encode()) for text in [*self.summaries, *self._mapped])

    def _size(self, text: str) -> int:
        return len(self._model.protocol.plain_ids(text))

    def _groups(self, texts: Sequence[str]) -> list[str]:
        """Texts joined, in order, into groups of at most ``group_tokens`` tokens; longer ones are cut."""
        groups: list[str] = []
        for text in texts:
            spans = split_text(text, max_tokens=self._group_tokens, token_starts=self._model.protocol.plain_starts)
            for start, end in spans:
                joined = f"{groups[-1]}\n\n{text[start:end]}" if groups else ""
                if joined and self._size(joined) <= self._group_tokens:
                    groups[-1] = joined
                elif text[start:end].strip():
                    groups.append(text[start:end])
        return groups

    def _summarised(self, groups: Sequence[str]) -> list[str]:
        protocol, stops = self._model.protocol, stop_ids(self._model)
        summaries: list[str] = []
        for first in range(0, len(groups), self._batch):
            prompts = [
                Prompt(ids=self._summary_ids(self._model, group), stop_ids=stops, max_new_tokens=self._summary_tokens)
                for group in groups[first : first + self._batch]
            ]
            decoding = Decoding(self._model.lm, prompts)
            for _ in decoding.run():
                pass
            summaries += [protocol.decode(row.generated).strip() for row in decoding.rows]
        return [summary for summary in summaries if summary]

    @staticmethod
    def _summary_ids(model: MSAModel, text: str) -> list[int]:
        # as a text to read, whatever the checkpoint retrieves by: after a bare question one that is trained for the
        # memory writes the ids of documents
        protocol = model.protocol
        if not protocol.strings.reader_prompt:
            return transcript(model, [(1, text)], INSTRUCTION)[0]
        documents = protocol.reader_text([(1, text)])
        return protocol.template_ids(protocol.strings.reader_prompt, documents=documents, question=INSTRUCTION)
