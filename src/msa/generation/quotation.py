"""Answers held to what was read: a refusal must be true, and an answer is what follows its quotation in a text.

For checkpoints that quote before they answer (``quotation_end``). As with ids, the model chooses among what is there.

Tokens are compared as they stand in the transcript. The end of some tokens *stands* in a text where at least three of
them, the last ones, follow each other there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msa.documents import Protocol

_LEAST = 3
_LONG = 4  # a word of so many tokens is the same wherever it stands; a shorter one together with its neighbour


class QuotedAnswer:
    """Which tokens may come next in an answer that begins with a quotation.

    * Quoting, what follows the end of the quotation wherever it stands in a text or in the question, so that it is made
      of spans of them; or the quotation's end. Anything, where its end stands nowhere.
    * But of a text only words that are said elsewhere, too, in the question or another place, and between such at most
      one other: a quotation is a chain that leads from the question to what is said once, the answer.
    * But not the word that makes a quotation a refusal (``quotation_refusal``), where all before it stands in a text.
    * Answering, what follows where the longest end of the quotation stands in a text, punctuation skipped; or the
      answer's end, where a word ends. Anything, where it stands nowhere, and behind a refusal.

    Args:
        protocol: with ``quotation_end`` and ``quotation_refusal``.
        texts: what was read, as tokens of the transcript, one sequence per insertion.
        question: the tokens that ask.
    """

    def __init__(self, protocol: Protocol, texts: Sequence[Sequence[int]], question: Sequence[int]) -> None:
        assert protocol.quotation_end_id is not None
        assert protocol.quotation_refusal_id is not None
        self._sources = [*map(list, texts), list(question)]
        self._question = len(texts)  # its place among the sources
        self._quotation_end = protocol.quotation_end_id
        self._refusal = protocol.quotation_refusal_id
        self._answer_end = protocol.answer_end_id
        self._punctuation = protocol.punctuation_ids
        self._num_ids = protocol.num_ids
        self._piece = protocol.piece
        self._shared = self._shared_places()
        self._starts: list[tuple[int, int]] | None = None  # (text, place) where the answer begins, once it is known

    def allowed(self, generated: Sequence[int]) -> list[int] | None:
        """Token ids that may follow the tokens generated so far; None: all may."""
        tokens = list(generated)
        if self._quotation_end not in tokens:
            return self._quoting(tokens)
        end = tokens.index(self._quotation_end)
        if self._refusal in tokens[:end]:
            return None
        if self._starts is None:
            self._starts = self._answers_after(tokens[:end])
        return self._answering(tokens[end + 1 :])

    def _quoting(self, quoted: list[int]) -> list[int] | None:
        places = self._places(quoted)
        is_read = any(size == len(quoted) and source != self._question for source, _, size in places)
        stands = [(source, place) for source, place, size in places if size >= _LEAST]
        following = {self._sources[source][place] for source, place in stands if self._links(source, place)}
        if stands and not following:
            return [self._quotation_end]
        if not following:
            return [index for index in range(self._num_ids) if index != self._refusal] if is_read else None
        following = following - {self._refusal} if is_read else following | {self._refusal}
        return [*following, self._quotation_end]

    def _links(self, source: int, place: int) -> bool:
        """Whether a quotation may take up a token: its word is said elsewhere, too, or is the only other since one."""
        if source == self._question:
            return True
        tokens, shared, words = self._sources[source], self._shared[source], 0
        while place >= 0 and not shared[place]:
            words += self._piece(tokens[place])[:1].isspace()
            place -= 1
        return words <= 1

    def _shared_places(self) -> list[list[bool]]:
        """For each token of each source whether its word is said elsewhere, too; see :data:`_LONG`."""
        words = [self._words(tokens) for tokens in self._sources]
        long = Counter(word for of_source in words for *_, word in of_source if len(word) >= _LONG)
        pairs = Counter(pair for of_source in words for pair in pairwise(word for *_, word in of_source))
        shared = []
        for of_source in words:
            said = [long[word] > 1 for *_, word in of_source]
            for index, pair in enumerate(pairwise(word for *_, word in of_source)):
                if pairs[pair] > 1:
                    said[index] = said[index + 1] = True
            shared.append([known for word, known in zip(of_source, said, strict=True) for _ in range(*word[:2])])
        return shared

    def _words(self, tokens: list[int]) -> list[tuple[int, int, tuple[int, ...]]]:
        """(start, end, its tokens without punctuation at the end) of every word; a space begins one."""
        starts = [place for place, token in enumerate(tokens) if place == 0 or self._piece(token)[:1].isspace()]
        words = []
        for start, end in pairwise([*starts, len(tokens)]):
            stop = end
            while stop > start + 1 and tokens[stop - 1] in self._punctuation:
                stop -= 1
            words.append((start, end, tuple(tokens[start:stop])))
        return words

    def _answering(self, answer: list[int]) -> list[int] | None:
        assert self._starts is not None
        if not self._starts:
            return None
        size, following, ends = len(answer), set(), False
        for source, start in self._starts:
            text = self._sources[source]
            if text[start : start + size] == answer and start + size < len(text):
                following.add(text[start + size])
                ends = ends or self._word_ends(source, start + size)
        return [*following, self._answer_end] if (answer and ends) or not following else [*following]

    def _word_ends(self, source: int, place: int) -> bool:
        """Whether a word ends before ``place``: a space, or the text's end, comes there or behind punctuation."""
        tokens, place = self._sources[source], self._skipped(source, place)
        return place == len(tokens) or not self._piece(tokens[place])[:1].isalnum()

    def _answers_after(self, quoted: list[int]) -> list[tuple[int, int]]:
        """Where the answer to a quotation may begin."""
        places = [(source, place, size) for source, place, size in self._places(quoted) if source != self._question]
        longest = max((size for _, _, size in places), default=0)
        if longest < _LEAST:
            return []
        return [(source, self._skipped(source, place)) for source, place, size in places if size == longest]

    def _skipped(self, source: int, place: int) -> int:
        """``place`` after the punctuation there."""
        tokens = self._sources[source]
        while place < len(tokens) and tokens[place] in self._punctuation:
            place += 1
        return place

    def _places(self, span: list[int]) -> list[tuple[int, int, int]]:
        """(source, place behind it, how many of the last tokens stand there) wherever the last token stands."""
        found = []
        for source, tokens in enumerate(self._sources):
            for place in range(len(tokens) - 1) if span else ():  # behind the last one nothing follows
                size = 0
                while size < min(len(span), place + 1) and tokens[place - size] == span[-1 - size]:
                    size += 1
                if size:
                    found.append((source, place + 1, size))
        return found
