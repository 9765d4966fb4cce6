"""Descriptions of Debian packages.

Input: a folder with ``avail.txt`` and ``translation-en.txt`` (:data:`HOW` says how to make them).

Licence: a description comes under the terms of its package's ``debian/`` folder, which for packages of ``main`` are
free as Debian's guidelines define it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from msa.errors import TrainingDataError
from msa.training.data.sources.entry import Question, SourceEntry
from msa.training.data.sources.text import (
    DOCUMENT_CHARACTERS,
    DOCUMENT_WORDS,
    QUERY_CHARACTERS,
    QUERY_WORDS,
    anonymous_sentences,
    cut,
    find_files,
    first_sentence,
    without,
)

AVAILABLE = "avail.txt"
TRANSLATION = "translation-en.txt"
HOW = (
    f"apt-get -o Acquire::Languages=en update, apt-cache dumpavail > FOLDER/{AVAILABLE} and lz4cat "
    f"/var/lib/apt/lists/*_main_i18n_Translation-en.lz4 > FOLDER/{TRANSLATION}, on Debian"
)
REQUESTS = (
    "Which Debian package offers this: {}?",
    "I need software for: {}",
    "What can I install to get this: {}?",
    "Find a package: {}",
    "Is there a program for this: {}?",
)
NAME_QUESTIONS = (
    "What is {}?",
    "What does the package {} do?",
    "What is the Debian package {} for?",
    "Describe the package {}.",
)
MINIMUM_CHARACTERS = 120

_STANZA = re.compile(r"Package: (\S+)\nDescription-md5: \S+\nDescription-en: (.*)\n((?: .*(?:\n|$))*)")
_PACKAGE = re.compile(r"^Package: (\S+)$", re.MULTILINE)
_SOURCE = re.compile(r"^Source: (\S+)", re.MULTILINE)
_EMPTY = re.compile(r"(dummy|transitional|metapackage|meta-package)", re.IGNORECASE)
_AUXILIARY = re.compile(r"-(dbg|dbgsym|doc|data|common|dev)$")
_PREFIX = re.compile(r"^(lib|python3?-|golang-|node-|ruby-|r-cran-|haskell-|elpa-)")
_SUFFIX = re.compile(r"-?(perl|java|dev|ruby|el)$")
_BOILERPLATE = re.compile(r"this (\w+ )?package\b", re.IGNORECASE)


class DebianPackages:
    """Long descriptions as documents; short descriptions, sentences and names as questions.

    Binary packages of one source package form a group: their descriptions share sentences.

    Args:
        folder: where ``avail.txt`` and ``translation-en.txt`` lie.
        words, characters: size of a document, at most.
    """

    name = "debian"
    licence = "terms of each package's packaging; free by the Debian Free Software Guidelines for packages of main"

    def __init__(self, folder: Path, words: int = DOCUMENT_WORDS, characters: int = DOCUMENT_CHARACTERS) -> None:
        self._folder, self._words, self._characters = folder, words, characters
        self.settings = {"words": words, "characters": characters}

    def files(self) -> dict[str, Path]:
        """``avail.txt`` and ``translation-en.txt``."""
        return find_files(self._folder, (AVAILABLE, TRANSLATION), HOW)

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """Every package that has a description of its own."""
        files = self.files()
        groups = _source_packages(files[AVAILABLE])
        packages = list(_descriptions(files[TRANSLATION]))
        rng.shuffle(packages)
        for package, short, description in packages:
            text = cut(f"{package}: {description}", self._words, self._characters)
            questions = tuple(_questions(package, short, text, rng))
            group = f"debian source {groups.get(package, package)}"
            yield SourceEntry(id=f"debian/{package}", name=package, text=text, questions=questions, group=group)


def _source_packages(path: Path) -> dict[str, str]:
    """Binary package → source package."""
    sources = {}
    for block in path.read_text(encoding="utf-8", errors="ignore").split("\n\n"):
        if match := _PACKAGE.search(block):
            source = _SOURCE.search(block)
            sources[match[1]] = source[1] if source else match[1]
    if not sources:
        raise TrainingDataError(f"{path} has no line 'Package: NAME'; expected the output of: {HOW}")
    return sources


def _descriptions(path: Path) -> Iterator[tuple[str, str, str]]:
    """(package, short description, long description), each package once."""
    seen: set[str] = set()
    stanzas = 0
    for block in path.read_text(encoding="utf-8", errors="ignore").split("\n\n"):
        match = _STANZA.match(block)
        if not match:
            continue
        stanzas += 1
        package, short, long = match[1], match[2], match[3]
        long = " ".join(re.sub(r"^ \.$", "", long, flags=re.MULTILINE).split())
        empty = len(long) < MINIMUM_CHARACTERS or _EMPTY.search(long + short) or _AUXILIARY.search(package)
        if not empty and package not in seen:
            seen.add(package)
            yield package, short, long
    if not stanzas:
        raise TrainingDataError(f"{path} has no stanza with Package and Description-en; expected the output of: {HOW}")


def _questions(package: str, short: str, text: str, rng: random.Random) -> Iterator[Question]:
    names = (package, _SUFFIX.sub("", _PREFIX.sub("", package)))
    plain = cut(without(re.sub(r"\([^)]*\)", "", short), names), QUERY_WORDS, QUERY_CHARACTERS)
    if len(plain.split()) >= 4:
        yield Question(kind="short", query=plain)
        yield Question(kind="request", query=rng.choice(REQUESTS).format(plain), answer=package)
    description = text.removeprefix(f"{package}: ")
    for sentence in anonymous_sentences(description, names, 3, rng):
        if not _BOILERPLATE.match(sentence):
            yield Question(kind="sentence", query=sentence)
    answer = first_sentence(description)
    for template in rng.sample(NAME_QUESTIONS, 2):
        yield Question(kind="name", query=template.format(package), answer=answer)
