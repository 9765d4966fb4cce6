"""Generative mode (the paper's): the model writes the ids of documents, reads their texts, and answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from msa.engine.library_documents import LibraryDocuments
from msa.engine.session import Session
from msa.generation.budget import Fitted
from msa.generation.constraint import IdConstraint, IdTrie, id_pieces
from msa.generation.decoding import Decoding, Prompt
from msa.generation.interleave import InterleaveState, Phase
from msa.generation.options import AskOptions
from msa.generation.quotation import QuotedAnswer
from msa.generation.types import Event, Hit, RoundStarted
from msa.model.bundle import MSAModel
from msa.ops import Routing, clamped_temperature
from msa.routing.ranking import mean_over_layers


class GenerativeMode:
    """Retrieves by rounds of Memory Interleave, and answers from what was read and from latents.

    Args:
        model: network, tokenizer and transcript.
        documents: of the memory to answer from.
    """

    def __init__(self, model: MSAModel, documents: LibraryDocuments) -> None:
        self.model = model
        self.documents = documents
        self.library = documents.library
        self._id_pieces: dict[int, str] | None = None

    def retrieve(
        self, sessions: list[Session], options: AskOptions, cancelled: Callable[[], bool] | None
    ) -> Generator[tuple[int, Event] | Decoding, None, Decoding | None]:
        """Rounds of writing ids, all questions that still retrieve together; returns the last decoding.

        A decoding that is yielded waits for its next pass.
        """
        decoding: Decoding | None = None
        while active := [i for i, session in enumerate(sessions) if session.state.phase is Phase.RETRIEVE]:
            started = time.perf_counter()
            for i in active:
                yield i, RoundStarted(round=len(sessions[i].rounds) + 1)
            decoding = self._decoding(
                [self._id_prompt(sessions[i].state) for i in active],
                [sessions[i].state.taken for i in active],
                options,
                decoding,
            )
            for row, i in enumerate(active):
                decoding.rows[row].prompt.allowed = self._allowed_ids(sessions[i].state, options, decoding.routing, row)
            for drawn in decoding.steps(cancelled):
                if drawn is None:
                    yield decoding
            if cancelled is not None and cancelled():
                return decoding
            for row, i in enumerate(active):
                session, generated = sessions[i], decoding.rows[row].generated
                hits, fitted = self._read_ids(session.state, generated, decoding.routing, row)
                votes = self.documents.votes(decoding.routing, row)
                session.state.retrieved(generated, fitted)
                session.route_s += time.perf_counter() - started
                session.completion_tokens += len(generated)
                session.id_tokens += len(generated)
                yield from ((i, event) for event in session.end_round(hits, fitted, votes))
        return decoding

    def decode_answers(self, sessions: list[Session], options: AskOptions, last: Decoding | None) -> Decoding:
        """The answers, from the transcripts; a single one goes on from its cache where it can."""
        prompts = [answer_prompt(self.model, session.state.ids, session.state.routes, options) for session in sessions]
        constrain_answers = options.constrain_answers or self.model.protocol.strings.constrain_answers
        if constrain_answers == "quoted" and self.model.protocol.quotation_refusal_id is not None:
            for prompt, session in zip(prompts, sessions, strict=True):
                state = session.state
                prompt.allowed = QuotedAnswer(self.model.protocol, state.insertions, state.answer_request).allowed
        if len(sessions) == 1 and last is not None and sessions[0].state.continues:
            last.extend(sessions[0].state.answer_request, prompts[0])
            return last
        return self._decoding(prompts, [session.state.taken for session in sessions], options, last)

    def _id_prompt(self, state: InterleaveState) -> Prompt:
        protocol = self.model.protocol
        return Prompt(
            ids=state.ids,
            routes=state.routes,
            stop_ids=frozenset({protocol.reference_end_id, protocol.answer_end_id}),
            stop_when=state.is_enough,
            max_new_tokens=state.limits.max_id_tokens,
        )

    def _allowed_ids(
        self, state: InterleaveState, options: AskOptions, routing: dict[int, Routing], row: int
    ) -> Callable[[Sequence[int]], list[int] | dict[int, float]] | None:
        """What may be written next: existing ids, or only those that some router layer selected, weighed or not."""
        constrain_ids = options.constrain_ids or self.model.protocol.strings.constrain_ids
        if constrain_ids == "none":
            return None
        mask = self.library.live_mask(options.where).clone()
        if constrain_ids in ("selected", "weighed"):
            chosen = torch.cat([layer.doc_indices[row] for layer in routing.values()] or [mask.new_zeros(0).long()])
            selected = torch.zeros_like(mask)
            selected[chosen[chosen >= 0]] = True
            mask &= selected
        if self._id_pieces is None:
            self._id_pieces = id_pieces(self.model.tokenizer)
        protocol = self.model.protocol
        closing = [[protocol.reference_end_id], protocol.template_ids(protocol.strings.end_of_retrieve)]
        numbers = self.library.numbers[mask.cpu().numpy()]
        if constrain_ids != "weighed" or not routing:
            return IdConstraint(IdTrie(numbers), self._id_pieces, closing, state.taken).allowed
        scores = torch.stack([layer.doc_scores[row, mask] for layer in routing.values()]).float().mean(0)
        trie = IdTrie(numbers, (scores / clamped_temperature(self.model.lm.temperature)).cpu().numpy())
        return IdConstraint(trie, self._id_pieces, closing, state.taken).weighed

    def _read_ids(
        self, state: InterleaveState, generated: Sequence[int], routing: dict[int, Routing], row: int
    ) -> tuple[list[Hit], Fitted]:
        """The documents the model asked for, and what of their texts fits."""
        numbers = state.parse(generated)
        scores, chunks = mean_over_layers(routing, row)
        hits = self.documents.hits(self.documents.indices(numbers), scores)
        best = self.documents.best_chunks(hits, chunks)
        template = self.model.protocol.strings.expanded_document
        return hits, self.documents.fit(hits, best, template, state.free_tokens())

    def _decoding(
        self, prompts: list[Prompt], read: list[set[int]], options: AskOptions, last: Decoding | None
    ) -> Decoding:
        """Prefill of prompts that have read these document numbers; ``last``: of the round before."""
        doc_mask = self.library.live_mask(options.where)
        if self.model.protocol.strings.exclude_read and any(read):
            doc_mask = doc_mask.repeat(len(prompts), 1)
            for row, numbers in enumerate(read):
                doc_mask[row, self.documents.indices([*numbers])] = False
        return Decoding(
            self.model.lm,
            prompts,
            memory=self.library,
            prefix=self.model.prefix,
            doc_mask=doc_mask,
            earlier=None if last is None else last.lower,
        )


def answer_prompt(model: MSAModel, ids: list[int], routes: list[bool], options: AskOptions) -> Prompt:
    """A prompt after which the answer is written."""
    eos: Any = model.lm.config.eos_token_id
    ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return Prompt(
        ids=ids,
        routes=routes,
        stop_ids=frozenset({model.protocol.answer_end_id, *ends}),
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
    )
