"""Answers held to what was read: a refusal must be true, and an answer is what follows its quotation in a text.

For checkpoints that quote before they answer (``quotation_end``). As with ids, the model chooses among what is there.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from msa.documents import Protocol

_LEAST = 3  # tokens of a quotation's end that must stand in a text for the answer to go on from there


class QuotedAnswer:
    """Which tokens may come next in an answer that begins with a quotation.

    While the model quotes, all may, but for the word that makes the quotation a refusal (``quotation_refusal``) right
    behind words that stand in a text. The answer after a quotation goes on where the longest end of the quotation
    stands in a text, punctuation skipped, and may end after every token. Behind a refusal, and where less than three
    tokens of the quotation's end stand anywhere, all may.

    Args:
        protocol: with ``quotation_end`` and ``quotation_refusal``.
        texts: what was read, as tokens of the transcript, one sequence per insertion.
    """

    def __init__(self, protocol: Protocol, texts: Sequence[Sequence[int]]) -> None:
        assert protocol.quotation_end_id is not None
        self._texts = [list(text) for text in texts]
        self._quotation_end = protocol.quotation_end_id
        self._refusal = protocol.quotation_refusal_id
        self._answer_end = protocol.answer_end_id
        vocabulary = protocol.tokenizer.get_vocab()
        self._punctuation = {i for token, i in vocabulary.items() if token and set(token) <= set(string.punctuation)}
        self._all_but_refusal = [i for i in range(max(vocabulary.values()) + 1) if i != self._refusal]
        self._starts: list[tuple[int, int]] | None = None  # (text, place) where the answer begins, once it is known

    def allowed(self, generated: Sequence[int]) -> list[int] | None:
        """Token ids that may follow the tokens generated so far; None: all may."""
        if self._quotation_end not in generated:
            return self._all_but_refusal if generated and self._after(generated) else None
        end = list(generated).index(self._quotation_end)
        quoted, answer = list(generated[:end]), list(generated[end + 1 :])
        if self._refusal in quoted:
            return None
        if self._starts is None:
            self._starts = self._answers_after(quoted)
        if not self._starts:
            return None
        following = {
            self._texts[text][place + len(answer)]
            for text, place in self._starts
            if self._texts[text][place : place + len(answer)] == answer and place + len(answer) < len(self._texts[text])
        }
        return [*following, self._answer_end] if answer or not following else [*following]

    def _answers_after(self, quoted: Sequence[int]) -> list[tuple[int, int]]:
        """Where the answer to a quotation may begin."""
        for size in range(len(quoted), _LEAST - 1, -1):
            places = self._after(quoted[-size:])
            if places:
                return [(text, self._skipped(text, place)) for text, place in places]
        return []

    def _skipped(self, text: int, place: int) -> int:
        """``place`` after the punctuation there."""
        tokens = self._texts[text]
        while place < len(tokens) and tokens[place] in self._punctuation:
            place += 1
        return place

    def _after(self, span: Sequence[int]) -> list[tuple[int, int]]:
        """(text, place) behind each occurrence of the tokens."""
        wanted, size = list(span), len(span)
        return [
            (index, place + size)
            for index, text in enumerate(self._texts)
            for place in range(len(text) - size + 1)
            if text[place] == wanted[0] and text[place : place + size] == wanted
        ]
