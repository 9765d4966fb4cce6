"""Cutting texts, taking sentences out of them, and finding a source's files."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from msa.errors import TrainingDataError

DOCUMENT_WORDS = 90
DOCUMENT_CHARACTERS = 480
QUERY_WORDS = 40
QUERY_CHARACTERS = 220

# a full stop after a single capital belongs to a name: "developed by P. Rovner"
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.!?](?=\s+[A-Z\[]|$)")
_SENTENCE_BORDER = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!i\.e\.)(?<!e\.g\.)\s+(?=[A-Z\[])")
_POINTER = re.compile(r"(see|compare|note|e\.g)\b", re.IGNORECASE)


def cut(text: str, words: int = DOCUMENT_WORDS, characters: int = DOCUMENT_CHARACTERS) -> str:
    """The beginning of a text, white space made single.

    The cut is at the end of a sentence if one lies in the second half, otherwise between two words; only a word that is
    itself too long is broken.
    """
    split = text.split()
    whole, short = " ".join(split), " ".join(split[:words])
    if len(short) > characters:
        short = short[: characters + 1].rsplit(" ", 1)[0][:characters]
    if short == whole:
        return short
    end = max((match.end() for match in _SENTENCE_END.finditer(short)), default=0)
    return short[:end] if 2 * end >= len(short) else short


def sentences(text: str, minimum: int = 8) -> list[str]:
    """Complete sentences of at least ``minimum`` words that say something: no lists, no pointers to other entries."""
    found = [" ".join(sentence.split()) for sentence in _SENTENCE_BORDER.split(text)]
    return [
        sentence
        for sentence in found
        if sentence.endswith((".", "!", "?"))
        and len(sentence.split()) >= minimum
        and not _POINTER.match(sentence)
        and " * " not in sentence
    ]


def first_sentence(text: str) -> str | None:
    """The first sentence, as an answer; None: there is none, or it is too long to be one."""
    found = next(iter(sentences(text, minimum=4)), None)
    return found if found and text.startswith(found) and len(found) <= QUERY_CHARACTERS else None


def without(text: str, names: Iterable[str], put: str = "") -> str:
    """The text with each of ``names``, as a whole word in any case, replaced by ``put``.

    An article before the name is replaced with it, unless ``put`` is empty.
    """
    article = r"(?:\b(?:the|an?)\s+)?" if put else ""
    for name in sorted({name for name in names if name}, key=lambda name: (-len(name), name)):
        text = re.sub(rf"{article}(?<!\w){re.escape(name)}(?!\w)", lambda _: put, text, flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" -:,")


def anonymous_sentences(text: str, names: Sequence[str], count: int, rng: random.Random, put: str = "it") -> list[str]:
    """Up to ``count`` sentences of a text as queries, the names in them replaced by ``put``."""
    hidden = [without(sentence, names, put) for sentence in sentences(text)]
    usable = sorted({cut(sentence, QUERY_WORDS, QUERY_CHARACTERS) for sentence in hidden if len(sentence.split()) >= 8})
    return rng.sample(usable, min(count, len(usable)))


def find_files(folder: Path, names: Sequence[str], how: str) -> dict[str, Path]:
    """Files of these names in a folder or anywhere below it.

    Raises:
        TrainingDataError: one is missing; the message ends with ``how`` to get it.
    """
    found: dict[str, Path] = {}
    for name in names:
        paths = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name)) if folder.is_dir() else []
        if not paths:
            raise TrainingDataError(f"no file {name} in {folder} or below it; to get it: {how}")
        found[name] = paths[0]
    return found


def from_package(package: str) -> str:
    """How to get the files of a Debian package without installing it."""
    return f"apt-get download {package} && dpkg-deb -x {package}_*.deb FOLDER"
