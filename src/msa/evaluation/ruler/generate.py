"""RULER's samples: needles in a haystack that is just short enough for the length wanted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

from msa.evaluation.haystack import NOISE_LINE, Essay, load_essay
from msa.evaluation.ruler.samples import Sample, sample_tokens
from msa.evaluation.ruler.tasks import (
    VT_HEAD,
    NiahTask,
    Task,
    VtTask,
    find_task,
    niah_answer_prefix,
    niah_head,
    niah_question,
    vt_answer_prefix,
    vt_question,
)
from msa.evaluation.ruler.tokens import Words, random_token, random_value, random_variables, ruler_words

CountTokens = Callable[[str], int]
# round(linspace(0, 100, 40)), where RULER puts needles into running text, in percent of its sentences
DEPTHS = tuple(round(100 * number / 39) for number in range(40))
SEED, SAMPLES = 42, 500  # RULER's
_EXAMPLE_TOKENS, _EXAMPLE_LETTERS, _LETTERS = 500, 3, 5


class SampleMaker:
    """Maker of one task's samples of one length.

    A sample depends on nothing but what is given here and its index. The haystack is measured in units: lines of noise
    or of needles, words of running text. The largest number of units that fits is searched for once, to the unit, as
    RULER does since June 2025. A sample that is too long all the same (keys differ in length) is made again with one of
    RULER's steps less, until it fits.

    Args:
        task: of :data:`~msa.evaluation.ruler.tasks.TASKS`.
        size: tokens of the prompt and those kept free for the answer, together; RULER's ``max_seq_length``.
        count: tokens of a text.
        seed: RULER's is 42; its own random numbers are not reproduced.
        essay: running text; None: :func:`~msa.evaluation.haystack.load_essay`'s.
        words: for keys; None: RULER's.

    Raises:
        ValueError: an unknown task.
        EvaluationError: wonderwords is missing, for keys that are words.
    """

    def __init__(
        self,
        task: str,
        size: int,
        count: CountTokens,
        *,
        seed: int = SEED,
        essay: Essay | None = None,
        words: Words | None = None,
    ) -> None:
        self.task, self.size, self.seed, self._count = find_task(task), size, seed, count
        uses_essay = self.task.haystack == "essay"
        self._essay = (essay or load_essay()) if uses_essay else None
        self._words = words
        if isinstance(self.task, NiahTask) and self.task.key == "words":
            self._words = words or ruler_words()

    def samples(self, num_samples: int = SAMPLES) -> Iterator[Sample]:
        """The first ``num_samples`` samples, each made when asked for."""
        return (self.sample(index) for index in range(num_samples))

    def sample(self, index: int) -> Sample:
        """Sample ``index``, from 0.

        Raises:
            ValueError: not even the smallest haystack fits; the length it takes is named.
        """
        units = self.units
        while True:
            made = self._make(units, random.Random(f"{self.seed}/{self.task.name}/{self.size}/{index}"), index)
            if made.length <= self.size:
                return made
            if units == self._fewest:
                raise ValueError(
                    f"expected a size of at least {made.length} tokens for {self.task.name}, found {self.size}"
                )
            units = max(self._fewest, units - self._step)

    @cached_property
    def units(self) -> int:
        """Units of haystack that fit, by the lengths of trial samples."""

        def length(units: int) -> int:
            return self._make(units, random.Random(f"{self.seed}/{self.task.name}/{self.size}/try/{units}"), 0).length

        return _largest(length, self.size, self._fewest)

    @property
    def _fewest(self) -> int:
        """Units there must be: distinct places for all needles."""
        if isinstance(self.task, VtTask):
            return self.task.num_hops + 1
        return 1 if self.task.haystack == "essay" else self.task.hidden_keys * self.task.num_values

    @property
    def _step(self) -> int:
        if self.task.haystack == "essay":
            return 500
        if self.size < 4096:
            return 5
        return 10 if isinstance(self.task, VtTask) else 25

    def _make(self, units: int, rng: random.Random, index: int) -> Sample:
        made = self._track(units, rng) if isinstance(self.task, VtTask) else self._hide(self.task, units, rng)
        length = sample_tokens(made, self._count)
        return replace(made, index=index, length=length, size=self.size, note=self._note(units))

    def _note(self, units: int) -> str:
        notes = []
        if self._essay:
            notes.append(self._essay.note)
            if units > len(self._essay.words):
                notes.append(f"its text is repeated {units / len(self._essay.words):.1f} times")
        if self._words and self._words.note:
            notes.append(self._words.note)
        return "; ".join(notes)

    def _hide(self, task: NiahTask, units: int, rng: random.Random) -> Sample:
        words = self._words or Words(("",), ("",))
        keys: dict[str, list[str]] = {}
        values: set[str] = set()
        for _ in range(task.hidden_keys):
            key = random_token(task.key, words, rng, keys.keys())
            keys[key] = []
            for _ in range(task.num_values):
                keys[key].append(random_token(task.value, words, rng, values))
                values.add(keys[key][-1])
        needles = [task.needle(key, value) for key, own in keys.items() for value in own]
        random.Random(self.seed).shuffle(needles)  # one order for all samples, as in RULER
        if self._essay:
            context = _into_text(self._essay.sentences(units), needles, rng)
        elif task.haystack == "noise":
            context = _into_lines([NOISE_LINE] * units, needles, rng)
        else:
            taken = set(keys)
            lines = []
            for _ in range(units):
                taken.add(key := random_token(task.key, words, rng, taken))
                lines.append(task.needle(key, random_token(task.value, words, rng, values)))
            context = _into_lines(lines, needles, rng)
        asked = rng.sample(list(keys), task.num_queries)
        return Sample(
            task=task.name,
            index=0,
            head=niah_head(task),
            context=context,
            question=niah_question(task, asked),
            answer_prefix=niah_answer_prefix(task, asked),
            answers=tuple(value for key in asked for value in keys[key]),
        )

    def _track(self, units: int, rng: random.Random) -> Sample:
        if not isinstance(self.task, VtTask):
            raise TypeError(f"expected variable tracking, found {self.task.name}")
        solved = chains(self.task, self._example_units, _EXAMPLE_LETTERS, rng)
        example = f"{solved.input}{solved.answer_prefix} {' '.join(solved.answers)}\n\n"
        return replace(chains(self.task, units, _LETTERS, rng), example=example)

    @cached_property
    def _example_units(self) -> int:
        def length(units: int) -> int:
            made = chains(self.task, units, _EXAMPLE_LETTERS, random.Random(f"{self.seed}/example/{units}"))
            return self._count(made.input + made.answer_prefix)

        return _largest(length, min(_EXAMPLE_TOKENS, self.size // 2), self._fewest)


def assignments(variables: list[str], value: str) -> list[str]:
    """The statements of a chain; those after the first end in a space, as RULER's do."""
    links = [f"VAR {new} = VAR {old} " for old, new in pairwise(variables)]
    return [f"VAR {variables[0]} = {value}", *links]


