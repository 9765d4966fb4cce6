"""Chat completions and their chunks as OpenAI's clients read them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msa.bank import ByteCounter
from msa.generation.types import Answer, DocumentRetrieved, Hit, RoundStarted, Usage
from msa.serving.citations import citations_of, document_url, source_to_json

DONE = "data: [DONE]\n\n"
PING = ": waiting\n\n"
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # JSON leaves these as they are


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer on its way.

    Attributes:
        model: as the client named it.
        memory: its name.
        base_url: of the server, as the client reached it.
        include_usage: whether a stream is to end with token counts.
        notes: what the server has to say beside the engine.
        fetched: counts the bytes of selected documents' content that were read for it.
        names: number → id of the documents that router layers selected for it.
    """

    model: str
    memory: str
    base_url: str
    include_usage: bool = False
    notes: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    fetched: ByteCounter = field(default_factory=ByteCounter)
    names: dict[int, str] = field(default_factory=dict)

    def _url(self, hit: Hit) -> str:
        return document_url(self.base_url, self.memory, hit)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _extras(self, answer: Answer) -> dict[str, Any]:
        """What only this server says: sources in full, rounds, times and notes."""
        return {
            "sources": [source_to_json(hit, self._url(hit)) for hit in answer.sources],
            "msa": {
                "memory": self.memory,
                "rounds": [
                    {"retrieved": found.retrieved, "numbers": found.numbers, "selected": found.votes}
                    for found in answer.rounds
                ],
                "votes": votes_for(answer, self.names),
                "timings": {name: round(seconds, 6) for name, seconds in answer.timings.items()},
                "fetched_bytes": self.fetched.total,
                "notes": [*self.notes, *answer.notes],
            },
        }

    def citations(self, content: str, sources: Sequence[Hit]) -> list[dict[str, Any]]:
        """Citations; see :func:`msa.serving.citations.citations_of`."""
        return citations_of(content, sources, self._url)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer in one piece."""
        message = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": self.citations(answer.text, answer.sources),
        }
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_to_json(answer.usage),
            **self._extras(answer),
        }

    def chunk(
        self, delta: Mapping[str, Any], finish_reason: str | None = None, extras: Mapping[str, Any] | None = None
    ) -> str:
        """One event of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if self.include_usage else {}  # as OpenAI's: counts come in an event of their own
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage, **(extras or {})})

    def opening(self) -> str:
        """The first event: who speaks."""
        return self.chunk({"role": "assistant", "content": ""})

    def retrieval(self, found: RoundStarted | DocumentRetrieved) -> str:
        """An event without text that tells how retrieval comes on, for clients that asked for it."""
        about: dict[str, Any] = {"round": found.round}
        if isinstance(found, DocumentRetrieved):
            about["retrieved"] = source_to_json(found.hit, self._url(found.hit))
        return self.chunk({}, extras={"msa": about})

    def closing(self, content: str, answer: Answer) -> str:
        """The last event with a choice; ``content`` is what the stream has said in all."""
        found = self.citations(content, answer.sources)
        return self.chunk({"annotations": found} if found else {}, answer.finish_reason, self._extras(answer))

    def usage(self, answer: Answer) -> str:
        """The event that a client gets when it asks for ``include_usage``."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage_to_json(answer.usage)})


def votes_for(answer: Answer, names: Mapping[int, str]) -> dict[str, list[str]]:
    """Per router layer the ids of the documents that it selected in any round, best first; ``names`` knows them."""
    votes: dict[str, dict[str, None]] = {}
    for found in answer.rounds:
        for layer, numbers in found.votes.items():
            chosen = votes.setdefault(str(layer), {})
            chosen |= dict.fromkeys(names[number] for number in numbers if number in names)
    return {layer: list(chosen) for layer, chosen in votes.items()}


def usage_to_json(usage: Usage) -> dict[str, Any]:
    """Token counts; what was written and is no part of the answer's text counts as reasoning, as OpenAI's does."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.hidden_tokens},
    }


def event(body: Mapping[str, Any]) -> str:
    """One server-sent event, on one line whatever a client takes for a line end."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(_LINE_ENDS)}\n\n"
