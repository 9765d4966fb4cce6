"""Text that needles are hidden in: RULER's noise line, and running text ("essay") taken word by word."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from msa.documents.readers import read_documents
from msa.errors import DocumentError, EvaluationError
from msa.training.data.words import NOISE

NOISE_LINE = " ".join(NOISE)
SHIPPED = "nine State of the Union addresses"

_END = re.compile(r"[.!?][\"')\]”’]*$")
_OPEN = re.compile(r"[\"'(\[“‘]*[A-Z0-9]")
_ABBREVIATION = re.compile(
    r"[\"'(\[“‘]*(?:[A-Za-z]|[A-Za-z](?:\.[A-Za-z])+|(?i:mr|mrs|ms|dr|st|jr|sr|vs|cf|no|nos|gen|sen|rep|gov|hon|prof|etc))\.$"
)


@dataclass(frozen=True)
class Essay:
    """Running text, as RULER takes it: so many words from the beginning, begun again when they run out.

    Attributes:
        words: the text without its white space.
        name: where it comes from, for reports.
        note: what a reader of scores must know of it.
        ends: for each sentence, the number of words up to its end; made from the words.
    """

    words: tuple[str, ...]
    name: str
    note: str
    ends: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.words:
            raise EvaluationError(f"the haystack {self.name} holds no words; give a file with text")
        object.__setattr__(self, "ends", sentence_ends(self.words))

    def sentence(self, number: int) -> str:
        """Sentence ``number`` counted from 0; beyond the last one the text begins again."""
        number %= len(self.ends)
        return " ".join(self.words[self.ends[number - 1] if number else 0 : self.ends[number]])

    def sentences(self, num_words: int) -> list[str]:
        """The first ``num_words`` words as sentences; the last one may lack its end.

        >>> Essay(tuple("One two. Three. Four five six.".split()), "a test", "").sentences(8)
        ['One two.', 'Three.', 'Four five six.', 'One two.']
        """
        rounds, rest = divmod(num_words, len(self.words))
        whole = bisect_right(self.ends, rest)
        done = self.ends[whole - 1] if whole else 0
        every = [self.sentence(number) for number in range(len(self.ends))] if rounds else []
        found = every * rounds + [self.sentence(number) for number in range(whole)]
        return [*found, " ".join(self.words[done:rest])] if rest > done else found


def sentence_ends(words: Sequence[str]) -> tuple[int, ...]:
    """Where sentences end: after how many words, the last one being all of them.

    A sentence ends with a word that ends in ``.``, ``!`` or ``?``, perhaps in quotes or brackets, is no initial and no
    common abbreviation, and before one that begins like a sentence.

    >>> sentence_ends("Mr. Fox ran home. It rained!".split())
    (4, 6)
    """
    ends = [
        number
        for number, (word, following) in enumerate(pairwise(words), start=1)
        if _END.search(word) and _OPEN.match(following) and not _ABBREVIATION.match(word)
    ]
    return (*ends, len(words)) if words else ()


def load_essay(paths: Sequence[str | Path] = ()) -> Essay:
    """The text of an "essay" haystack: files of the user, or the free text that comes with the package.

    RULER takes Paul Graham's essays, which may not be passed on. Who has them gives RULER's own file,
    ``PaulGrahamEssays.json`` (an object with the field ``text``); any other text is a substitute, and the note that
    goes into every set says so.

    Args:
        paths: text files of any kind that documents are read from, or JSON files as above; none: the shipped text.

    Raises:
        EvaluationError: a file that cannot be read, or one without any words.
        TypeError: ``paths`` is a single path.
    """
    if isinstance(paths, str | Path):
        raise TypeError(f"expected a list of paths, found the single path {str(paths)!r}; put it into a list")
    if not paths:
        text = (files("msa") / "evaluation" / "data" / "addresses.txt").read_text(encoding="utf-8")
        note = (
            f"essay haystack: {SHIPPED}, a substitute for RULER's essays by Paul Graham; "
            "scores of the essay tasks do not compare with published ones"
        )
        return Essay(tuple(text.split()), SHIPPED, note)
    texts = [_text(Path(path)) for path in paths]
    words = tuple(word for text in texts for word in text.split())
    name = ", ".join(Path(path).name for path in paths)
    digest = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    note = (
        f"essay haystack: {name}, given by the user ({len(words):,} words, SHA-256 of their text {digest}); scores of "
        "the essay tasks compare with published ones only if these are Paul Graham's essays as RULER has them"
    )
    return Essay(words, name, note)


def _text(path: Path) -> str:
    if path.suffix.lower() != ".json":
        try:
            return "\n".join(document.text for document in read_documents([path]))
        except DocumentError as error:
            raise EvaluationError(f"the haystack cannot be read: {error}") from error
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"the haystack {path} cannot be read as JSON: {error}") from error
    if not (isinstance(content, dict) and isinstance(content.get("text"), str)):
        raise EvaluationError(f'the haystack {path} has no field \'text\'; expected RULER\'s {{"text": "..."}}')
    return str(content["text"])