def chains(task: Task, units: int, letters: int, rng: random.Random) -> Sample:
    """Variable tracking without an example: chains in lines of noise, each in its order."""
    if not isinstance(task, VtTask):
        raise TypeError(f"expected variable tracking, found {task.name}")
    variables = random_variables(task.num_chains * (task.num_hops + 1), letters, rng)
    values: list[str] = []
    while len(values) < task.num_chains:
        value = random_value(rng)
        if value not in values:
            values.append(value)
    lines = [NOISE_LINE] * units
    for chain, value in enumerate(values):
        own = variables[chain * (task.num_hops + 1) : (chain + 1) * (task.num_hops + 1)]
        places = sorted(rng.sample(range(len(lines)), len(own)))
        for shift, (place, line) in enumerate(zip(places, assignments(own, value), strict=True)):
            lines.insert(place + shift, line)
    return Sample(
        task=task.name,
        index=0,
        head=VT_HEAD,
        context="\n".join(lines),
        question=vt_question(values[0]),
        answer_prefix=vt_answer_prefix(task, values[0]),
        answers=tuple(variables[: task.num_hops + 1]),
    )


def _into_text(sentences: list[str], needles: list[str], rng: random.Random) -> str:
    """Needles between sentences, at depths drawn without replacement from :data:`DEPTHS`."""
    places = sorted(int(len(sentences) * (depth / 100)) for depth in rng.sample(DEPTHS, len(needles)))
    for place, text in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, text)
    return " ".join(sentences)


def _into_lines(lines: list[str], needles: list[str], rng: random.Random) -> str:
    """Needles between lines, at places drawn without replacement."""
    places = sorted(rng.sample(range(len(lines)), len(needles)), reverse=True)
    for place, text in zip(places, needles, strict=True):
        lines.insert(place, text)
    return "\n".join(lines)


def _largest(length: Callable[[int], int], limit: int, fewest: int) -> int:
    """The largest number of units whose length is within the limit; ``fewest`` where none is.

    Lengths grow almost evenly, so a few guesses by proportion come close; halving finds the rest.
    """
    low, high = fewest, 2 * fewest
    at_low, at_high = length(low), length(high)
    if at_low > limit:
        return fewest
    while at_high <= limit:
        if high > 2 * limit:
            raise ValueError(
                f"{high:,} units of haystack count as at most {limit:,} tokens; the tokenizer counts too few"
            )
        low, at_low, high = high, at_high, 2 * high
        at_high = length(high)
    guesses = 6
    while high - low > 1:
        if guesses:
            middle = low + (limit - at_low) * (high - low) // (at_high - at_low) + guesses % 2
            guesses -= 1
        else:
            middle = (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        at_middle = length(middle)
        if at_middle <= limit:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low
