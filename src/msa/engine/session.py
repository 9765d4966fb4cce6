"""One question on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from msa.generation.budget import Fitted
from msa.generation.interleave import InterleaveState
from msa.generation.text_stream import TextStream
from msa.generation.types import Answer, DocumentRetrieved, Event, Hit, Round, Usage


@dataclass
class Session:
    """A question, its transcript, and what has come of it so far."""

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
    id_tokens: int = 0

    def end_round(self, hits: list[Hit], fitted: Fitted, votes: dict[int, list[int]]) -> Iterator[Event]:
        """Note what a finished round brought, and what each router layer had selected."""
        hits = [replace(hit, read=is_in(hit, fitted)) for hit in hits]
        self.rounds.append(
            Round(
                retrieved=[hit.id for hit in hits],
                numbers=[hit.number for hit in hits],
                generated=self.state.round_texts[-1],
                votes=votes,
            )
        )
        for hit in hits:
            self.sources.append(hit)
            yield DocumentRetrieved(round=len(self.rounds), hit=hit)

    def answer(self, finish_reason: str) -> Answer:
        """The whole answer, which ends the session."""
        self.state.answered()
        return Answer(
            text=self.stream.text.strip(),
            sources=self.sources,
            rounds=self.rounds,
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                hidden_tokens=self.id_tokens + self.stream.quoted_tokens,
            ),
            timings={
                "route": self.route_s,
                "first_token": self.first_token_s or 0.0,
                "total": time.perf_counter() - self.started,
            },
            notes=list(dict.fromkeys([*self.notes, *self.state.notes])),
            quotation=self.stream.quotation,
        )


def is_in(hit: Hit, fitted: Fitted) -> bool:
    """Whether the hit's text is among those that the model is given."""
    return any(number == hit.number for number, _ in fitted.documents)
