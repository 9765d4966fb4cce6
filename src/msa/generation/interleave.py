"""Memory Interleave as an explicit state machine (paper §3.3): write ids → read their text → route again → answer.

It holds no tensors: it says what to generate next and is told what was generated, so every path can be tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from msa.documents import Protocol
from msa.generation.budget import Fitted

_ID = re.compile(r"\[(\d{1,18})\]")


class Phase(Enum):
    """Where a question stands."""

    RETRIEVE = "retrieve"
    ANSWER = "answer"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one question.

    Attributes:
        max_rounds: rounds of retrieval; 0: answer at once.
        max_documents_per_round: ids taken from one round, in the order written.
        max_id_tokens: tokens the model may write in a round.
        max_new_tokens: tokens of the answer.
        context_tokens: of the model's context, without the positions of the selected documents; what is inserted must
            leave room for the answer.
    """

    max_rounds: int = 4
    max_documents_per_round: int = 16
    max_id_tokens: int = 128
    max_new_tokens: int = 256
    context_tokens: int = 32768

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise ValueError(f"max_rounds must be 0 or more, got {self.max_rounds}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass
class InterleaveState:
    """The transcript of one question and where it stands.

    Args:
        protocol: the checkpoint's transcript.
        question: the user's words.
        limits: bounds.
        exists: whether a document number is in the memory.
        answer_lead: how the answer begins, given to the model after the request, unless it quotes there first.
        context: what stands before the question. While documents are chosen, the transcript has only the end that
            routes with the question, so that they are those of this text alone; the answer is written after all of it.
        routed_context_tokens: length of that end.

    Attributes:
        window: the end of the context that routes.
        asked: what documents are chosen for: the question after the window.
        ids: tokens of the transcript after the prefix.
        routes: for each token whether it routes in the next prefill.
        round_numbers: documents inserted by each finished round.
        round_texts: what the model wrote in each finished round.
        insertions: tokens of the texts that were inserted by each round with new ones.
        answer_request: tokens that ask for the answer.
        continues: whether the answer may go on from the last round's cache: nothing new routes, and the transcript
            is exactly what the model has seen and written.
        notes: what was shortened or left out.
    """

    protocol: Protocol
    question: str
    limits: Limits
    exists: Callable[[int], bool]
    answer_lead: str = ""
    context: str = ""
    routed_context_tokens: int = 0
    phase: Phase = Phase.RETRIEVE
    ids: list[int] = field(default_factory=list)
    routes: list[bool] = field(default_factory=list)
    round_numbers: list[tuple[int, ...]] = field(default_factory=list)
    round_texts: list[str] = field(default_factory=list)
    insertions: list[list[int]] = field(default_factory=list)
    continues: bool = False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.window = self.protocol.end_of(self.context, self.routed_context_tokens)
        self.asked = self.protocol.after(self.window, self.question)
        turn = self.protocol.question_turn(self.asked)
        self.ids, self.routes = list(turn.ids), list(turn.marked)
        self._num_question = len(turn.ids)
        self._whole_turn = turn
        if self.context:
            self._whole_turn = self.protocol.question_turn(self.question, self.context, self.routed_context_tokens)
        self._closing = self.protocol.template_ids(self.protocol.strings.end_of_retrieve)
        self.answer_request = self.protocol.template_ids(self.protocol.strings.answer_request, question=self.question)
        if self.protocol.quotation_end_id is None:
            self.answer_request += self.protocol.plain_ids(self.answer_lead)
        if self.limits.max_rounds == 0:
            self._request_answer()

    @property
    def taken(self) -> set[int]:
        """Documents inserted so far."""
        return {number for numbers in self.round_numbers for number in numbers}

    def free_tokens(self) -> int:
        """Tokens that may still be inserted before the answer no longer fits the context."""
        closing = 1 + len(self._closing) + len(self.answer_request)  # 1: the insertion's own closing token
        reserved = len(self.protocol.prefix_ids) + closing + self.limits.max_id_tokens + self.limits.max_new_tokens
        reserved += len(self._whole_turn.ids) - self._num_question  # the rest of the context, before the answer
        return self.limits.context_tokens - reserved - len(self.ids)

    def parse(self, generated: Sequence[int]) -> list[int]:
        """New, existing document numbers in what the model wrote, in its order, at most as many as allowed."""
        taken, found = self.taken, []
        for match in _ID.finditer(self.protocol.decode_all(generated)):
            number = int(match[1])
            if number not in taken and number not in found and self.exists(number):
                found.append(number)
        return found[: self.limits.max_documents_per_round]

    def is_enough(self, generated: Sequence[int]) -> bool:
        """Whether the model wrote that it has enough."""
        return self.protocol.strings.end_of_retrieve in self.protocol.decode_all(generated)

    def retrieved(self, generated: Sequence[int], fitted: Fitted) -> None:
        """End a round that wrote ``generated``; ``fitted`` holds the texts of its new documents that fit."""
        if self.phase is not Phase.RETRIEVE:
            raise ValueError(f"a round cannot end in phase {self.phase.value}")
        self.notes += fitted.notes
        enough = self.is_enough(generated)
        self.round_texts.append(self.protocol.decode_all(generated))
        self.round_numbers.append(tuple(number for number, _ in fitted.documents))
        if fitted.documents:
            # written anew from what was accepted, so that malformed output does not stay in the transcript
            accepted = "".join(f"[{number}]" for number, _ in fitted.documents)
            written = [*self.protocol.plain_ids(accepted), self.protocol.reference_end_id]
            expansion = self.protocol.expansion(fitted.documents)
            self.insertions.append(expansion.ids)
            self.ids += written + expansion.ids
            earlier = len(self.ids) - self._num_question - len(expansion.ids)
            self.routes = self.routes[: self._num_question] + [False] * earlier + expansion.marked
            self.continues = False
            if enough or len(self.round_numbers) >= self.limits.max_rounds:
                self._request_answer()
        else:
            self.continues = list(generated) == self._closing and len(self._whole_turn.ids) == self._num_question
            self._request_answer()

    def given(self, fitted: Fitted) -> None:
        """End retrieval with texts that were chosen without the model, as though it had written their ids."""
        self.retrieved(self._closing, fitted)
        self.round_texts[-1] = ""

    def _request_answer(self) -> None:
        """The model has enough, or gets no more: ask for the answer."""
        added = [*self._closing, *self.answer_request]
        self.ids = [*self._whole_turn.ids, *self.ids[self._num_question :], *added]
        self.routes = [*self._whole_turn.marked, *self.routes[self._num_question :], *([False] * len(added))]
        self.phase = Phase.ANSWER

    def answered(self) -> None:
        """The answer is complete."""
        self.phase = Phase.DONE
