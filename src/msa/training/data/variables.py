"""Variable tracking in a made-up memory (RULER's task): chains of assignments, each in a document of its own.

A question names a value; the first document assigns it to a variable, the next assigns that variable to another, and so
on: as many hops as the chain is long, each found by what the one before said.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from msa.training.data.samples import Sample, TrainingSet
from msa.training.ranges import check_numbers

# RULER's words (NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py)
ASSIGNMENT = "VAR {name} = {value}."
QUESTION = "Find all variables that are assigned the value {value} in the provided text."


@dataclass(frozen=True, kw_only=True)
class VariableConfig:
    """How one made-up memory looks.

    Attributes:
        documents: documents in the memory; those no chain needs hold filler alone.
        questions: chains, each asked about once.
        hops: assignments that follow a chain's first.
        min_filler, max_filler: words of other text around an assignment.

    Raises:
        ValueError: a number out of its range, or more assignments than documents.
    """

    documents: int = 32
    questions: int = 6
    hops: int = 4
    min_filler: int = 0
    max_filler: int = 60

    def __post_init__(self) -> None:
        check_numbers(self, from_one=("documents", "questions"))
        if self.min_filler > self.max_filler:
            raise ValueError(f"min_filler must be at most max_filler, got {self.min_filler} and {self.max_filler}")
        if self.questions * (self.hops + 1) > self.documents:
            raise ValueError(
                f"{self.questions} chains of {self.hops + 1} assignments need as many documents, got {self.documents}"
            )


def variable_world(config: VariableConfig, haystack: Sequence[str], seed: int | str) -> TrainingSet:
    """One memory and questions over its chains; the same for the same seed.

    Raises:
        ValueError: an empty haystack.
    """
    if not haystack:
        raise ValueError("variable tracking needs sentences for the haystack")
    rng = random.Random(seed)
    places = rng.sample(range(config.documents), config.documents)
    names, values = _distinct(rng, config)
    sentences: dict[int, str] = {}
    samples = []
    for value in values:
        chain = [names.pop() for _ in range(config.hops + 1)]
        documents = [places.pop() for _ in chain]
        for place, name, source in zip(documents, chain, [value, *(f"VAR {name}" for name in chain)], strict=False):
            sentences[place] = ASSIGNMENT.format(name=name, value=source)
        samples.append(
            Sample(
                query=QUESTION.format(value=value),
                positives=tuple(map(str, documents)),
                hops=tuple((str(place),) for place in documents),
                answer=", ".join(chain),
                source="variables",
            )
        )
    corpus = {str(place): _document(sentences.get(place), config, haystack, rng) for place in range(config.documents)}
    return TrainingSet(corpus=corpus, samples=samples)


def _distinct(rng: random.Random, config: VariableConfig) -> tuple[list[str], list[str]]:
    """Names of five capital letters for all chains, and a value of five digits for each."""
    wanted = config.questions * (config.hops + 1)
    names: dict[str, None] = {}
    while len(names) < wanted:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(names), [str(value) for value in rng.sample(range(10_000, 100_000), config.questions)]


def _document(assignment: str | None, config: VariableConfig, haystack: Sequence[str], rng: random.Random) -> str:
    words = rng.randint(config.min_filler, config.max_filler)
    sentences: list[str] = []
    while words > 0 or not (sentences or assignment):
        pieces = rng.choice(haystack).split()
        sentences.append(" ".join(pieces[: max(words, 4)]))
        words -= len(pieces)
    if assignment is not None:
        sentences.insert(rng.randint(0, len(sentences)), assignment)
    return " ".join(sentences)
