"""Texts cut into parts and tokenised, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msa.bank import Part
from msa.documents import Protocol
from msa.documents.splitting import split_text

_CHARACTERS_PER_TOKEN = 4  # of English; a text of more for each token of the limit is not tried as a whole

Parts = tuple[Part, ...]


class Pieces:
    """Cuts and tokenises texts, and remembers both: asked again, even for other numbers, it does only what is new."""

    def __init__(self, protocol: Protocol, chunk_size: int) -> None:
        self._protocol, self._chunk_size = protocol, chunk_size
        self._limit = protocol.strings.max_document_tokens
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._ids: dict[tuple[int, str], list[int]] = {}

    def of(self, texts: Sequence[str], number: int) -> list[tuple[Parts, list[list[int]]]]:
        """For each text its parts, numbered from ``number`` through all texts, and the token ids each is encoded as."""
        self._cut(text for text in texts if len(text) > _CHARACTERS_PER_TOKEN * self._limit)
        self._tokenise(texts, number)
        # what fits together with its number fits alone: most texts are tokenised once
        long, each = [], number
        for text in texts:
            if text not in self._spans and len(self._ids[each, text]) > self._limit:
                long.append(text)
            each += len(self._spans.get(text, (text,)))
        self._cut(long)
        if long:  # the texts after them have other numbers
            self._tokenise(texts, number)
        found = []
        for text in texts:
            parts, sequences = [], []
            for start, end in self._spans.get(text, [(0, len(text))]):
                ids = self._ids[number, text[start:end]]
                chunks = -(-len(ids) // self._chunk_size)
                parts.append(Part(number=number, start=start, end=end, num_tokens=len(ids), num_chunks=chunks))
                sequences.append(ids)
                number += 1
            found.append((tuple(parts), sequences))
        return found

    def _cut(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._spans]
        whole = dict(zip(new, self._protocol.plain_starts_many(new), strict=True))

        def starts(text: str) -> list[int]:
            return whole[text] if text in whole else self._protocol.plain_starts(text)

        for text in new:
            self._spans[text] = split_text(text, max_tokens=self._limit, token_starts=starts)

    def _numbered(self, texts: Sequence[str], number: int) -> list[tuple[int, str]]:
        """The parts of the texts and their numbers, as far as it is known how they are cut."""
        pieces = (text[start:end] for text in texts for start, end in self._spans.get(text, [(0, len(text))]))
        return [*enumerate(pieces, start=number)]

    def _tokenise(self, texts: Sequence[str], number: int) -> None:
        asked = [each for each in self._numbered(texts, number) if each not in self._ids]
        if asked:
            numbers, pieces = zip(*asked, strict=True)
            self._ids |= zip(asked, self._protocol.document_ids_many(numbers, pieces), strict=True)
