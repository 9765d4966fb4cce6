"""Constrained decoding of document ids: only ids that exist, spelt out token by token.

A list of ids is ``[4][17]`` followed by a closing token. The digits of the existing ids form a trie; it is kept as a
sorted array, where the numbers under a prefix are a few ranges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

_CHARACTERS = set("[]0123456789")


class IdTrie:
    """Existing document numbers, asked by decimal prefix.

    >>> trie = IdTrie([4, 17, 170])
    >>> trie.has("17"), trie.continues("1"), trie.continues("2"), trie.continues("4", excluded={4})
    (True, True, False, False)
    """

    def __init__(self, numbers: Iterable[int] | np.ndarray) -> None:
        given = numbers if isinstance(numbers, np.ndarray) else np.fromiter(numbers, dtype=np.int64)
        # quick where they ascend already, as a library's do: this is done anew for every round
        given = np.sort(given.astype(np.int64, copy=False), kind="stable")
        self._numbers = given[np.diff(given, prepend=-1) != 0]
        self._longest = len(str(self._numbers[-1])) if len(self._numbers) else 0

    def has(self, digits: str) -> bool:
        """Whether ``digits`` is one of the numbers."""
        return digits.isdecimal() and digits[0] != "0" and self._any(int(digits), int(digits) + 1, ())

    def continues(self, digits: str, excluded: Collection[int] = ()) -> bool:
        """Whether some number that is not ``excluded`` starts with ``digits`` (or is it)."""
        if digits.startswith("0"):
            return False
        if not digits:
            return self._any(0, 10**self._longest, excluded)
        low, high = int(digits), int(digits) + 1
        for _ in range(self._longest - len(digits) + 1):
            if self._any(low, high, excluded):
                return True
            low, high = low * 10, high * 10
        return False

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


def id_pieces(tokenizer: Any) -> dict[int, str]:
    """Vocabulary tokens made only of brackets and digits: token id → text."""
    return {index: token for token, index in tokenizer.get_vocab().items() if token and set(token) <= _CHARACTERS}
