"""Sources of an answer in OpenAI's ``url_citation`` shape, and in full."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from msa.generation.types import Hit

_LEAST_CHARACTERS = 3  # of a title that is looked for in the text


def source_to_json(hit: Hit, url: str) -> dict[str, Any]:
    """A source with its text, which part of a document that is, and whether the model was given it."""
    return {
        "id": hit.id,
        "title": hit.title,
        "url": url,
        "score": round(hit.score, 6),
        "text": hit.text,
        "metadata": hit.metadata,
        **hit.place,
        "number": hit.number,
        "read": hit.read,
        "ranking": hit.ranking,
    }


def citations_of(content: str, sources: Sequence[Hit], url_of: Callable[[Hit], str]) -> list[dict[str, Any]]:
    """Where an answer rests on which document.

    A document that the model was given to read is cited where its title stands in the answer, first occurrence. Where
    the title does not stand in it, the document is cited for the whole answer; but where the whole answer stands in the
    text of some of them, only those are. Documents that were found but not read are not cited. Nothing is added to the
    answer, so the indices, in characters, always point into it.

    Args:
        content: the answer as the client has it.
        sources: of the answer, best first.
        url_of: the address of a document.
    """
    read: dict[str, Hit] = {}
    for hit in sources:
        if hit.read:
            read.setdefault(hit.id, hit)
    if not content:
        return []
    spans: dict[str, tuple[int, int]] = {}
    taken: list[tuple[int, int]] = []
    for hit in sorted(read.values(), key=lambda hit: -len(hit.title)):  # "The Moon Landing" before "Moon"
        span = _first_free(content, hit.title, taken)
        if span:
            taken.append(span)
            spans[hit.id] = span
    said = content.strip().rstrip(".").casefold()
    saying = {hit.id for hit in sources if hit.read and said and said in hit.text.casefold()} or read.keys()
    found = []
    for hit in read.values():
        if hit.id not in spans and hit.id not in saying:
            continue
        start, end = spans.get(hit.id, (0, len(content)))
        citation = {"start_index": start, "end_index": end, "title": hit.title, "url": url_of(hit)}
        found.append({"type": "url_citation", "url_citation": citation})
    return found


def _first_free(content: str, title: str, taken: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first place of a title, as whole words, that no longer title has taken."""
    if len(title) < _LEAST_CHARACTERS:
        return None
    for match in re.finditer(rf"(?<!\w){re.escape(title)}(?!\w)", content):
        if all(match.end() <= start or match.start() >= end for start, end in taken):
            return match.span()
    return None


def document_url(base: str, memory: str, hit: Hit) -> str:
    """The document's own address if its metadata name one, else where this server shows it."""
    url = hit.metadata.get("url")
    if isinstance(url, str) and re.match(r"https?://", url):
        return url
    return f"{base.rstrip('/')}/v1/memories/{quote(memory)}/documents/{quote(hit.id, safe='')}"
