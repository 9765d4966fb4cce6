"""The cut of a context into documents, which a test of memory needs and RULER does not have.

The rule: a context is taken as a row of sentences and lines; a needle, recognised by its template, is one of them
whatever it holds. A sentence longer than a whole document is taken word by word. The row is cut into n = ceil(tokens /
``document_tokens``) documents of about equal size: a sentence goes to the n-th that its middle falls into. So no needle
is ever cut, no document is a remnant, and the documents one after the other are the context again, white space between
them aside. Nothing in the rule looks at which needle is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from msa.errors import EvaluationError
from msa.evaluation.ruler.samples import Needle, Sample
from msa.evaluation.ruler.tasks import VtTask, find_task
from msa.evaluation.types import Question, QuestionSet

DOCUMENT_TOKENS = 512
PROMPT_NOTE = (
    "no way of answering is given the words that begin RULER's prompts or variable tracking's solved example, those "
    "that read the whole context included: no score here compares with published ones"
)
_BREAK = re.compile(r"\n\s*|(?<=[.!?])[\"')\]”’]*\s+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Piece:
    """One document of a context: its text, and where it begins and ends there."""

    start: int
    end: int
    text: str


def cut(
    context: str, needles: Sequence[Needle], count: Callable[[str], int], document_tokens: int = DOCUMENT_TOKENS
) -> list[Piece]:
    """Cut a context into documents by the rule above.

    Args:
        context: the text.
        needles: what must stay whole, in order.
        count: tokens of a text.
        document_tokens: about how many tokens a document is to have.

    Raises:
        ValueError: ``document_tokens`` below 1.
    """
    if document_tokens < 1:
        raise ValueError(f"expected document_tokens of at least 1, found {document_tokens}")
    known: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    for start, end in _sentences(context, needles, count, document_tokens):
        text = context[start:end]
        if text not in known:
            known[text] = count(text)
        spans.append((start, end, known[text]))
    total = sum(tokens for *_, tokens in spans)
    documents = max(1, math.ceil(total / document_tokens))
    bounds: list[list[int]] = []
    before, last = 0.0, -1
    for start, end, tokens in spans:
        number = min(documents - 1, int((before + tokens / 2) * documents / max(total, 1)))
        if number != last:
            bounds.append([start, end])
        bounds[-1][1] = end
        before, last = before + tokens, number
    pieces = [Piece(start, end, context[start:end].strip()) for start, end in bounds]
    return [piece for piece in pieces if piece.text]


def question_set(
    sample: Sample,
    count: Callable[[str], int],
    *,
    document_tokens: int = DOCUMENT_TOKENS,
    max_new_tokens: int | None = None,
    name: str = "",
) -> QuestionSet:
    """A sample as a memory of its own with one question.

    The question's metadata hold ``index``, ``size`` and ``length`` of the sample, ``depths``: where each needle asked
    for stands, in percent of the context's characters, ``depth``: their mean, and ``example``: a solved one (variable
    tracking), which no way of answering is given (docs/deviations.md).

    Args:
        sample: the sample.
        count: tokens of a text.
        document_tokens: about how many tokens a document is to have.
        max_new_tokens: tokens the task allows for the answer.
        name: of the set; empty: task, size and index.

    Raises:
        EvaluationError: a reference answer no needle holds; every file read here is checked for that before.
    """
    needles, asked = sample.needles(), sample.asked()
    check_answers(sample, asked)
    pieces = cut(sample.context, needles, count, document_tokens)
    name = name or f"{sample.task}-{sample.size or sample.length}-{sample.index:04d}"
    documents = {f"{number:06d}": piece.text for number, piece in enumerate(pieces)}
    holders = [_holder(pieces, needle) for needle in asked]
    depths = [round(100 * needle.start / len(sample.context), 2) for needle in asked]
    positives = tuple(dict.fromkeys(f"{number:06d}" for number in holders))
    question = Question(
        id=name,
        question=sample.question,
        answers=sample.answers,
        positives=positives,
        hops=tuple((document,) for document in positives) if isinstance(find_task(sample.task), VtTask) else (),
        task=sample.task,
        answer_prefix=sample.answer_prefix,
        max_new_tokens=max_new_tokens,
        metadata={
            "index": sample.index,
            "size": sample.size,
            "length": sample.length,
            "depths": depths,
            "depth": round(sum(depths) / len(depths), 2),
            "example": sample.example,
        },
    )
    cut_note = f"contexts are cut between sentences into documents of about {document_tokens} tokens; no needle is cut"
    notes = tuple(note for note in (sample.note, cut_note, PROMPT_NOTE) if note)
    return QuestionSet(name=name, documents=documents, questions=(question,), notes=notes)


def check_answers(sample: Sample, asked: Sequence[Needle]) -> None:
    """Refuse a sample whose context does not hold its answers.

    Raises:
        EvaluationError: a reference answer that none of the needles asked for holds.
    """
    held = {text for needle in asked for text in (needle.key, needle.value)}
    lost = [answer for answer in sample.answers if answer not in held]
    if lost or not sample.answers:
        what = f"the answer {lost[0]!r}, which no needle of its context holds" if lost else "no answers"
        raise EvaluationError(f"sample {sample.index} of {sample.task} has {what}")


def _holder(pieces: Sequence[Piece], needle: Needle) -> int:
    return next(number for number, piece in enumerate(pieces) if piece.start <= needle.start < piece.end)


def _sentences(
    context: str, needles: Sequence[Needle], count: Callable[[str], int], most: int
) -> Iterator[tuple[int, int]]:
    """Sentences, lines and needles as (start, end), together the whole context; words where a sentence is too long."""
    breaks = _outside((match.end() for match in _BREAK.finditer(context)), needles)
    starts = {needle.start for needle in needles}
    ends = sorted({0, len(context), *breaks, *starts, *(needle.end for needle in needles)})
    for start, end in pairwise(ends):
        # characters are at least as many as tokens for every tokenizer with a piece per byte or more
        if start in starts or len(context[start:end].encode()) <= most or count(context[start:end]) <= most:
            yield start, end
        else:
            spaces = (match.end() for match in _SPACE.finditer(context, start, end))
            yield from pairwise(sorted({start, end, *spaces}))


def _outside(places: Iterator[int], needles: Sequence[Needle]) -> Iterator[int]:
    """Those places that are not within a needle; both in order."""
    waiting = iter(needles)
    needle = next(waiting, None)
    for place in places:
        while needle and needle.end <= place:
            needle = next(waiting, None)
        if not (needle and needle.start < place):
            yield place
