"""What the backbone is given to read, and what it makes of it: the same for every alternative that hands it text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from msa.documents.formats import clean_text
from msa.evaluation.alternatives.patterns import FOREVER
from msa.evaluation.types import Question
from msa.generation.decoding import Decoding, Prompt
from msa.generation.quotation import QuotedAnswer
from msa.generation.text_stream import TextStream
from msa.model.bundle import MSAModel


@dataclass(frozen=True, kw_only=True)
class ReadingPrompt:
    """A prompt with documents and a question.

    Attributes:
        ids: its token ids.
        asked: ranges of the tokens that ask: the question, and all that follows the documents; the last one is open.
        opening: how the answer begins, in ``ids`` already, as it is shown.
        allowed: as of :class:`msa.generation.decoding.Prompt`: a checkpoint whose answers are held to what it read is
            held to it here too.
    """

    ids: list[int]
    asked: tuple[tuple[int, int], ...]
    opening: str = ""
    allowed: Callable[[Sequence[int]], list[int] | None] | None = None


def is_generative(model: MSAModel) -> bool:
    """Whether the checkpoint was trained to read texts as the engine inserts them after the question."""
    return model.protocol.strings.retrieval == "generative"


def reads_transcript(model: MSAModel) -> bool:
    """Whether it is given texts in its transcript: it was trained so, or knows no other prompt to read from."""
    return is_generative(model) or not model.protocol.strings.reader_prompt


def answer_lead(model: MSAModel, question: Question) -> str:
    """How the answer is to begin; empty for a checkpoint that was trained to begin in its own words.

    RULER's answer prefix helps an instruction-tuned backbone and hinders the other kind.
    """
    return "" if is_generative(model) else question.answer_prefix


def reading_prompt(
    model: MSAModel, documents: Sequence[tuple[int, str]], question: Question, title: str = ""
) -> ReadingPrompt:
    """Documents and question in the words the checkpoint knows best.

    A checkpoint that is not trained for the memory gets the ``reader_prompt`` of routed mode: documents first. One that
    is trained for it gets its transcript: question, ids, texts, request to answer, as if it had asked for these texts.

    Args:
        model: network and transcript.
        documents: (number, text) in the order they are to be read.
        question: what is asked; :func:`answer_lead` begins the answer.
        title: of the best document, for the transcript's ``reader_lead``; empty: no lead.
    """
    asked = clean_text(question.question)
    if not asked.strip():
        raise ValueError(f"question {question.id!r} is empty; ask something")
    protocol, strings = model.protocol, model.protocol.strings
    allowed = None
    if reads_transcript(model):
        ids, ranges = transcript(model, documents, asked)
        lead = ""
        if strings.constrain_answers == "quoted":
            request = protocol.template_ids(strings.answer_request, question=asked)
            allowed = QuotedAnswer(protocol, [protocol.expansion(documents).ids], request).allowed
    else:
        texts = protocol.reader_text(documents)
        encoded = protocol.encode_template(strings.reader_prompt, "documents", documents=texts, question=asked)
        ids = encoded.ids
        after = max((i + 1 for i, is_document in enumerate(encoded.marked) if is_document), default=0)
        ranges = ((after, FOREVER),)
        lead = strings.reader_lead.replace("{title}", title) if title else ""
    prescribed = answer_lead(model, question)
    return ReadingPrompt(
        ids=ids + protocol.plain_ids(prescribed or lead),
        asked=ranges,
        opening="" if prescribed else lead,
        allowed=allowed,
    )


def transcript(
    model: MSAModel, documents: Sequence[tuple[int, str]], question: str
) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """The engine's transcript with these documents inserted in one round; and the ranges that ask."""
    protocol, strings = model.protocol, model.protocol.strings
    start = len(protocol.prefix_ids)
    ids = [*protocol.prefix_ids, *protocol.question_turn(question).ids]
    end = len(ids)
    if documents:
        written = "".join(f"[{number}]" for number, _ in documents)
        ids += [*protocol.plain_ids(written), protocol.reference_end_id, *protocol.expansion(documents).ids]
    after = len(ids)
    ids += protocol.template_ids(strings.end_of_retrieve)
    ids += protocol.template_ids(strings.answer_request, question=question)
    return ids, ((start, end), (after, FOREVER))


def free_tokens(model: MSAModel, question: Question, max_new_tokens: int, title: str = "") -> int:
    """Tokens the model's context leaves for documents beside the question and its answer."""
    empty = len(reading_prompt(model, [], question, title).ids)
    reserve = 2 if reads_transcript(model) else 0  # the closing tokens that only follow inserted texts
    return model.lm.config.max_position_embeddings - max_new_tokens - empty - reserve


def document_template(model: MSAModel) -> str:
    """How one document is written into the prompt, for counting its tokens."""
    strings = model.protocol.strings
    if reads_transcript(model):
        return "[{id}]" + strings.expanded_document  # once where ids are written, once before the text
    return strings.reader_document


def stop_ids(model: MSAModel) -> frozenset[int]:
    """Tokens that end an answer."""
    eos: int | list[int] | None = model.lm.config.eos_token_id
    ends = [] if eos is None else [eos] if isinstance(eos, int) else eos
    return frozenset({model.protocol.answer_end_id, *ends})


@dataclass
class Written:
    """An answer as it was written: its text, and when the first token was there (``time.perf_counter``)."""

    text: str
    first_token: float


class Writing:
    """Tokens of an answer → its text without what a checkpoint hides of it, and the moment of the first one."""

    def __init__(self, model: MSAModel, opening: str = "") -> None:
        quotation_end = model.protocol.quotation_end_id if reads_transcript(model) else None
        self._quotes = quotation_end is not None
        self._stream = TextStream(model.protocol, (), model.protocol.strings.answer_lead, quotation_end)
        self._stream.text = opening
        self._stops = stop_ids(model)
        self._ended = False
        self._first_token: float | None = None

    def push(self, token: int) -> None:
        """Take in the next token."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        self._ended = token in self._stops
        self._stream.push(token)

    def finish(self) -> Written:
        """The whole answer."""
        self._stream.finish(cut=self._quotes and not self._ended)
        return Written(self._stream.text.strip(), self._first_token or time.perf_counter())


def read_and_answer(model: MSAModel, prompt: ReadingPrompt, max_new_tokens: int) -> Written:
    """Greedy answer of the backbone to a prompt, without memory: the decoding that routed mode uses."""
    stops = stop_ids(model)
    asked = Prompt(ids=prompt.ids, stop_ids=stops, max_new_tokens=max_new_tokens, allowed=prompt.allowed)
    decoding = Decoding(model.lm, [asked])
    writing = Writing(model, prompt.opening)
    for _, token in decoding.run():
        writing.push(token)
    return writing.finish()


@contextmanager
def counting_tokens(model: MSAModel) -> Iterator[Callable[[], int]]:
    """Count the tokens that pass through the network, except those decoded one by one.

    Yields:
        A function that gives the count so far: all tokens of passes of more than one token, padding included, since it
        is processed too.
    """
    seen, embedding = 0, model.lm.model.embed_tokens
    plain = embedding.forward

    def counted(input_ids: Tensor) -> Tensor:
        nonlocal seen
        if input_ids.shape[-1] > 1:
            seen += input_ids.numel()
        return plain(input_ids)

    # not by a hook, beside which single tokens would take the slow way
    embedding.forward = counted
    try:
        yield lambda: seen
    finally:
        del embedding.forward
