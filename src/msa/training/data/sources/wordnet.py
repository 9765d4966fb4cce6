"""Words and their meanings, out of WordNet 3.0's data files (Debian's ``wordnet-base``).

Licence: WordNet 3.0 licence, Princeton University; use and redistribution are free with its notice.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msa.errors import TrainingDataError
from msa.training.data.sources.entry import Question, SourceEntry
from msa.training.data.sources.text import (
    DOCUMENT_CHARACTERS,
    DOCUMENT_WORDS,
    QUERY_CHARACTERS,
    QUERY_WORDS,
    cut,
    find_files,
    from_package,
)

FILES = {"data.noun": "noun", "data.verb": "verb", "data.adj": "adjective", "data.adv": "adverb"}
WORD_QUESTIONS = (
    "What does {} mean?",
    "Define {}.",
    'What is the meaning of the word "{}"?',
    "Explain the word {}.",
)
GLOSS_QUESTIONS = ("What is the word for: {}?", "{}", 'Which word means "{}"?', "a term for {}")
SYNONYM_QUESTIONS = ("another word for {}", "What is a synonym of {}?", "Which word can replace {}?")
MOST_SENSES = 6
FEWEST_WORDS = 8


@dataclass(frozen=True)
class _Sense:
    """One synset as a word's meaning: its place in the data files, gloss, examples and other words."""

    key: str
    gloss: str
    examples: tuple[str, ...]
    synonyms: tuple[str, ...]


class WordNet:
    """One document per word and part of speech, with all of its meanings.

    No meaning is in two documents, so that a question by meaning has one answer.

    Args:
        folder: where ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv`` lie, or a folder above.
        words, characters: size of a document, at most.
    """

    name = "wordnet"
    licence = "WordNet 3.0 licence (Princeton University)"

    def __init__(self, folder: Path, words: int = DOCUMENT_WORDS, characters: int = DOCUMENT_CHARACTERS) -> None:
        self._folder, self._words, self._characters = folder, words, characters
        self.settings = {"words": words, "characters": characters}

    def files(self) -> dict[str, Path]:
        """The four data files."""
        return find_files(self._folder, tuple(FILES), from_package("wordnet-base"))

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """Every word that has enough to say and no meaning that an earlier one had."""
        senses: dict[tuple[str, str], list[_Sense]] = defaultdict(list)
        for name, path in self.files().items():
            for word, sense in _senses(name, path):
                senses[word, FILES[name]].append(sense)
        keys = sorted(senses)
        rng.shuffle(keys)
        words: set[str] = set()
        used: set[str] = set()
        for word, part in keys:
            own = senses[word, part]
            told = sum(len(sense.gloss.split()) for sense in own)
            taken = word.lower() in words or any(sense.key in used for sense in own)
            if taken or not word.isascii() or len(own) > MOST_SENSES or told < FEWEST_WORDS:
                continue
            words.add(word.lower())
            used.update(sense.key for sense in own)
            text = cut(_document(word, part, own), self._words, self._characters)
            questions = tuple(_questions(word, own, text, rng))
            yield SourceEntry(id=f"wordnet/{word}.{part}", name=word, text=text, questions=questions)


def _senses(name: str, path: Path) -> Iterator[tuple[str, _Sense]]:
    """(word, meaning) of each word of each synset of a data file (format: wndb(5WN))."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1):
        # two spaces begin a line of the licence
        if line.startswith("  "):
            continue
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        try:
            count = int(fields[3], 16)
            words = [re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
        except (IndexError, ValueError):
            count = 0
        if not bar or not count:
            raise TrainingDataError(
                f"{path}:{number}: not a line of a WordNet data file (a synset of words, ' | ' and a gloss); "
                f"to get the file again: {from_package('wordnet-base')}"
            )
        parts = re.split(r';\s*(?=")', gloss.strip())
        examples = tuple(part.strip('" ') for part in parts[1:])
        for word in words:
            others = tuple(other for other in words if other != word)
            yield word, _Sense(f"{name} {fields[0]}", parts[0].strip(), examples, others)


def _document(word: str, part: str, senses: Sequence[_Sense]) -> str:
    if len(senses) == 1:
        text = f"{word} ({part}): {senses[0].gloss}."
    else:
        text = f"{word} ({part}): " + " ".join(f"{i}. {sense.gloss}." for i, sense in enumerate(senses, 1))
    synonyms = sorted({other for sense in senses for other in sense.synonyms})[:6]
    if synonyms:
        text += f" Synonyms: {', '.join(synonyms)}."
    examples = [example for sense in senses for example in sense.examples]
    return f"{text} Example: {examples[0]}." if examples else text


def _questions(word: str, senses: Sequence[_Sense], text: str, rng: random.Random) -> Iterator[Question]:
    for template in rng.sample(WORD_QUESTIONS, 2):
        yield Question(kind="word", query=template.format(word), answer=senses[0].gloss)
    # what the cut left out cannot be asked for
    told = [sense for sense in senses if sense.gloss in text]
    for sense in rng.sample(told, min(2, len(told))):
        gloss = cut(sense.gloss, QUERY_WORDS, QUERY_CHARACTERS)
        if len(gloss.split()) >= 4 and word.lower() not in gloss.lower():
            yield Question(kind="gloss", query=rng.choice(GLOSS_QUESTIONS).format(gloss), answer=word)
    synonyms = sorted({other for sense in senses for other in sense.synonyms if other.lower() != word.lower()})
    named = [other for other in synonyms if other in text]
    for other in rng.sample(named, min(2, len(named))):
        yield Question(kind="synonym", query=rng.choice(SYNONYM_QUESTIONS).format(other), answer=word)
    for sense in told:
        for example in sense.examples:
            if example not in text and word in example and len(example.split()) >= 4:
                yield Question(kind="usage", query=f'What does {word} mean in "{example}"?', answer=sense.gloss)
