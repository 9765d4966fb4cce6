"""Routed mode: the routers choose the documents, and the model answers from their original texts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from msa.engine.generative import GenerativeMode, answer_prompt
from msa.engine.library_documents import LibraryDocuments
from msa.engine.session import Session, is_in
from msa.generation.budget import Fitted
from msa.generation.decoding import Decoding
from msa.generation.interleave import InterleaveState
from msa.generation.options import AskOptions
from msa.generation.reread import question_likelihoods
from msa.generation.types import Event, Hit, RoundStarted, TextPiece
from msa.model.bundle import MSAModel

# measured with the default model on 16 conversations, half of them with a question that only they explain, half with
# one about something else: the right document comes first in all of them from 0.4 to 1, in 10 at 0
_WINDOW_WEIGHT = 0.5


class RoutedMode:
    """Retrieves in one routing pass; for a backbone that has not learnt to write ids or to attend to latents.

    Args:
        model: network, tokenizer and transcript.
        documents: of the memory to answer from.
        generative: answers where the checkpoint has no ``reader_prompt``: from its transcript, as it was trained to.
    """

    def __init__(self, model: MSAModel, documents: LibraryDocuments, generative: GenerativeMode) -> None:
        self.model = model
        self.documents = documents
        self.library = documents.library
        self._generative = generative

    def retrieve(self, sessions: list[Session], options: AskOptions) -> Iterator[tuple[int, Event]]:
        """The best documents by the mean of the layers' scores, the very best to be read."""
        for i, session in enumerate(sessions):
            yield i, RoundStarted(round=1)
            started = time.perf_counter()
            hits, fitted, votes = self._retrieved(session, options)
            session.route_s = time.perf_counter() - started
            if self._has_prompt:
                session.state.round_texts.append("")
                session.notes += fitted.notes
            else:
                session.state.given(fitted)
            if options.hybrid:
                session.notes.append("documents were ranked by the routers and by exact words together (hybrid)")
            yield from ((i, event) for event in session.end_round(hits, fitted, votes))
            if self._has_prompt:
                yield from ((i, piece) for piece in self._write_prompt(session, hits, fitted, options))

    def decode_answers(self, sessions: list[Session], options: AskOptions) -> Decoding:
        """Plain reading of the retrieved texts, or the transcript's own way."""
        if not self._has_prompt:
            return self._generative.decode_answers(sessions, options, None)
        prompts = [answer_prompt(self.model, session.state.ids, [], options) for session in sessions]
        return Decoding(self.model.lm, prompts)

    def free_tokens(self, state: InterleaveState, options: AskOptions) -> int:
        """Tokens free for documents in the prompt."""
        if not self._has_prompt:
            return state.free_tokens()
        prompt = self.model.protocol.strings.reader_prompt
        asked = self.model.protocol.after(options.context, state.question)
        written = len(self.model.protocol.template_ids(prompt, documents="", question=asked))
        written += len(self.model.protocol.plain_ids(options.answer_lead))
        return self.model.lm.config.max_position_embeddings - options.max_new_tokens - written

    @property
    def _has_prompt(self) -> bool:
        return bool(self.model.protocol.strings.reader_prompt)

    def _retrieved(self, session: Session, options: AskOptions) -> tuple[list[Hit], Fitted, dict[int, list[int]]]:
        """The best documents, what of the texts of the very best fits, and the layers' votes."""
        strings, protocol = self.model.protocol.strings, self.model.protocol
        num_read = strings.reader_documents if options.max_documents is None else options.max_documents
        num_reread = strings.reread_documents if options.reread_documents is None else options.reread_documents
        turn = protocol.question_turn(session.state.asked)
        with torch.inference_mode():
            routing = self.model.lm.route(
                torch.tensor([turn.ids], device=self.model.device),
                self.library,
                routing_mask=torch.tensor([turn.marked], device=self.model.device),
                prefix=self.model.prefix,
                doc_mask=self.library.live_mask(options.where),
            )
        num_kept = max(num_read, strings.source_documents)
        words = session.state.asked if options.hybrid else None
        hits, best = self.documents.best(routing, 0, max(num_kept, num_reread), words)
        order = self._reread(hits, num_reread, session)[:num_kept]
        hits, best = [hits[i] for i in order], [best[i] for i in order]
        template, free = strings.expanded_document, self.free_tokens(session.state, options)
        if self._has_prompt:
            leads = [strings.reader_lead.replace("{title}", hit.title) for hit in hits[:num_read]]
            template = strings.reader_document
            free -= max((len(protocol.plain_ids(lead)) for lead in leads), default=0)
        fitted = self.documents.fit(hits[:num_read], best[:num_read], template, free)
        return hits, fitted, self.documents.votes(routing, 0)

    def _reread(self, hits: list[Hit], num_reread: int, session: Session) -> list[int]:
        """Order of the hits once the first ``num_reread`` were read again; those after them keep their places."""
        texts = [hit.text for hit in hits[:num_reread]]
        if len(texts) < 2:
            return list(range(len(hits)))
        likelihoods = question_likelihoods(self.model.lm, self.model.protocol, texts, session.question)
        if session.state.window:
            window = question_likelihoods(self.model.lm, self.model.protocol, texts, session.state.window)
            likelihoods = likelihoods + _WINDOW_WEIGHT * window
        return [*likelihoods.argsort(descending=True, stable=True).tolist(), *range(len(texts), len(hits))]

    def _write_prompt(
        self, session: Session, hits: list[Hit], fitted: Fitted, options: AskOptions
    ) -> Iterator[TextPiece]:
        """The ``reader_prompt`` in place of the transcript, and how the answer opens."""
        protocol, lead = self.model.protocol, self.model.protocol.strings.reader_lead
        documents = protocol.reader_text(fitted.documents)
        question = protocol.after(session.state.context, session.question)
        session.state.ids = protocol.template_ids(
            protocol.strings.reader_prompt, documents=documents, question=question
        )
        session.state.ids += protocol.plain_ids(options.answer_lead)
        if lead and fitted.documents and not options.answer_lead:
            lead = lead.replace("{title}", next(hit.title for hit in hits if is_in(hit, fitted)))
            session.state.ids += protocol.plain_ids(lead)
            session.stream.text = lead
            yield TextPiece(text=lead)
