"""The answering engine: questions over one memory, through routing, Memory Interleave and sparse generation.

Axes: B questions, N documents, C chunks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa.documents.batching import pad_left
from msa.documents.formats import clean_text
from msa.engine.generative import GenerativeMode
from msa.engine.library_documents import LibraryDocuments
from msa.engine.routed import RoutedMode
from msa.engine.session import Session
from msa.errors import BankCorruptError, BankUnreadableError, ContextLengthError, NoDocumentsError
from msa.generation.decoding import Decoding
from msa.generation.interleave import InterleaveState, Limits
from msa.generation.options import AskOptions
from msa.generation.text_stream import TextStream
from msa.generation.types import Answer, Done, Event, Hit, TextPiece
from msa.model.bundle import MSAModel
from msa.routing import Library

_SHOWN_FILTER = 200  # characters of it in a message


class Engine:
    """Answers questions over one memory.

    Args:
        model: network, tokenizer and transcript.
        library: the memory to answer from.
    """

    def __init__(self, model: MSAModel, library: Library) -> None:
        self.model = model
        self.library = library
        self._documents = LibraryDocuments(library, model.protocol)
        self._generative = GenerativeMode(model, self._documents)
        self._routed = RoutedMode(model, self._documents, self._generative)

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

        Raises:
            ValueError: a question that is empty.
            TypeError: one that is no text, or a text in place of several questions.
            ContextLengthError: one that is longer than the model's context.
            BankFileError: no document can be found, because the latents are damaged or cannot be read.
        """
        questions = _checked(questions)
        if not questions:
            return []
        turns = [self.model.protocol.question_turn(question) for question in questions]
        limit = self.model.lm.config.question_tokens - len(self.model.protocol.prefix_ids)
        for turn in turns:
            if len(turn.ids) > limit:
                raise ContextLengthError(
                    f"the question has {len(turn.ids)} tokens; this model's context leaves {limit}. Shorten it"
                )
        ids, mask = pad_left([turn.ids for turn in turns], self.model.device)
        routes, _ = pad_left([[int(m) for m in turn.marked] for turn in turns], self.model.device)
        inputs: dict[str, Any] = {
            "attention_mask": mask,
            "routing_mask": routes,
            "memory": self.library,
            "prefix": self.model.prefix,
            "doc_mask": self._selectable(where),
        }
        if self.model.protocol.strings.retrieval == "routed":
            routing = self.model.lm.route(ids, **inputs)
        else:
            routing = self.model.lm(ids, logits_to_keep=1, use_cache=False, **inputs).routing
        words = [question if hybrid else None for question in questions]
        return [self._documents.best(routing, row, top_k, words[row])[0] for row in range(len(turns))]

    def stream(
        self, question: str, options: AskOptions | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[Event]:
        """Answer one question, event by event; closing the iterator stops between two tokens."""
        for item in self.steps(question, options, cancelled):
            if isinstance(item, Decoding):
                item.advance()
            else:
                yield item

    def steps(
        self, question: str, options: AskOptions | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Generator[Event | Decoding, None, None]:
        """As :meth:`stream`, but the passes between tokens are the caller's to make, for many questions together.

        Each decoding that is yielded waits for one, see :class:`msa.engine.Batcher`.
        """
        for item in self._run([question], options or AskOptions(), cancelled):
            yield item if isinstance(item, Decoding) else item[1]

    def ask(self, questions: Sequence[str], options: AskOptions | None = None) -> list[Answer]:
        """Answer a batch of questions; each gets the answer it would get alone, up to rounding in 16 bits.

        Raises:
            ValueError, TypeError, ContextLengthError, BankFileError: as for :meth:`search`.
            NoDocumentsError: there is no document to answer from.
            CheckpointError: in routed mode, a protocol whose reader's control tokens are not in the vocabulary.
        """
        answers: dict[int, Answer] = {}
        for item in self._run(questions, options or AskOptions(), None):
            if isinstance(item, Decoding):
                item.advance()
            elif isinstance(item[1], Done):
                answers[item[0]] = item[1].answer
        return [answers[index] for index in sorted(answers)]

    def _run(
        self, questions: Sequence[str], options: AskOptions, cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, Event] | Decoding]:
        preferred = "routed" if options.hybrid else self.model.protocol.strings.retrieval
        retrieval = options.retrieval or preferred
        questions = _checked(questions)
        if not questions:
            return
        selectable = self._selectable(options.where).cpu().numpy()
        if not selectable.any():
            named = json.dumps(dict(options.where or {}), ensure_ascii=False)[:_SHOWN_FILTER]
            raise NoDocumentsError(f"no documents found with this metadata: {named}. Change the filter or leave it out")
        if retrieval == "routed":
            self.model.protocol.check_reader()
        sessions = [self._open(question, options, retrieval, selectable) for question in questions]
        if retrieval == "routed":
            yield from self._routed.retrieve(sessions, options)
            decoding = self._routed.decode_answers(sessions, options)
        else:
            last = yield from self._generative.retrieve(sessions, options, cancelled)
            if cancelled is not None and cancelled():
                yield from ((i, Done(answer=session.answer("cancelled"))) for i, session in enumerate(sessions))
                return
            decoding = self._generative.decode_answers(sessions, options, last)
        for index, session in enumerate(sessions):
            session.prompt_tokens = len(decoding.rows[index].prompt.ids)
        for drawn in decoding.steps(cancelled):
            if drawn is None:
                yield decoding
                continue
            index, token = drawn
            session = sessions[index]
            if session.first_token_s is None:
                session.first_token_s = time.perf_counter() - session.started
            session.completion_tokens += 1
            piece = session.stream.push(token)
            if piece:
                yield index, TextPiece(text=piece)
            if session.stream.stopped:
                decoding.rows[index].finish_reason = "stop"
        for index, session in enumerate(sessions):
            reason = decoding.rows[index].finish_reason or "stop"
            piece = session.stream.finish(cut=reason != "stop")
            if piece:
                yield index, TextPiece(text=piece)
            yield index, Done(answer=session.answer(reason))

    def _selectable(self, where: Mapping[str, Any] | None) -> Tensor:
        """Bool ``[N]``: documents that may be selected.

        Raises:
            BankFileError: none could be, whatever the filter, because the latents are damaged or cannot be read.
            NoDocumentsError: there are none.
        """
        mask = self.library.live_mask(where)
        if bool(mask.any()) or (where and bool(self.library.live_mask(None).any())):
            return mask
        damage = self.library.damage
        if not damage:
            raise NoDocumentsError("the memory holds no documents; add some first")
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        damaged = any(isinstance(problem, BankCorruptError) for problem in damage)
        raise (BankCorruptError if damaged else BankUnreadableError)(
            f"no document can be routed to: {damage[0]}{more}. Restore the files from a copy, or delete the documents "
            "and add them again; msa verify names all that is damaged"
        )

    def _open(self, question: str, options: AskOptions, retrieval: str, selectable: np.ndarray) -> Session:
        config, protocol = self.model.lm.config, self.model.protocol
        limits = Limits(
            max_rounds=options.max_rounds or int(retrieval == "routed"),  # routed mode has one whatever is asked
            max_new_tokens=options.max_new_tokens,
            context_tokens=config.question_tokens,
        )

        def exists(number: int) -> bool:
            index = self._documents.index(number)
            return index is not None and bool(selectable[index])

        state = InterleaveState(
            protocol, question, limits, exists, options.answer_lead, options.context, options.routed_context_tokens
        )
        free = state.free_tokens() if retrieval == "generative" else self._routed.free_tokens(state, options)
        if free < 0:
            asked = len(protocol.plain_ids(protocol.after(options.context, question)))
            what = "the question and what stands before it have" if options.context else "the question has"
            raise ContextLengthError(
                f"{what} {asked} tokens; with the answer that does not fit this model's context of "
                f"{config.max_position_embeddings} tokens. Shorten it or lower max_new_tokens"
            )
        hidden = "" if options.answer_lead else protocol.strings.answer_lead
        transcript = retrieval == "generative" or not protocol.strings.reader_prompt
        quotation_end = protocol.quotation_end_id if transcript else None
        stream = TextStream(protocol, options.stop, hidden, quotation_end)
        return Session(question, state, stream, time.perf_counter())


def _checked(questions: Sequence[str]) -> list[str]:
    """The questions as the model can read them."""
    if isinstance(questions, str):
        raise TypeError("expected several questions, as in ask_many(['Why?']); got one string")
    cleaned = []
    for question in questions:
        if not isinstance(question, str):
            raise TypeError(f"a question is a text, got {question!r} of type {type(question).__name__}")
        cleaned.append(clean_text(question))
        if not cleaned[-1].strip():
            raise ValueError("the question is empty; ask something")
    return cleaned
