"""From the messages of a chat to the question that the engine takes, and the text before it.

One user message alone is asked as it is. A system message and earlier turns stand before it as plain text, the newest
that fit a budget of tokens; only the last tokens of the turns route with the question. Text is all they can become: the
engine encodes it without control tokens, and no line of a message can pass for the beginning of another turn, because
every line after a turn's first is indented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_LABELS = {"system": "Instructions", "developer": "Instructions", "user": "User", "assistant": "Assistant"}
INSTRUCTING = ("system", "developer")
_INDENT = "\n  "
_CUT = "… "
_CHARACTERS_PER_TOKEN = 32  # more than any text has: what is longer surely does not fit, and need not be counted


@dataclass(frozen=True)
class Turn:
    """One message: who says it and the text."""

    role: str
    text: str


@dataclass(frozen=True)
class Composed:
    """What the engine is asked.

    Attributes:
        question: the last message.
        context: what stands before it.
        routed_tokens: how many tokens at the end of ``context`` route with the question; none of the system message.
        notes: what was left out.
    """

    question: str
    context: str = ""
    routed_tokens: int = 0
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """For :meth:`msa.Memory.stream`."""
        return {"context": self.context, "routed_context_tokens": self.routed_tokens}


def compose(turns: Sequence[Turn], budget_tokens: int, count: Callable[[str], int], window_tokens: int = 0) -> Composed:
    """The question and what stands before it.

    Args:
        turns: all messages; the last one is the question.
        budget_tokens: what stands before the question may have so many; 0: nothing stands before it.
        count: tokens of a text.
        window_tokens: of the earlier turns so many tokens, the last ones, route with the question.
    """
    question = turns[-1].text
    system = [turn for turn in turns[:-1] if turn.role in INSTRUCTING and turn.text.strip()]
    earlier = [turn for turn in turns[:-1] if turn.role in ("user", "assistant") and turn.text.strip()]
    if not system and not earlier:
        return Composed(question)
    blocks: list[str] = []
    notes: list[str] = []
    for turn in system:
        line, cut = _fitted(_line(turn), budget_tokens, count, from_end=False)
        if cut and not notes:
            notes.append("the end of the system message was left out to fit what may stand before a question")
        if line:
            blocks.append(line)
            budget_tokens -= count(line)
    kept: list[str] = []
    shortened = False
    for turn in reversed(earlier):
        line = _line(turn)
        line, cut = _fitted(line, budget_tokens, count, from_end=True)
        shortened |= cut
        if cut and kept:  # only the newest turn is worth a part of it
            break
        kept += [line] if line else []
        if cut:
            break
        budget_tokens -= count(line)
    conversation = "\n".join(reversed(kept))
    if kept:
        blocks.append(f"Conversation so far:\n{conversation}")
    if shortened:
        notes.append("the beginning of the conversation was left out to fit what may stand before a question")
    routed = min(window_tokens, count(conversation)) if kept else 0
    return Composed(question, "\n\n".join(blocks), routed, tuple(notes))


def _line(turn: Turn) -> str:
    return f"{_LABELS[turn.role]}: {_INDENT.join(turn.text.strip().splitlines())}"


def _fitted(line: str, budget_tokens: int, count: Callable[[str], int], *, from_end: bool) -> tuple[str, bool]:
    """The line cut to the budget, at its end or (``from_end``) behind its label; and whether it was."""
    if len(line) <= _CHARACTERS_PER_TOKEN * budget_tokens and count(line) <= budget_tokens:
        return line, False
    if budget_tokens <= 0:
        return "", True
    label, _, text = line.partition(": ")
    most = _CHARACTERS_PER_TOKEN * budget_tokens
    text = text[-most:] if from_end else text[:most]
    low, high = 0, len(text)  # characters that surely fit, and that may
    while low < high:
        middle = (low + high + 1) // 2
        piece = text[-middle:] if from_end else text[:middle]
        if count(f"{label}: {_CUT}{piece}") <= budget_tokens:
            low = middle
        else:
            high = middle - 1
    if not low:
        return "", True
    return (f"{label}: {_CUT}{text[-low:]}" if from_end else f"{label}: {text[:low]} …"), True
