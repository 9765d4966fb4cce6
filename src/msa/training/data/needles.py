"""Made-up memories with needles in them: RULER's sentences and kinds of keys and values, hops, and missing keys.

Every call of :meth:`NeedleWorlds.world` is a fresh memory with questions over it, a pure function of its seed: keys,
values and fillers are never seen twice, so nothing can be learnt but the method.
"""

from __future__ import annotations

import math
import random
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msa.training.data.samples import Sample, TrainingSet
from msa.training.ranges import check_numbers

# RULER's words (NVIDIA/RULER, scripts/data/synthetic/constants.py)
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
QUESTION = "What is the special magic {kind} for {key} mentioned in the provided text?"
TWO_HOP_QUESTION = (
    "What is the special magic {kind} for the special magic {via} for {key} mentioned in the provided text?"
)
NOT_IN_MEMORY = "It is not in memory."
# what a model that quotes writes before its answer: the needle from its key up to its value; of two hops, the second
# goes on from the first. The word after the key says whether it was read: a text has "is", a question "mentioned"
QUOTATION = " for {key} is"
NOTHING_TO_QUOTE = " for {key} mentioned"
KINDS = ("word", "number", "uuid")
_KEY = re.compile(r"One of the special magic \w+s for (\S+) is: ")


@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """How one made-up memory looks.

    Attributes:
        documents: documents in the memory.
        questions: questions over it.
        min_filler, max_filler: words of other text around a document's needle.
        key_kinds, value_kinds: of ``word``, ``number`` and ``uuid``, drawn with equal probability.
        number_digits: digits of keys and values that are numbers; RULER's are 7.
        value_digits: digits of values, where they are to differ; 0: as ``number_digits``.
        hard_negatives: probability that a needle gets a twin elsewhere whose key differs in one part.
        twin_kinds: kinds of keys that get twins.
        invented: probability that all words of a memory's keys and values are ones that do not exist, so that what
            follows within a word must be read and cannot be known.
        alike: probability that all keys of a memory are near twins of each other: of few words, or of one number or
            uuid with two characters changed. What a memory of many thousand keys does by itself, in a small one.
        plain_documents: share of documents without any needle.
        distractors: share of the other documents no question needs that hold a needle of their own.
        two_hop, unanswerable: share of questions of that kind; the rest are plain.
    """

    documents: int = 32
    questions: int = 32
    min_filler: int = 0
    max_filler: int = 150
    key_kinds: tuple[str, ...] = KINDS
    value_kinds: tuple[str, ...] = KINDS
    number_digits: int = 7
    value_digits: int = 0
    hard_negatives: float = 0.5
    twin_kinds: tuple[str, ...] = KINDS
    invented: float = 0.0
    alike: float = 0.0
    plain_documents: float = 0.1
    distractors: float = 0.5
    two_hop: float = 0.2
    unanswerable: float = 0.1

    def __post_init__(self) -> None:
        shares = ("hard_negatives", "invented", "alike", "plain_documents", "distractors", "two_hop", "unanswerable")
        check_numbers(self, from_one=("documents", "number_digits"), shares=shares)
        if self.min_filler > self.max_filler:
            raise ValueError(f"min_filler must be at most max_filler, got {self.min_filler} and {self.max_filler}")
        if self.two_hop + self.unanswerable > 1:
            raise ValueError(
                f"two_hop and unanswerable must be at most 1 together, got {self.two_hop} and {self.unanswerable}"
            )
        for name in ("key_kinds", "value_kinds", "twin_kinds"):
            kinds = getattr(self, name)
            if not set(kinds) <= set(KINDS) or not (kinds or name == "twin_kinds"):
                raise ValueError(f"{name} must be of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")


def keys_of(training_set: TrainingSet) -> set[str]:
    """Keys of all needles in a memory."""
    return {key for text in training_set.corpus.values() for key in _KEY.findall(text)}


