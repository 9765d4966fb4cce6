"""What answering returns and the events it streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A document found in the memory.

    Attributes:
        id: the user's id.
        text: the original text; of a long document the part that was found.
        score: mean over router layers of the document's routing score; where ``ranking`` is ``hybrid``, the fused one.
        metadata: the user's metadata.
        number: the document's number inside the memory, as the model writes it.
        read: whether the model was given the text to answer from.
        ranking: what ordered the documents: ``memory`` (the routers alone) or ``hybrid`` (fused with exact words).
        part: which part of the document was found, from 1; parts: into how many it was cut: 1 unless it is long.
        offset: where the part begins in the document's text, in characters.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    read: bool = False
    ranking: str = "memory"
    part: int = 1
    parts: int = 1
    offset: int = 0

    @property
    def place(self) -> dict[str, int]:
        """Which part of the document it is, as it stands in JSON."""
        return {"part": self.part, "parts": self.parts, "offset": self.offset}

    @property
    def title(self) -> str:
        """Title, else path, else id: what to call the document."""
        return str(self.metadata.get("title") or self.metadata.get("path") or self.id)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of Memory Interleave.

    Attributes:
        retrieved: the users' ids of the documents this round added, best first.
        numbers: their numbers inside the memory.
        generated: what the model wrote; empty in routed mode.
        votes: router layer → numbers of the documents that it selected, best first.
    """

    retrieved: list[str]
    numbers: list[int]
    generated: str = ""
    votes: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one question.

    Attributes:
        prompt_tokens: of the last prefill.
        completion_tokens: written in all.
        hidden_tokens: of these, the ids of documents and what was quoted of their texts before the answer.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    hidden_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Sum of both."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question.

    Attributes:
        text: what the model wrote.
        sources: the documents retrieved, best first; ``read`` tells which texts the model was given.
        rounds: the rounds of Memory Interleave.
        finish_reason: ``stop``, ``length`` or ``cancelled``.
        usage: token counts.
        timings: seconds: ``route`` (prefills that routed and writing ids), ``first_token``, ``total``.
        notes: what the reader should know, such as documents shortened to fit the model's context.
        quotation: what the model quoted of the texts before it answered, where its checkpoint does so.
    """

    text: str
    sources: list[Hit]
    rounds: list[Round]
    finish_reason: str
    usage: Usage
    timings: dict[str, float]
    notes: list[str] = field(default_factory=list)
    quotation: str = ""


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """Event: a round of retrieval begins; rounds count from 1."""

    round: int


@dataclass(frozen=True, kw_only=True)
class DocumentRetrieved:
    """Event: a document was retrieved; ``hit.read`` tells whether the model is given its text."""

    round: int
    hit: Hit


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Event: the next piece of the answer's text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """Event: the last one; carries the whole answer."""

    answer: Answer


Event = RoundStarted | DocumentRetrieved | TextPiece | Done
