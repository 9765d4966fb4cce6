"""The answering engine: questions over one memory, through routing, Memory Interleave and sparse generation.

Axes: B questions, N documents, C chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from msa.documents.batching import pad_left
from msa.documents.formats import clean_text
from msa.generation.budget import Candidate, Fitted, fit_documents
from msa.generation.constraint import IdConstraint, IdTrie, id_pieces
from msa.generation.decoding import Decoding, Prompt
from msa.generation.interleave import InterleaveState, Limits, Phase
from msa.generation.options import AskOptions
from msa.generation.reread import question_likelihoods
from msa.generation.text_stream import TextStream
from msa.generation.types import Answer, DocumentRetrieved, Done, Event, Hit, Round, RoundStarted, TextPiece, Usage
from msa.model.bundle import MSAModel
from msa.ops import Routing
from msa.routing import Library
from msa.routing.ranking import FUSED_RANKS, fused_scores, mean_over_layers


@dataclass
class _Session:
    """One question on its way."""

    question: str
    state: InterleaveState
    stream: TextStream
    started: float
    rounds: list[Round] = field(default_factory=list)
    sources: list[Hit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    route_s: float = 0.0
    first_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine:
    """Answers questions over one memory.

    Args:
        model: network, tokenizer and transcript.
        library: the memory to answer from.
    """

    def __init__(self, model: MSAModel, library: Library) -> None:
        self.model = model
        self.library = library
        self._index_of = {int(number): index for index, number in enumerate(library.numbers)}
        self._id_pieces: dict[int, str] | None = None

    @torch.inference_mode()
    def search(
        self,
        questions: Sequence[str],
        top_k: int = 16,
        where: Mapping[str, Any] | None = None,
        *,
        hybrid: bool = False,
    ) -> list[list[Hit]]:
        """The best documents of each question by the mean of the router layers' scores; nothing is generated.

        ``hybrid`` fuses their order with that of exact words.
        """
        turns = [self.model.protocol.question_turn(_checked(question)) for question in questions]
        ids, mask = pad_left([turn.ids for turn in turns], self.model.device)
        routes, _ = pad_left([[int(m) for m in turn.marked] for turn in turns], self.model.device)
        inputs: dict[str, Any] = {
            "attention_mask": mask,
            "routing_mask": routes,
            "memory": self.library,
            "prefix": self.model.prefix,
            "doc_mask": self.library.live_mask(where),
        }
        if self.model.protocol.strings.retrieval == "routed":
            routing = self.model.lm.route(ids, **inputs)
        else:
            routing = self.model.lm(ids, logits_to_keep=1, use_cache=False, **inputs).routing
        words = [question if hybrid else None for question in questions]
        return [self._best(routing, row, top_k, words[row])[0] for row in range(len(turns))]

    def stream(
        self, question: str, options: AskOptions | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[Event]:
        """Answer one question, event by event; closing the iterator stops between two tokens."""
        for _, event in self._run([question], options or AskOptions(), cancelled):
            yield event

    def ask(self, questions: Sequence[str], options: AskOptions | None = None) -> list[Answer]:
        """Answer a batch of questions; each gets the answer it would get alone."""
        answers: dict[int, Answer] = {}
        for index, event in self._run(questions, options or AskOptions(), None):
            if isinstance(event, Done):
                answers[index] = event.answer
        return [answers[index] for index in range(len(questions))]

    def _run(
        self, questions: Sequence[str], options: AskOptions, cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, Event]]:
        preferred = "routed" if options.hybrid else self.model.protocol.strings.retrieval
        retrieval = options.retrieval or preferred
        sessions = [self._open(_checked(question), options, retrieval) for question in questions]
        if retrieval == "routed":
            yield from self._retrieve_routed(sessions, options)
            decoding = self._decode_from_texts(sessions, options)
        else:
            last = yield from self._retrieve_generative(sessions, options, cancelled)
            if cancelled is not None and cancelled():
                yield from ((i, Done(answer=self._answer(session, "cancelled"))) for i, session in enumerate(sessions))
                return
            decoding = self._decode_answers(sessions, options, last)
        for index, session in enumerate(sessions):
            session.prompt_tokens = len(decoding.rows[index].prompt.ids)
        for index, token in decoding.run(cancelled):
            session = sessions[index]
            if session.first_token_s is None:
                session.first_token_s = time.perf_counter() - session.started
            session.completion_tokens += 1
            piece = session.stream.push(token)
            if piece:
                yield index, TextPiece(text=piece)
            if session.stream.stopped and decoding.rows[index].finish_reason is None:
                decoding.rows[index].finish_reason = "stop"
        for index, session in enumerate(sessions):
            piece = session.stream.finish()
            if piece:
                yield index, TextPiece(text=piece)
            yield index, Done(answer=self._answer(session, decoding.rows[index].finish_reason or "stop"))

    def _open(self, question: str, options: AskOptions, retrieval: str) -> _Session:
        config, protocol = self.model.lm.config, self.model.protocol
        limits = Limits(
            max_rounds=options.max_rounds,
            max_new_tokens=options.max_new_tokens,
            # the question starts after as many positions as documents may be selected
            context_tokens=config.max_position_embeddings - config.top_k_docs,
        )
        selectable = self.library.live_mask(options.where).cpu().numpy()

        def exists(number: int) -> bool:
            index = self._index_of.get(number)
            return index is not None and bool(selectable[index])

        state = InterleaveState(protocol, question, limits, exists)
        free = state.free_tokens() if retrieval == "generative" else self._free_to_read(question, options)
        if free < 0:
            raise ValueError(
                f"the question has {len(protocol.plain_ids(question))} tokens; with the answer it does not fit this "
                f"model's context of {config.max_position_embeddings} tokens. Shorten it or lower max_new_tokens"
            )
        stream = TextStream(protocol, options.stop, protocol.strings.answer_lead)
        return _Session(question, state, stream, time.perf_counter())

    def _retrieve_generative(
        self, sessions: list[_Session], options: AskOptions, cancelled: Callable[[], bool] | None
    ) -> Any:
        """Rounds of writing ids, all questions that still retrieve together; returns the last decoding."""
        decoding = None
        while active := [i for i, session in enumerate(sessions) if session.state.phase is Phase.RETRIEVE]:
            started = time.perf_counter()
            for i in active:
                yield i, RoundStarted(round=len(sessions[i].rounds) + 1)
            decoding = self._decoding(
                [self._id_prompt(sessions[i].state) for i in active], [sessions[i].state.taken for i in active], options
            )
            for row, i in enumerate(active):
                decoding.rows[row].prompt.allowed = self._allowed_ids(sessions[i].state, options, decoding.routing, row)
            for _ in decoding.run(cancelled):
                pass
            if cancelled is not None and cancelled():
                return decoding
            for row, i in enumerate(active):
                session, generated = sessions[i], decoding.rows[row].generated
                hits, fitted = self._read_ids(session.state, generated, decoding.routing, row)
                session.state.retrieved(generated, fitted)
                session.route_s += time.perf_counter() - started
                session.completion_tokens += len(generated)
                yield from ((i, event) for event in self._end_round(session, hits, fitted))
        return decoding

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
    ) -> Callable[[Sequence[int]], list[int]] | None:
        """What may be written next: existing ids, or only those that some router layer selected."""
        constrain_ids = options.constrain_ids or self.model.protocol.strings.constrain_ids
        if constrain_ids == "none":
            return None
        mask = self.library.live_mask(options.where).clone()
        if constrain_ids == "selected":
            chosen = torch.cat([layer.doc_indices[row] for layer in routing.values()] or [mask.new_zeros(0).long()])
            selected = torch.zeros_like(mask)
            selected[chosen[chosen >= 0]] = True
            mask &= selected
        if self._id_pieces is None:
            self._id_pieces = id_pieces(self.model.tokenizer)
        protocol = self.model.protocol
        closing = [[protocol.reference_end_id], protocol.template_ids(protocol.strings.end_of_retrieve)]
        trie = IdTrie(self.library.numbers[mask.cpu().numpy()])
        return IdConstraint(trie, self._id_pieces, closing, state.taken).allowed

    def _read_ids(
        self, state: InterleaveState, generated: Sequence[int], routing: dict[int, Routing], row: int
    ) -> tuple[list[Hit], Fitted]:
        """The documents the model asked for, and what of their texts fits."""
        numbers = state.parse(generated)
        scores, chunks = mean_over_layers(routing, row)
        hits = self._hits([self._index_of[number] for number in numbers], scores)
        best = [self._best_chunk(self._index_of[hit.number], chunks) for hit in hits]
        return hits, self._fit(hits, best, self.model.protocol.strings.expanded_document, state.free_tokens())

    def _retrieve_routed(self, sessions: list[_Session], options: AskOptions) -> Iterator[tuple[int, Event]]:
        """One routing pass; the best documents by the mean of the layers' scores, the very best to be read."""
        strings, protocol = self.model.protocol.strings, self.model.protocol
        num_read = strings.reader_documents if options.max_documents is None else options.max_documents
        num_reread = strings.reread_documents if options.reread_documents is None else options.reread_documents
        for i, session in enumerate(sessions):
            yield i, RoundStarted(round=1)
            started = time.perf_counter()
            turn = protocol.question_turn(session.question)
            with torch.inference_mode():
                routing = self.model.lm.route(
                    torch.tensor([turn.ids], device=self.model.device),
                    self.library,
                    routing_mask=torch.tensor([turn.marked], device=self.model.device),
                    prefix=self.model.prefix,
                    doc_mask=self.library.live_mask(options.where),
                )
            num_kept = max(num_read, strings.source_documents)
            words = session.question if options.hybrid else None
            hits, best = self._best(routing, 0, max(num_kept, num_reread), words)
            order = self._reread(hits, num_reread, session.question)[:num_kept]
            hits, best = [hits[i] for i in order], [best[i] for i in order]
            leads = [strings.reader_lead.replace("{title}", hit.title) for hit in hits[:num_read]]
            free = self._free_to_read(session.question, options)
            free -= max((len(protocol.plain_ids(lead)) for lead in leads), default=0)
            fitted = self._fit(hits[:num_read], best[:num_read], strings.reader_document, free)
            session.route_s = time.perf_counter() - started
            session.notes += fitted.notes
            if options.hybrid:
                session.notes.append("documents were ranked by the routers and by exact words together (hybrid)")
            session.state.round_texts.append("")
            yield from ((i, event) for event in self._end_round(session, hits, fitted))
            session.state.ids = self._reader_ids(session, fitted)
            if strings.reader_lead and fitted.documents:
                lead = strings.reader_lead.replace("{title}", next(hit.title for hit in hits if _is_in(hit, fitted)))
                session.state.ids += protocol.plain_ids(lead)
                session.stream.text = lead
                yield i, TextPiece(text=lead)

    def _reread(self, hits: list[Hit], num_reread: int, question: str) -> list[int]:
        """Order of the hits once the first ``num_reread`` were read again; those after them keep their places."""
        texts = [hit.text for hit in hits[:num_reread]]
        if len(texts) < 2:
            return list(range(len(hits)))
        likelihoods = question_likelihoods(self.model.lm, self.model.protocol, texts, question)
        return [*likelihoods.argsort(descending=True, stable=True).tolist(), *range(len(texts), len(hits))]

    def _free_to_read(self, question: str, options: AskOptions) -> int:
        """Tokens free for documents in routed mode's prompt."""
        prompt = self.model.protocol.strings.reader_prompt
        written = len(self.model.protocol.template_ids(prompt, documents="", question=question))
        return self.model.lm.config.max_position_embeddings - options.max_new_tokens - written

    def _reader_ids(self, session: _Session, fitted: Fitted) -> list[int]:
        strings = self.model.protocol.strings
        documents = "".join(
            strings.reader_document.replace("{id}", str(number)).replace("{text}", text)
            for number, text in fitted.documents
        )
        return self.model.protocol.template_ids(strings.reader_prompt, documents=documents, question=session.question)

    def _end_round(self, session: _Session, hits: list[Hit], fitted: Fitted) -> Iterator[Event]:
        """Note what a finished round brought."""
        hits = [replace(hit, read=_is_in(hit, fitted)) for hit in hits]
        session.rounds.append(
            Round(
                retrieved=[hit.id for hit in hits],
                numbers=[hit.number for hit in hits],
                generated=session.state.round_texts[-1],
            )
        )
        for hit in hits:
            session.sources.append(hit)
            yield DocumentRetrieved(round=len(session.rounds), hit=hit)

    def _answer_prompt(self, ids: list[int], routes: list[bool], options: AskOptions) -> Prompt:
        eos = self.model.lm.config.eos_token_id
        return Prompt(
            ids=ids,
            routes=routes,
            stop_ids=frozenset({self.model.protocol.answer_end_id, *_as_list(eos)}),
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling,
        )

    def _decode_answers(self, sessions: list[_Session], options: AskOptions, last: Decoding | None) -> Decoding:
        """Generative mode: the answers, from the transcripts; a single one goes on from its cache where it can."""
        if len(sessions) == 1 and last is not None and sessions[0].state.continues:
            last.extend(
                sessions[0].state.answer_request,
                self._answer_prompt(sessions[0].state.ids, sessions[0].state.routes, options),
            )
            return last
        prompts = [self._answer_prompt(session.state.ids, session.state.routes, options) for session in sessions]
        return self._decoding(prompts, [session.state.taken for session in sessions], options)

    def _decode_from_texts(self, sessions: list[_Session], options: AskOptions) -> Decoding:
        """Routed mode: plain reading of the retrieved texts; the backbone has not learnt to attend to latents."""
        return Decoding(self.model.lm, [self._answer_prompt(session.state.ids, [], options) for session in sessions])

    def _decoding(self, prompts: list[Prompt], read: list[set[int]], options: AskOptions) -> Decoding:
        """Prefill of prompts that have read these document numbers."""
        doc_mask = self.library.live_mask(options.where)
        if self.model.protocol.strings.exclude_read and any(read):
            doc_mask = doc_mask.repeat(len(prompts), 1)
            for row, numbers in enumerate(read):
                doc_mask[row, [self._index_of[number] for number in numbers]] = False
        return Decoding(
            self.model.lm,
            prompts,
            memory=self.library,
            prefix=self.model.prefix,
            doc_mask=doc_mask,
        )

    def _best(
        self, routing: dict[int, Routing], row: int, top_k: int, words: str | None = None
    ) -> tuple[list[Hit], list[int]]:
        """The ``top_k`` best documents of one row by the mean over layers, and the best chunk of each.

        ``words`` is a question whose exact words rank them too.
        """
        if not routing:
            return [], []
        scores, chunks = mean_over_layers(routing, row)
        if words is not None:
            found = (self._index_of.get(number) for number in self.library.matches(words, FUSED_RANKS))
            scores = fused_scores(scores, [index for index in found if index is not None])
        values, indices = scores.topk(min(top_k, scores.shape[0]))
        chosen = indices[values > float("-inf")].tolist()
        hits = self._hits(chosen, scores)
        if words is not None:
            hits = [replace(hit, ranking="hybrid") for hit in hits]
        return hits, [self._best_chunk(self._index_of[hit.number], chunks) for hit in hits]

    def _best_chunk(self, index: int, chunk_scores: Tensor) -> int:
        """Which of a document's own chunks scores best."""
        first, end = self.library.chunk_offsets[index : index + 2].tolist()
        return int(chunk_scores[first:end].argmax()) if end > first else 0

    def _hits(self, indices: Sequence[int], scores: Tensor) -> list[Hit]:
        numbers = [int(self.library.numbers[index]) for index in indices]
        hits = []
        for index, part in zip(indices, self.library.parts(numbers), strict=True):
            if part is None:  # deleted since this view of the memory was taken
                continue
            place = {}
            if part.num_parts > 1:
                place = {"part": part.index + 1, "parts": part.num_parts, "offset": part.part.start}
            hits.append(
                Hit(
                    id=part.document_id,
                    text=part.text,
                    score=float(scores[index]),
                    metadata={**part.metadata, **place},
                    number=part.part.number,
                )
            )
        return hits

    def _fit(self, hits: list[Hit], best: list[int], template: str, budget: int) -> Fitted:
        candidates = [
            Candidate(number=hit.number, name=hit.title, text=hit.text, best_chunk=chunk)
            for hit, chunk in zip(hits, best, strict=True)
        ]
        return fit_documents(self.model.protocol, candidates, template, budget, self.library.chunk_size)

    def _answer(self, session: _Session, finish_reason: str) -> Answer:
        session.state.answered()
        return Answer(
            text=session.stream.text.strip(),
            sources=session.sources,
            rounds=session.rounds,
            finish_reason=finish_reason,
            usage=Usage(prompt_tokens=session.prompt_tokens, completion_tokens=session.completion_tokens),
            timings={
                "route": session.route_s,
                "first_token": session.first_token_s or 0.0,
                "total": time.perf_counter() - session.started,
            },
            notes=list(dict.fromkeys([*session.notes, *session.state.notes])),
        )


def _is_in(hit: Hit, fitted: Fitted) -> bool:
    """Whether the hit's text is among those that the model is given."""
    return any(number == hit.number for number, _ in fitted.documents)


def _checked(question: str) -> str:
    question = clean_text(question)
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    return question


def _as_list(token: int | list[int] | None) -> list[int]:
    if token is None:
        return []
    return [token] if isinstance(token, int) else list(token)