class NeedleWorlds:
    """Generator of made-up memories.

    Args:
        adjectives, nouns: words that keys are made of (``wandering-age``).
        haystack: sentences to fill documents with.

    Raises:
        ValueError: an empty list.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str], haystack: Sequence[str]) -> None:
        if not (adjectives and nouns and haystack):
            raise ValueError("needles need adjectives, nouns and sentences for the haystack; one of the lists is empty")
        self._adjectives, self._nouns, self._haystack = list(adjectives), list(nouns), list(haystack)

    def world(self, config: NeedleConfig, seed: int | str, avoid: Iterable[str] = ()) -> TrainingSet:
        """One memory and questions over it, without any of the keys in ``avoid``; the same for the same seed."""
        return _World(self, config, random.Random(seed), set(avoid)).build()

    def token(self, kind: str, digits: int, rng: random.Random) -> str:
        """A key or value of one of :data:`KINDS`."""
        if kind == "word":
            return f"{rng.choice(self._adjectives)}-{rng.choice(self._nouns)}"
        if kind == "number":
            return str(rng.randrange(10 ** (digits - 1), 10**digits))
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    def invented(self, rng: random.Random, count: int = 300) -> NeedleWorlds:
        """The same with ``count`` adjectives and nouns that begin as one word of the list and end as another."""

        def word(words: list[str]) -> str:
            first, last = rng.choice(words), rng.choice(words)
            return first[: rng.randint(1, len(first) - 1)] + last[rng.randint(1, len(last) - 1) :]

        adjectives, nouns = ([word(words) for _ in range(count)] for words in (self._adjectives, self._nouns))
        return NeedleWorlds(adjectives, nouns, self._haystack)

    def few_words(self, count: int, rng: random.Random) -> NeedleWorlds:
        """The same with only ``count`` adjectives and nouns."""
        adjectives = rng.sample(self._adjectives, min(count, len(self._adjectives)))
        return NeedleWorlds(adjectives, rng.sample(self._nouns, min(count, len(self._nouns))), self._haystack)

    def twin(self, key: str, kind: str, rng: random.Random) -> str:
        """A key like ``key`` that differs in one word, or in one character."""
        if kind == "word":
            adjective, noun = key.split("-", 1)
            if rng.random() < 0.5:
                return f"{adjective}-{rng.choice(self._nouns)}"
            return f"{rng.choice(self._adjectives)}-{noun}"
        place = rng.choice([i for i, character in enumerate(key) if character != "-" and i > 0] or [0])
        return key[:place] + rng.choice("123456789") + key[place + 1 :]

    def filler(self, words: int, rng: random.Random) -> list[str]:
        """Sentences of about so many words in all."""
        sentences: list[str] = []
        while words > 0:
            sentence = rng.choice(self._haystack)
            pieces = sentence.split()
            sentences.append(" ".join(pieces[:words]))
            words -= len(pieces)
        return sentences


class _World:
    """One memory in the making."""

    def __init__(self, worlds: NeedleWorlds, config: NeedleConfig, rng: random.Random, keys: set[str]) -> None:
        if config.invented and rng.random() < config.invented:
            worlds = worlds.invented(rng)
        self.worlds, self.config, self.rng = worlds, config, rng
        self.needles: list[list[str]] = [[] for _ in range(config.documents)]
        self.keys = keys
        self.free = [i for i in range(config.documents) if i >= config.plain_documents * config.documents]
        rng.shuffle(self.free)
        self.key_worlds, self.origins = worlds, dict[str, str]()
        if config.alike and rng.random() < config.alike:
            self.key_worlds = worlds.few_words(max(2, math.isqrt(3 * (config.documents + config.questions))), rng)
            self.origins = {kind: worlds.token(kind, config.number_digits, rng) for kind in ("number", "uuid")}

    def build(self) -> TrainingSet:
        """Place the needles of all questions, then write the documents around them."""
        kinds: list[Callable[[], Sample]] = []
        for number in range(self.config.questions):
            share = (number + 0.5) / self.config.questions
            two_hop, unanswerable = self.config.two_hop, self.config.two_hop + self.config.unanswerable
            kinds.append(
                self._two_hop if share < two_hop else self._unanswerable if share < unanswerable else self._one_hop
            )
        samples = [make() for make in kinds]
        self.rng.shuffle(samples)
        for _ in range(int(self.config.distractors * len(self.free))):
            kind = self.rng.choice(self.config.value_kinds)
            self._place(kind, self._new_key(self.rng.choice(self.config.key_kinds)), self._value(kind))
        corpus = {str(index): self._document(needles) for index, needles in enumerate(self.needles)}
        return TrainingSet(corpus=corpus, samples=samples)

    def _one_hop(self) -> Sample:
        key_kind, kind = self.rng.choice(self.config.key_kinds), self.rng.choice(self.config.value_kinds)
        key, value = self._new_key(key_kind), self._value(kind)
        where = self._place(kind, key, value)
        return Sample(
            query=QUESTION.format(kind=kind, key=key),
            positives=(where,),
            documents=self._add_twin(key, key_kind, kind),
            answer=value,
            quotation=QUOTATION.format(key=key),
            source=f"needle/{key_kind}",
        )

    def _two_hop(self) -> Sample:
        key_kind, via, kind = self.rng.choice(self.config.key_kinds), "word", self.rng.choice(self.config.value_kinds)
        key, middle, value = self._new_key(key_kind), self._new_key(via), self._value(kind)
        first, second = self._place(via, key, middle), self._place(kind, middle, value)
        if first == second:  # both needles in one document: a single step
            steps: tuple[tuple[str, ...], ...] = ((first,),)
        else:
            steps = ((first,), (second,))
        self._add_twin(self.rng.choice((key, middle)), key_kind if key_kind == via else "", kind)
        query = TWO_HOP_QUESTION.format(kind=kind, via=via, key=key)
        positives = tuple(i for step in steps for i in step)
        return Sample(
            query=query,
            positives=positives,
            hops=steps,
            answer=value,
            quotation=QUOTATION.format(key=f"{key} is: {middle}"),
            source="needle/two-hop",
        )

    def _unanswerable(self) -> Sample:
        key_kind, kind = self.rng.choice(self.config.key_kinds), self.rng.choice(self.config.value_kinds)
        key = self._new_key(key_kind)
        return Sample(
            query=QUESTION.format(kind=kind, key=key),
            documents=self._add_twin(key, key_kind, kind),
            answer=NOT_IN_MEMORY,
            quotation=NOTHING_TO_QUOTE.format(key=key),
            source="needle/unanswerable",
        )

    def _add_twin(self, key: str, key_kind: str, kind: str) -> tuple[str, ...]:
        """Perhaps place a needle with a twin of the key; the document it is in."""
        if key_kind in self.config.twin_kinds and self.rng.random() < self.config.hard_negatives:
            twin = self.worlds.twin(key, key_kind, self.rng)
            if twin not in self.keys:
                self.keys.add(twin)
                return (self._place(kind, twin, self._value(kind)),)
        return ()

    def _new_key(self, kind: str) -> str:
        for _ in range(100):
            if kind in self.origins:
                key = self.worlds.twin(self.worlds.twin(self.origins[kind], kind, self.rng), kind, self.rng)
            else:
                key = self.key_worlds.token(kind, self.config.number_digits, self.rng)
            if key not in self.keys:
                self.keys.add(key)
                return key
        raise ValueError(f"cannot draw another distinct {kind} of at most {self.config.number_digits} digits")

    def _value(self, kind: str) -> str:
        return self.worlds.token(kind, self.config.value_digits or self.config.number_digits, self.rng)

    def _place(self, kind: str, key: str, value: str) -> str:
        """Put a needle into an empty document while there is one; returns its id."""
        where = self.free.pop() if self.free else self.rng.randrange(self.config.documents)
        self.needles[where].append(NEEDLE.format(kind=kind, key=key, value=value))
        return str(where)

    def _document(self, needles: list[str]) -> str:
        words = self.rng.randint(self.config.min_filler, self.config.max_filler)
        sentences = self.worlds.filler(words if needles else max(words, 4), self.rng)
        for needle in needles:
            sentences.insert(self.rng.randint(0, len(sentences)), needle)
        return " ".join(sentences)
