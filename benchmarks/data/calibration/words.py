"""Entries of WordNet: a word's meanings, examples and neighbours, and a question about the first meaning."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration.entries import MIN_CHARACTERS, Entry, fit

NUM_WORDS = {"noun": 94, "verb": 28, "adj": 22, "adv": 6}
_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_UNWANTED = re.compile(
    r"\b(offensive|obscen|vulgar|slur|disparag|derogat|sexual|genital|ethnic|negro|nazi|whore|prostitut|coitus|excret|"
    r"urin|feces|faec|rape|suicid|penis|vagina|anus|nude|incest|erotic|slang|labia|vulva)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Synset:
    """One meaning of its words.

    Attributes:
        domain: number of the lexicographer's file: 05 animals, 13 food, ...
        pointers: relation → offsets of synsets of the same part of speech.
    """

    words: tuple[str, ...]
    domain: int
    gloss: str
    examples: tuple[str, ...]
    pointers: dict[str, tuple[str, ...]]


def read_synsets(path: Path) -> dict[str, Synset]:
    """Offset → synset of a data file of WordNet."""
    synsets = {}
    for line in path.read_text("utf-8").split("\n"):
        if not re.match(r"\d{8} ", line):
            continue
        fields, _, gloss = line.partition(" | ")
        columns = fields.split()
        num_words = int(columns[3], 16)
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in columns[4 : 4 + 2 * num_words : 2]]
        start = 5 + 2 * num_words
        pointers: dict[str, tuple[str, ...]] = {}
        for at in range(start, start + 4 * int(columns[start - 1]), 4):
            relation, offset, part, _ = columns[at : at + 4]
            if part == columns[2]:
                pointers[relation] = (*pointers.get(relation, ()), offset)
        examples = tuple(re.findall(r'"([^"]+)"', gloss))
        meaning = re.sub(r'[;,:]?\s*(- )?"[^"]*".*', "", gloss).strip(" ;")
        synsets[columns[0]] = Synset(tuple(words), int(columns[1]), meaning.replace("`", "'"), examples, pointers)
    return synsets


def read_index(path: Path) -> dict[str, list[str]]:
    """Lower-case word → offsets of its synsets, the most frequent first."""
    index = {}
    for line in path.read_text("utf-8").split("\n"):
        if line and not line.startswith(" "):
            columns = line.split()
            index[columns[0].replace("_", " ")] = columns[-int(columns[2]) :]
    return index


def word_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Words of every domain; half of them such as occur in WordNet's tagged texts, so common ones."""
    tagged = {
        line.partition("%")[0].replace("_", " ")
        for line in (folder / "cntlist.rev").read_text("utf-8").split("\n")
        if line and int(line.split()[2]) >= 3
    }
    asked: set[str] = set()
    for part, count in NUM_WORDS.items():
        synsets, index = read_synsets(folder / f"data.{part}"), read_index(folder / f"index.{part}")
        groups: dict[tuple[int, bool], list[str]] = {}
        for word, offsets in index.items():
            if word not in asked and re.fullmatch(r"[a-z][a-z .'-]{2,}", word):
                groups.setdefault((synsets[offsets[0]].domain, word in tagged), []).append(word)
        for words in groups.values():
            rng.shuffle(words)
        order = sorted(groups)
        rng.shuffle(order)
        found = 0
        while found < count:
            for group in order:
                while groups[group]:
                    word = groups[group].pop()
                    entry = word_entry(word, part, index[word], synsets, rng)
                    if entry and entry[1] not in asked:
                        asked |= {word, entry[1]}
                        found += 1
                        yield entry
                        break
                if found == count:
                    break


