"""Entries of FOLDOC, the Free On-line Dictionary of Computing, http://foldoc.org/, editor Denis Howe.

Input: Debian's ``dict-foldoc`` (a dictd database: an index of offsets and a gzip-readable text).

Licence: GNU Free Documentation License 1.1 or later, without invariant sections or cover texts; a data set that holds
these texts is to be passed on under it. Debian's own few entries are Copyright Joey Hess and Robert D. Hilliard.
"""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from msa.errors import TrainingDataError
from msa.training.data.sources.entry import Question, SourceEntry
from msa.training.data.sources.text import (
    DOCUMENT_CHARACTERS,
    DOCUMENT_WORDS,
    anonymous_sentences,
    cut,
    find_files,
    first_sentence,
    from_package,
)

INDEX = "foldoc.index"
DICTIONARY = "foldoc.dict.dz"
NAME_QUESTIONS = (
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "What does {} mean in computing?",
    "{}",
)
MINIMUM_CHARACTERS = 120
LONGEST_HEADWORD = 50

_DIGITS = {
    letter: value for value, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}


class Foldoc:
    """Dictionary entries as documents; headwords and sentences without them as questions.

    Args:
        folder: where ``foldoc.index`` and ``foldoc.dict.dz`` lie, or a folder above.
        words, characters: size of a document, at most.
    """

    name = "foldoc"
    licence = "GNU Free Documentation License 1.1 or later (The Free On-line Dictionary of Computing, Denis Howe)"

    def __init__(self, folder: Path, words: int = DOCUMENT_WORDS, characters: int = DOCUMENT_CHARACTERS) -> None:
        self._folder, self._words, self._characters = folder, words, characters
        self.settings = {"words": words, "characters": characters}

    def files(self) -> dict[str, Path]:
        """The index and the dictionary."""
        return find_files(self._folder, (INDEX, DICTIONARY), from_package("dict-foldoc"))

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """Every entry that defines something."""
        files = self.files()
        entries = list(_entries(files[INDEX], files[DICTIONARY]))
        rng.shuffle(entries)
        for headword, definition in entries:
            text = cut(f"{headword}. {definition}", self._words, self._characters)
            questions = tuple(_questions(headword, text, rng))
            yield SourceEntry(id=f"foldoc/{headword}", name=headword, text=text, questions=questions)


def _number(digits: str) -> int:
    """A number of a dictd index: base 64, most significant digit first."""
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS[digit]
    return value


def _entries(index: Path, dictionary: Path) -> Iterator[tuple[str, str]]:
    """(headword, definition), each headword once."""
    again = f"to get it again: {from_package('dict-foldoc')}"
    try:
        data = gzip.decompress(dictionary.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingDataError(f"{dictionary} is not a dictd database (gzip): {error}; {again}") from error
    places: set[tuple[int, int]] = set()
    for number, line in enumerate(index.read_text(encoding="utf-8", errors="ignore").splitlines(), 1):
        try:
            _, start, length = line.split("\t")
            places.add((_number(start), _number(length)))
        except (ValueError, KeyError) as error:
            raise TrainingDataError(f"{index}:{number}: not 'headword<tab>offset<tab>length'; {again}") from error
        if max(places, default=(0, 0))[0] > len(data):
            raise TrainingDataError(f"{index}:{number}: points behind the end of {dictionary}; {again}")
    seen: set[str] = set()
    for start_of, size in sorted(places):
        headword, definition = _parse(data[start_of : start_of + size].decode("utf-8", "ignore"))
        usable = headword and not headword.startswith("00-") and len(headword) <= LONGEST_HEADWORD
        if usable and len(definition) >= MINIMUM_CHARACTERS and headword.lower() not in seen:
            seen.add(headword.lower())
            yield headword, definition


def _parse(entry: str) -> tuple[str, str]:
    """First headword and definition without markup: subject, cross-references, notes and dates."""
    lines = entry.strip("\n").split("\n")
    body = [line for line in lines[1:] if line.startswith((" ", "\t", "{"))]
    text = " ".join(" ".join(body).split())
    text = re.sub(r"\{([^{}]*?)\s*\([^{}]*\)\}", r"\1", text)
    text = re.sub(r"[{}]|\(\d{4}-\d\d-\d\d\)", "", text)
    text = re.sub(r"^\s*(\d+\. )?<[^>]*>\s*", "", text).strip()
    text = re.sub(r"(\s*\[[^\]]{0,60}\])+$", "", text)
    return lines[0].split("%%%")[0].strip(), " ".join(text.split())


def _questions(headword: str, text: str, rng: random.Random) -> Iterator[Question]:
    definition = text.removeprefix(f"{headword}. ")
    answer = first_sentence(definition)
    for template in rng.sample(NAME_QUESTIONS, 2):
        query = template.format(headword)
        yield Question(kind="name", query=query, answer=None if template == "{}" else answer)
    for sentence in anonymous_sentences(definition, (headword,), 3, rng):
        yield Question(kind="sentence", query=sentence)
