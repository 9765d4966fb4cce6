"""Keys, values and variables: drawn at random for one context, or numbered and all distinct for one large memory."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import string
import uuid
from collections.abc import Set
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Literal

from msa.errors import EvaluationError
from msa.evaluation.ruler.tasks import Kind
from msa.training.data.words import needle_words

logger = logging.getLogger(__name__)

# RULER does not pin wonderwords, so its lists are those of the day: 2.2.0 when RULER appeared, 3.0.1 since; four nouns
# were taken out between the two. SHA-256 of adjectivelist.txt and nounlist.txt
WORD_LISTS = {
    "2.2.0": (
        "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
        "0778f51872f2aa89e0745c0cc37471a13e3d2161a79fcfdc03b6390b10604a55",
    ),
    "3.0.1": (
        "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
        "8d88b3ebc2e2969ed92ebe49cdb0c8a87c2ad3b27493d7afdff608f2e51c5bc9",
    ),
}
_FIRST_NUMBER, _NUMBERS = 10**6, 9 * 10**6  # 7 digits
_FIRST_VALUE, _VALUES = 10_000, 89_999  # of variables; RULER's randint(10000, 99999) leaves out its end
_TRIES = 1000


@dataclass(frozen=True)
class Words:
    """Adjectives and nouns that keys are made of; the note says where they are not RULER's, and is empty otherwise."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not (self.adjectives and self.nouns):
            raise ValueError("keys need at least one adjective and one noun")

    def __len__(self) -> int:
        return len(self.adjectives) * len(self.nouns)

    def pair(self, number: int) -> str:
        """Pair ``number`` of ``len(self)``."""
        adjective, noun = divmod(number, len(self.nouns))
        return f"{self.adjectives[adjective]}-{self.nouns[noun]}"


def ruler_words(*, held_out: bool = False) -> Words:
    """The lists RULER makes its keys of (the wonderwords package), or those words of them kept out of training.

    Raises:
        EvaluationError: wonderwords is not installed.
    """
    try:
        assets = files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise EvaluationError(
            "RULER's keys need the wonderwords package: pip install 'memory-sparse-attention[eval]'"
        ) from error
    if held_out:
        adjectives, nouns = needle_words(held_out=True)
        return Words(tuple(adjectives), tuple(nouns), "keys are made only of words kept out of training")
    contents = [(assets / name).read_bytes() for name in ("adjectivelist.txt", "nounlist.txt")]
    found = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    note = ""
    if found not in WORD_LISTS.values():
        note = (
            f"keys come from wonderwords {version('wonderwords')}, whose lists differ from those RULER has been used "
            f"with (versions {', '.join(WORD_LISTS)})"
        )
        logger.warning("%s", note)
    lists = [tuple(sorted({line.rstrip() for line in content.decode().splitlines()} - {""})) for content in contents]
    return Words(lists[0], lists[1], note)


def random_token(kind: Kind, words: Words, rng: random.Random, taken: Set[str] = frozenset()) -> str:
    """A key or value that is not among ``taken``.

    Raises:
        ValueError: none was found; the lists of words are too short for so many keys.
    """
    for _ in range(_TRIES):
        if kind == "words":
            token = words.pair(rng.randrange(len(words)))
        elif kind == "numbers":
            token = str(_FIRST_NUMBER + rng.randrange(_NUMBERS))
        else:
            token = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        if token not in taken:
            return token
    raise ValueError(f"cannot draw another of {kind} beside the {len(taken):,} there are")


def random_variables(count: int, letters: int, rng: random.Random) -> list[str]:
    """Distinct names of capital letters."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)


def random_value(rng: random.Random) -> str:
    """A number of 5 digits that a variable is assigned."""
    return str(_FIRST_VALUE + rng.randrange(_VALUES))


class Numbered:
    """Tokens of one kind by their number: the same number gives the same token, two numbers never do.

    Words, numbers, variables and their values are shuffled by n → (a·n + b) mod N with a prime to N; a uuid is a digest
    of its number. Nothing is stored, so millions of keys cost nothing.

    Args:
        kind: ``words``, ``numbers``, ``uuids``; ``variables`` and ``assigned`` of variable tracking.
        words: for ``words``.
        seed: two seeds shuffle differently.
    """

    def __init__(self, kind: Kind | Literal["variables", "assigned"], words: Words, seed: str) -> None:
        sizes = {"words": len(words), "numbers": _NUMBERS, "variables": 26**5, "assigned": _VALUES, "uuids": 2**64}
        self.kind, self.words, self.seed, self.size = kind, words, seed, sizes[kind]
        rng = random.Random(f"{seed}/{kind}")
        self._start = rng.randrange(self.size)
        self._step = rng.randrange(1, self.size + 1)
        while math.gcd(self._step, self.size) != 1:
            self._step = rng.randrange(1, self.size + 1)

    def __getitem__(self, number: int) -> str:
        """Token ``number``; negative numbers count from the end.

        Raises:
            ValueError: there are not so many.
        """
        if not -self.size <= number < self.size:
            raise ValueError(f"cannot make more than {self.size:,} distinct {self.kind}; found number {number:,}")
        place = (self._step * number + self._start) % self.size
        if self.kind == "words":
            return self.words.pair(place)
        if self.kind == "numbers":
            return str(_FIRST_NUMBER + place)
        if self.kind == "assigned":
            return str(_FIRST_VALUE + place)
        if self.kind == "variables":
            return "".join(string.ascii_uppercase[place // 26**power % 26] for power in range(5))
        digest = hashlib.blake2b(f"{self.seed}/{place}".encode(), digest_size=16).digest()
        return str(uuid.UUID(bytes=digest, version=4))
