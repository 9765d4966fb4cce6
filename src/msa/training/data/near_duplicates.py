"""Documents that say the same, as a whole or in one passage, through their word 5-grams.

Near-duplicates: Jaccard similarity of the 5-grams, candidates through MinHash bands.
Broder 1997, "On the resemblance and containment of documents". Every candidate is compared exactly, so nothing is taken
for a duplicate that is not; of real ones at the default threshold about three in 100,000 are missed.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

SHINGLE_WORDS = 5
BANDS, ROWS = 20, 4

_WORD = re.compile(r"\w+")


class NearDuplicates:
    """The documents seen so far.

    Args:
        threshold: similarity from which on two documents are the same.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
        self._threshold = threshold
        drawn = np.random.default_rng(0)
        self._factors = drawn.integers(1, 2**63, (BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
        self._offsets = drawn.integers(0, 2**63, (BANDS * ROWS, 1), dtype=np.uint64)
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._shingles: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Whether the document is new; only then it is kept for the comparisons that follow."""
        shingles = _shingles(text)
        # the upper bits of a product depend on all bits of the hash, the lower ones do not
        signature = ((self._factors * shingles + self._offsets) >> np.uint64(32)).min(axis=1)
        keys = [(band, signature[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]
        candidates = {document for key in keys for document in self._buckets.get(key, ())}
        if any(self._similar(shingles, self._shingles[document]) for document in candidates):
            return False
        for key in keys:
            self._buckets[key].append(len(self._shingles))
        self._shingles.append(shingles)
        return True

    def _similar(self, left: np.ndarray, right: np.ndarray) -> bool:
        # no similarity can be above the ratio of the sizes
        if min(len(left), len(right)) < self._threshold * max(len(left), len(right)):
            return False
        common = len(np.intersect1d(left, right, assume_unique=True))
        return common >= self._threshold * (len(left) + len(right) - common)


class Passages:
    """Finds the documents that a passage stands in.

    Args:
        documents: id → text.
        share: how much of a passage's 5-grams a document must have; below 1, as a name in the passage may be another.
    """

    def __init__(self, documents: Mapping[str, str], share: float = 0.75) -> None:
        self._share, self._ids = share, list(documents)
        shingles = [_shingles(text) for text in documents.values()]
        hashes = np.concatenate([np.empty(0, np.uint64), *shingles])
        owners = np.repeat(np.arange(len(shingles)), [len(of_one) for of_one in shingles])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def holders(self, passage: str) -> set[str]:
        """Ids of the documents; none for a passage of fewer than five words."""
        if len(normalised(passage)) < SHINGLE_WORDS:
            return set()
        shingles = _shingles(passage)
        first = np.searchsorted(self._hashes, shingles, "left")
        last = np.searchsorted(self._hashes, shingles, "right")
        found = [self._owners[start:stop] for start, stop in zip(first, last, strict=True)]
        documents, counts = np.unique(np.concatenate(found), return_counts=True)
        return {self._ids[document] for document in documents[counts >= self._share * len(shingles)]}


def normalised(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def _shingles(text: str) -> np.ndarray:
    """Hashes of the distinct word 5-grams; a shorter text is one shingle, and so is an empty one."""
    words = np.array([zlib.crc32(word.encode()) for word in normalised(text)], dtype=np.uint64)
    if len(words) < SHINGLE_WORDS:
        return np.array([zlib.crc32(words.tobytes())], dtype=np.uint64)
    mixed = np.zeros(len(words) - SHINGLE_WORDS + 1, dtype=np.uint64)
    for place in range(SHINGLE_WORDS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + words[place : place + len(mixed)]
    return np.unique(mixed)
