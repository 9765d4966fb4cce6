"""Passages of the Python documentation: the FAQ, modules, the glossary, and the functions of functions.txt."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from calibration.entries import MAX_CHARACTERS, MIN_CHARACTERS, Entry, fit, read_table

NUM_FAQ, NUM_MODULES, NUM_TERMS = 38, 30, 16


def python_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Answers of the FAQ, modules, functions and terms of the glossary."""
    groups = [list(faq_entries(folder)), list(module_entries(folder, rng)), list(term_entries(folder, rng))]
    for group, count in zip(groups, (NUM_FAQ, NUM_MODULES, NUM_TERMS), strict=True):
        yield from rng.sample(group, count)
    yield from function_entries(folder)


def _soup(html: str) -> BeautifulSoup:
    soup = BeautifulSoup(html, "html.parser")
    for mark in soup.select("a.headerlink"):
        mark.decompose()
    return soup


_NO_CONTENT = re.compile(r"Source code:|Availability:|Raises an |Changed in|New in|Deprecated|See also|Note$|Example")


def _paragraphs(parent: Tag) -> list[str]:
    """The paragraphs directly under an element, up to its first block of code."""
    paragraphs = []
    for child in parent.find_all(["p", "div", "ul", "pre", "section", "dl"], recursive=False):
        text = " ".join(child.get_text().split())
        if child.name != "p":
            if child.name == "div" and any(name.startswith("highlight") for name in child.get("class", [])):
                break
            continue
        if not _NO_CONTENT.match(text):
            paragraphs.append(re.sub(r"\s*\[\d+\]", "", text))  # without marks of footnotes
    return paragraphs


def _finish(text: str) -> str:
    """A text without last paragraphs that announce something left out or break off at a block of code."""
    while text and not text.endswith((".", "!", "?", ")", "”", '"')):
        text = text.rpartition("\n\n")[0]
    return text


def _fits(text: str) -> bool:
    return MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS


def faq_entries(folder: Path) -> Iterator[Entry]:
    """What follows each heading of the FAQ that is a question."""
    for page in sorted((folder / "faq").glob("*.html")):
        for heading in _soup(page.read_text("utf-8")).select("section > h2, section > h3"):
            question = " ".join(heading.get_text().split())
            text = _finish(fit(_paragraphs(heading.parent), 600))
            if question.endswith("?") and _fits(text):
                yield text, question


def module_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """What the documentation of each module begins with."""
    for page in sorted((folder / "library").glob("*.html")):
        start = page.read_text("utf-8").split("<section", 2)[:2]  # up to the first subsection
        heading = _soup("<section".join(start)).select_one("section > h1")
        module, _, purpose = " ".join(heading.get_text().split()).partition(" — ") if heading else ("", "", "")
        if not purpose or not re.fullmatch(r"[a-z][\w.]*", module):
            continue
        text = _finish(fit([f"{module}: {purpose}.", *_paragraphs(heading.parent)], 560))
        topic = " ".join(word.lower() if word.istitle() else word for word in purpose.split())
        questions = [
            f"What does the {module} module do?",
            f"When would I use {module} in Python?",
            f"python module for {topic}",
            f"python {topic}",
            f"What is {module}?",
        ]
        if _fits(text):
            yield text, rng.choice(questions)


def term_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Terms of the glossary."""
    for item in _soup((folder / "glossary.html").read_text("utf-8")).select("dl.glossary > dt"):
        term, meaning = " ".join(item.get_text().split()), item.find_next_sibling("dd")
        text = _finish(fit([f"{term}:", *_paragraphs(meaning)], 500)).replace(":\n\n", ": ", 1)
        article = "an" if term[0].lower() in "aeiou" else "a"
        questions = [
            f"What is {article} {term} in Python?",
            f'What do Python programmers mean by "{term}"?',
            f"{term} meaning python",
        ]
        if _fits(text) and re.fullmatch(r"[A-Za-z][A-Za-z -]+", term):
            yield text, rng.choice(questions)


def function_entries(folder: Path) -> Iterator[Entry]:
    """The functions and classes of functions.txt, each with its signature."""
    questions = read_table("functions.txt")
    found = {}
    for page in sorted((folder / "library").glob("*.html")):
        html = page.read_text("utf-8")
        if not any(f'id="{name}"' in html for name in questions):
            continue
        for item in _soup(html).select("dl.py > dt[id]"):
            description = item.find_next_sibling("dd")
            if item["id"] in questions and item["id"] not in found and description:
                signature = re.sub(r"[\w.]+(?=\()", item["id"], " ".join(item.get_text().split()), count=1)
                found[item["id"]] = _finish(fit([signature, *_paragraphs(description)], 560))
    missing = [name for name in questions if not _fits(found.get(name, ""))]
    if missing:
        sys.exit(f"build_calibration.py: not in the documentation, or too short there: {missing}")
    for name, question in questions.items():
        yield found[name], question
