"""Constrained decoding of document ids: only ids that exist, spelt out token by token.

A list of ids is ``[4][17]`` followed by a closing token. The digits of the existing ids form a trie; it is kept as a
sorted array, where the numbers under a prefix are a few ranges.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

_CHARACTERS = set("[]0123456789")
_LEAST_SCORE = -30.0  # below the best one's: a document that no router layer likes can still be written


class IdTrie:
    """Existing document numbers, asked by decimal prefix.

    Args:
        numbers: 1 or more each.
        scores: of as many, the logarithms of what each weighs; None: they weigh the same.

    >>> trie = IdTrie([4, 17, 170])
    >>> trie.has("17"), trie.continues("1"), trie.continues("2"), trie.continues("4", excluded={4})
    (True, True, False, False)
    """

    def __init__(self, numbers: Iterable[int] | np.ndarray, scores: np.ndarray | None = None) -> None:
        given = numbers if isinstance(numbers, np.ndarray) else np.fromiter(numbers, dtype=np.int64)
        # quick where they ascend already, as a library's do: this is done anew for every round
        order = np.argsort(given.astype(np.int64, copy=False), kind="stable")
        order = order[np.diff(given[order], prepend=-1) != 0]
        self._numbers = given[order].astype(np.int64, copy=False)
        self._longest = len(str(self._numbers[-1])) if len(self._numbers) else 0
        self._scores = np.zeros(len(order)) if scores is None else scores[order].astype(np.float64)

    @cached_property
    def _sums(self) -> np.ndarray:
        """What all numbers before each weigh, and in the end what all of them do; only where weights are asked for."""
        best = self._scores.max(initial=-np.inf)
        return np.concatenate((np.zeros(1), np.exp(np.maximum(self._scores - best, _LEAST_SCORE)).cumsum()))

    def has(self, digits: str) -> bool:
        """Whether ``digits`` is one of the numbers."""
        return digits.isdecimal() and digits[0] != "0" and self._any(int(digits), int(digits) + 1, ())

    def continues(self, digits: str, excluded: Collection[int] = ()) -> bool:
        """Whether some number that is not ``excluded`` starts with ``digits`` (or is it)."""
        return any(self._any(low, high, excluded) for low, high in self._ranges(digits))

    def weight(self, digits: str, excluded: Collection[int] = ()) -> float:
        """What the numbers weigh that start with ``digits`` (or are it) and are not ``excluded``."""
        return sum(self._weight(low, high, excluded) for low, high in self._ranges(digits))

    def weight_of(self, number: int) -> float:
        """What one number weighs; 0: there is none."""
        return self._weight(number, number + 1, ())

    def _ranges(self, digits: str) -> Iterator[tuple[int, int]]:
        """Ranges of the numbers that start with ``digits``: one for each length."""
        if not digits:
            yield 0, 10**self._longest
        if not digits or digits.startswith("0"):
            return
        low, high = int(digits), int(digits) + 1
        for _ in range(self._longest - len(digits) + 1):
            yield low, high
            low, high = low * 10, high * 10

    def _weight(self, low: int, high: int, excluded: Collection[int]) -> float:
        first, last = np.searchsorted(self._numbers, (low, high))
        left_out = sum(self.weight_of(number) for number in excluded if low <= number < high)
        return max(float(self._sums[last] - self._sums[first]) - left_out, 0.0)

    def _any(self, low: int, high: int, excluded: Collection[int]) -> bool:
        count = int(np.searchsorted(self._numbers, high) - np.searchsorted(self._numbers, low))
        return count > sum(low <= number < high for number in excluded)


class IdConstraint:
    """Which tokens may come next while ids are written.

    Args:
        trie: the ids that exist (or that the router layers selected).
        pieces: tokens made of brackets and digits, from :func:`id_pieces`.
        closing: token sequences that end the list; allowed between ids.
        taken: numbers that must not be written again; each must be in the trie.
    """

    def __init__(
        self, trie: IdTrie, pieces: dict[int, str], closing: Sequence[Sequence[int]], taken: Iterable[int] = ()
    ) -> None:
        self._trie = trie
        self._pieces = pieces
        self._closing = [list(sequence) for sequence in closing]
        self._taken = {number for number in taken if trie.has(str(number))}

    def allowed(self, generated: Sequence[int]) -> list[int]:
        """Token ids that keep the list of ids well formed after the tokens generated so far; never empty."""
        begun = [
            (size, sequence[size])
            for sequence in self._closing
            for size in range(1, len(sequence))
            if list(generated[-size:]) == sequence[:size]
        ]
        longest = max((size for size, _ in begun), default=0)
        begun_tokens = [token for size, token in begun if size == longest]
        if begun and any(index not in self._pieces for index in generated[-longest:]):
            return list(dict.fromkeys(begun_tokens))
        text = "".join(self._pieces.get(index, "") for index in generated)
        tokens = [index for index, piece in self._pieces.items() if self._valid(text + piece)]
        if (not tokens and not begun) or not text or text.endswith("]"):
            tokens += [sequence[0] for sequence in self._closing]
        return list(dict.fromkeys(tokens + begun_tokens))

    def weighed(self, generated: Sequence[int]) -> dict[int, float]:
        """The same tokens, each with the logarithm of its share in what the ids weigh that could go on before it.

        Added to the logits, they make of the model's probabilities of ids a product with the documents' weights.
        """
        text = "".join(self._pieces.get(index, "") for index in generated)
        before = self._log_weight(text)
        return {
            index: self._log_weight(text + self._pieces[index]) - before if index in self._pieces else 0.0
            for index in self.allowed(generated)
        }

    def _log_weight(self, text: str) -> float:
        """Logarithm of what a list of ids weighs that begins so; each id's share is of those not yet written."""
        excluded, total = set(self._taken), 0.0
        *whole, rest = text.split("]")
        for item in whole:
            number = int(item[1:])
            total += _log(self._trie.weight_of(number)) - _log(self._trie.weight("", excluded))
            excluded.add(number)
        if rest[1:]:
            total += _log(self._trie.weight(rest[1:], excluded)) - _log(self._trie.weight("", excluded))
        return total

    def _valid(self, text: str) -> bool:
        """Whether ``text`` begins some list of distinct existing ids."""
        excluded = set(self._taken)
        *whole, rest = text.split("]")
        for item in whole:
            digits = item[1:]
            if not item.startswith("[") or not digits or not self._trie.has(digits) or int(digits) in excluded:
                return False
            excluded.add(int(digits))
        if not rest:
            return True
        digits = rest[1:]
        if not rest.startswith("[") or (digits and not digits.isdecimal()):
            return False
        return self._trie.continues(digits, excluded)


def _log(weight: float) -> float:
    return math.log(max(weight, math.exp(_LEAST_SCORE)))


def id_pieces(tokenizer: Any) -> dict[int, str]:
    """Vocabulary tokens made only of brackets and digits: token id → text."""
    return {index: token for token, index in tokenizer.get_vocab().items() if token and set(token) <= _CHARACTERS}
