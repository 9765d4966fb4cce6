"""Real texts from files, cut into documents, and questions that quote them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".py", ".pyi", ".h", ".hpp", ".cuh", ".c", ".md", ".rst", ".txt")
WORDS = 12  # that a question quotes
THIRDS = ("first third", "middle third", "last third")


@dataclass
class Texts:
    """Documents cut from files.

    Attributes:
        documents: ids and texts, in the order of the sorted paths.
        files, characters: that they are from.
    """

    documents: list[dict[str, str]] = field(default_factory=list)
    files: int = 0
    characters: int = 0


def read_texts(folders: Sequence[Path], suffixes: Sequence[str], length: int, most: int) -> Texts:
    """Documents of ``length`` characters, of files with ``most`` characters in all."""
    found, known = Texts(), set()
    for file in (file for folder in folders for file in sorted(folder.rglob("*"))):
        if file.suffix not in suffixes or not file.is_file() or found.characters >= most:
            continue
        try:
            data = file.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(data).digest()
        if digest in known or not text.strip():
            continue
        known.add(digest)
        found.files += 1
        found.characters += len(text)
        folder = next(folder for folder in folders if file.is_relative_to(folder))
        name = f"{folder.name}/{file.relative_to(folder)}"
        pieces = (text[start : start + length] for start in range(0, len(text), length))
        found.documents += [{"id": f"{name}#{part}", "text": piece} for part, piece in enumerate(pieces)]
    return found


def questions_of(documents: Sequence[dict[str, str]], first: int, end: int, count: int) -> list[dict[str, str]]:
    """Words in a row from the middle of documents drawn from ``first:end``, and the ids of these."""
    draw, found = random.Random(first), []
    for index in draw.sample(range(first, end), end - first):
        words = documents[index]["text"].split()
        if len(words) >= 4 * WORDS:
            middle = (len(words) - WORDS) // 2
            found.append({"id": documents[index]["id"], "words": " ".join(words[middle : middle + WORDS])})
        if len(found) == count:
            break
    return found


def by_thirds(documents: Sequence[dict[str, str]], end: int, count: int) -> dict[str, list[dict[str, str]]]:
    """About ``count`` questions for all thirds of the first ``end`` documents together."""
    cuts = [end * i // 3 for i in range(4)]
    shares = [count * (i + 1) // 3 - count * i // 3 for i in range(3)]
    return {
        name: questions_of(documents, cuts[i], cuts[i + 1], shares[i]) for i, name in enumerate(THIRDS) if cuts[i + 1]
    }
