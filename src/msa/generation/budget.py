"""Fit retrieved documents into the model's context: the best are kept, long ones cut down around their best chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msa.documents import Protocol

_LEAST_TOKENS = 32  # a shorter remnant of a document is not worth inserting


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A document that wants to be inserted; ``best_chunk`` counts the document's own chunks from 0."""

    number: int
    name: str
    text: str
    best_chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What fits: documents ``(number, text)`` in the order given, and a note on each that was shortened or left out."""

    documents: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]


def fit_documents(
    protocol: Protocol, candidates: Sequence[Candidate], template: str, budget_tokens: int, chunk_size: int
) -> Fitted:
    """Choose what of the candidates, best first, fits into ``budget_tokens`` once written with ``template``.

    Args:
        protocol: counts tokens.
        candidates: best first.
        template: how a document is written, with ``{id}`` and ``{text}``.
        budget_tokens: tokens free for all of them.
        chunk_size: tokens per chunk, to find where the best chunk lies.
    """
    kept, notes, left_out = [], [], []
    remaining = budget_tokens
    for candidate in candidates:
        frame = len(protocol.template_ids(template, id=str(candidate.number), text=""))
        starts = protocol.plain_starts(candidate.text)
        room = remaining - frame - 2  # a text may tokenise a little differently inside its frame
        if len(starts) > room and room < _LEAST_TOKENS:
            left_out.append(candidate.name)
            continue
        text = candidate.text
        if len(starts) > room:
            text = _around(text, starts, (candidate.best_chunk + 0.5) * chunk_size, room)
            notes.append(
                f"{candidate.name} was shortened from {len(starts)} to {room} tokens around its best-matching passage "
                f"to fit the model's context"
            )
        kept.append((candidate.number, text))
        remaining -= len(protocol.template_ids(template, id=str(candidate.number), text=text))
    if left_out:
        notes.append(f"left out, because the model's context is full: {', '.join(left_out)}")
    return Fitted(documents=tuple(kept), notes=tuple(notes))


def _around(text: str, starts: Sequence[int], centre: float, num_tokens: int) -> str:
    """At most ``num_tokens`` tokens of ``text`` around token ``centre``."""
    first = int(min(max(centre - num_tokens / 2, 0), len(starts) - num_tokens))
    last = first + num_tokens
    while 0 < first < last and starts[first] == starts[first - 1]:  # not from inside a character: it would add tokens
        first += 1
    return text[starts[first] : starts[last] if last < len(starts) else len(text)]
