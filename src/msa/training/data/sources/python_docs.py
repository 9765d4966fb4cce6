"""Functions, classes and sections of Python's documentation (HTML of Debian's ``python3.x-doc``).

Licence: Python Software Foundation License Version 2; code in it also under the Zero-Clause BSD licence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from msa.errors import TrainingDataError
from msa.training.data.sources.entry import Question, SourceEntry
from msa.training.data.sources.text import (
    DOCUMENT_CHARACTERS,
    DOCUMENT_WORDS,
    QUERY_CHARACTERS,
    QUERY_WORDS,
    anonymous_sentences,
    cut,
    first_sentence,
    from_package,
)

PARTS = ("library", "reference", "tutorial", "howto", "faq", "using", "extending", "distutils", "c-api")
NAME_QUESTIONS = (
    "What does {} do in Python?",
    "How do I use {}?",
    "Explain Python's {}.",
    "Python documentation of {}",
)
SECTION_QUESTIONS = (
    "How does this work in Python: {}?",
    "Explain: {}",
    "{}",
    "What does the Python documentation say on {}?",
)
MINIMUM_CHARACTERS = 120
MINIMUM_AFTER_DROP = 150

_NOTES = "div.versionadded, div.versionchanged, div.deprecated, div.deprecated-removed, p.availability"
# most tags of a page mark up single words; parsing takes far longer with them
_INLINE = re.compile(r"</?(?:span|em|code|strong|a|cite)\b[^>]*>|¶")


class PythonDocs:
    """Definitions and sections as documents; names, headings, first sentences and other sentences as questions.

    Args:
        folder: unpacked package, or its folder ``html``.
        words, characters: size of a document, at most.
    """

    name = "python"
    licence = "Python Software Foundation License Version 2"

    def __init__(self, folder: Path, words: int = DOCUMENT_WORDS, characters: int = DOCUMENT_CHARACTERS) -> None:
        self._folder, self._words, self._characters = folder, words, characters
        self.settings = {"words": words, "characters": characters}

    def files(self) -> dict[str, Path]:
        """The pages, under their path below ``html``.

        Raises:
            TrainingDataError: there are none.
        """
        roots = sorted({path.parent.parent for path in self._folder.rglob("library/index.html")})
        if not roots:
            how = from_package("python3.x-doc")
            raise TrainingDataError(
                f"no file library/index.html in {self._folder} or below it; to get it: {how} "
                "(x: the version Debian has, for instance python3.11-doc)"
            )
        pages = [page for part in PARTS for page in sorted((roots[0] / part).rglob("*.html"))]
        return {page.relative_to(roots[0]).as_posix(): page for page in pages}

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """Every definition and section of the pages."""
        found: list[SourceEntry] = []
        seen: set[str] = set()
        for page, path in self.files().items():
            soup = BeautifulSoup(_INLINE.sub("", path.read_text(encoding="utf-8", errors="ignore")), "html.parser")
            for note in soup.select(_NOTES):
                note.decompose()
            entries = [*_definitions(soup, rng), *_sections(soup, rng)]
            for name, head, text, questions in entries:
                if name.lower() not in seen:
                    seen.add(name.lower())
                    found.append(self._entry(page, name, head, text, questions, rng))
        rng.shuffle(found)
        yield from found

    def _entry(
        self, page: str, name: str, head: str, text: str, questions: list[Question], rng: random.Random
    ) -> SourceEntry:
        text = cut(head + text, self._words, self._characters)
        names = (name, f"{name.rsplit('.', 1)[-1]}()")
        hidden = anonymous_sentences(text.removeprefix(head), names, 3, rng)
        asked = {question.query for question in questions}
        found = [Question(kind="sentence", query=query) for query in hidden if query not in asked]
        identity = f"python/{page.removesuffix('.html')}#{name}"
        return SourceEntry(id=identity, name=name, text=text, questions=(*questions, *found))


def _plain(tag: Tag) -> str:
    """Text of an element, white space made single."""
    return re.sub(r"\s+", " ", tag.get_text()).strip()


def _definitions(soup: BeautifulSoup, rng: random.Random) -> Iterator[tuple[str, str, str, list[Question]]]:
    """(name, signature, text, questions) of functions, classes and so on; takes them out of the soup."""
    # backwards: methods are taken out of their class before its own text is read
    for definition in reversed(soup.select("dl.py")):
        term, body = definition.find("dt"), definition.find("dd")
        definition.extract()
        name = str(term.get("id") or "") if isinstance(term, Tag) else ""
        if not isinstance(term, Tag) or not isinstance(body, Tag) or not name:
            continue
        text = _plain(body)
        if len(text) < MINIMUM_CHARACTERS:
            continue
        first = first_sentence(text)
        questions = [
            Question(kind="name", query=template.format(name), answer=first)
            for template in rng.sample(NAME_QUESTIONS, 2)
        ]
        # a document without its first sentence: that question's words are found nowhere
        if first and len(text) - len(first) >= MINIMUM_AFTER_DROP and rng.random() < 0.5:
            query = cut(first, QUERY_WORDS, QUERY_CHARACTERS)
            text = text.removeprefix(first).strip()
            questions = [Question(kind=q.kind, query=q.query) for q in questions]
            questions.append(Question(kind="description", query=query, answer=name))
        signature = _plain(term)
        signature = signature if name in signature else f"{name}: {signature}"
        yield name, f"{signature}. ", text, questions


def _sections(soup: BeautifulSoup, rng: random.Random) -> Iterator[tuple[str, str, str, list[Question]]]:
    """(name, heading or nothing, text, questions) of sections with paragraphs of their own."""
    title = ""
    for section in soup.select("section"):
        heading = section.find(["h1", "h2", "h3", "h4"])
        if not isinstance(heading, Tag):
            continue
        own = re.sub(r"^[\d.]+\s*", "", _plain(heading))
        title = title or own
        text = " ".join(_plain(paragraph) for paragraph in section.find_all("p", recursive=False))
        if len(text) < MINIMUM_CHARACTERS or not own:
            continue
        name = own if own == title else f"{title}: {own}"
        questions = [Question(kind="heading", query=t.format(name)) for t in rng.sample(SECTION_QUESTIONS, 2)]
        yield name, "" if rng.random() < 0.5 else f"{name}. ", text, questions