def word_entry(
    word: str, part: str, offsets: list[str], synsets: dict[str, Synset], rng: random.Random
) -> Entry | None:
    """A word's meanings with synonyms, examples and neighbours, and a question about the first meaning."""
    senses = [synsets[offset] for offset in offsets]
    first = senses[0]
    spelled = next((name for name in first.words if name.lower() == word), word)
    neighbours = {
        label: [synsets[offset] for relation in relations for offset in first.pointers.get(relation, ())]
        for label, relations in _RELATIONS.items()
    }
    meanings = [_describe(sense, spelled) for sense in senses]
    if len(meanings) > 1:
        meanings = [f"{number}. {meaning}" for number, meaning in enumerate(meanings, 1)]
    lines = [f"{spelled} ({_PARTS[part]}): {meanings[0]}", *meanings[1:]]
    broader = neighbours["Kind of"] or neighbours["Example of"]
    if broader:
        label = "Kind of" if neighbours["Kind of"] else "Example of"
        lines.insert(1, f"{label}: {broader[0].words[0]} ({broader[0].gloss}).")
    for label in ("Kinds", "Parts", "Part of", "Belongs to"):
        if neighbours[label]:
            lines.append(f"{label}: {', '.join(synset.words[0] for synset in neighbours[label][:8])}.")
    text = fit(lines, rng.choice((300, 300, 400, 500)), "\n")
    if "\n2. " not in text:
        text = text.replace(": 1. ", ": ", 1)
    if len(text) < MIN_CHARACTERS or _UNWANTED.search(text):
        return None

    synonyms = [name for name in first.words if name.lower() != word]
    clause = re.sub(r"^\([^)]*\)\s*", "", first.gloss).split(";")[0].strip()
    a_word = f"{'an' if spelled[0].lower() in 'aeiou' else 'a'} {spelled}"
    if spelled.endswith("s") or (spelled[0].isupper() and first.domain != 18):
        a_word = spelled
    questions = [f"What does {spelled} mean?"] * 2
    if spelled.islower() and 25 <= len(clause) <= 90:
        questions += [f'Which {"word" if part == "noun" else _PARTS[part]} means "{clause}"?'] * 2
        questions += [f"word for {clause}"]
    if synonyms:
        questions += [f"What is another word for {spelled}?", f"synonym of {spelled}"]
    if part == "noun":
        if first.pointers.get("@i"):
            person = first.domain == 18
            questions = [f"{'Who was' if person else 'What is'} {spelled}?", f"Tell me about {spelled}."]
        elif first.domain in _COUNTABLE:
            questions += [f"What is {a_word}?"] * 3
        else:
            questions += [f"What is meant by {spelled}?"]
        if neighbours["Kinds"] and "Kinds:" in text:
            questions += [f"What kinds of {spelled} are there?"] * 2
        if neighbours["Parts"] and "Parts:" in text:
            questions += [f"What are the parts of {a_word}?"]
    else:
        questions += [f"What is the meaning of the {_PARTS[part]} {spelled}?"]
        if _example(first, spelled):
            questions += [f'How is "{spelled}" used in a sentence?']
    questions += [f"define {spelled}"] if spelled.islower() else []
    return text, rng.choice(questions)


_RELATIONS = {
    "Kind of": ("@",),
    "Example of": ("@i",),
    "Kinds": ("~", "~i"),
    "Parts": ("%p",),
    "Part of": ("#p",),
    "Belongs to": ("#m",),
}
_COUNTABLE = {5, 6, 13, 17, 18, 20}  # animals, artifacts, food, natural objects, people, plants


def _describe(sense: Synset, word: str) -> str:
    text = sense.gloss[0].upper() + sense.gloss[1:] + "."
    synonyms = [name for name in sense.words if name.lower() != word.lower()]
    example = _example(sense, word)
    if example:
        text += f' Example: "{example}".'
    if synonyms:
        text += f" Synonyms: {', '.join(synonyms[:5])}."
    return text


def _example(sense: Synset, word: str) -> str | None:
    """The first example with the word itself rather than one of its synonyms."""
    stem = re.compile(r"\b" + re.escape(word[: max(3, len(word) - 2)]), re.IGNORECASE)
    return next((example for example in sense.examples if stem.search(example)), None)
