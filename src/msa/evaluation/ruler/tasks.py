"""RULER's tasks that test retrieval: their parameters and the words of their prompts.

Parameters are those of ``scripts/synthetic.yaml``, words those of ``scripts/data/synthetic/constants.py`` and
``niah.py`` of NVIDIA/RULER (arXiv 2404.06654).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msa.training.data.needles import NEEDLE

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True, kw_only=True)
class NiahTask:
    """One of the needle tasks.

    Attributes:
        name: RULER's.
        haystack: the noise line again and again, running text, or lines that are needles themselves.
        key, value: kinds of keys and values.
        num_keys: keys hidden; at least as many as are asked for.
        num_values: values hidden for each key.
        num_queries: keys asked for.
        tokens_to_generate: tokens kept free for the answer.
    """

    name: str
    haystack: Haystack
    key: Kind
    value: Kind
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    tokens_to_generate: int = 128

    @property
    def hidden_keys(self) -> int:
        """Keys hidden in fact: RULER's max(k, q)."""
        return max(self.num_keys, self.num_queries)

    @property
    def is_single(self) -> bool:
        """Whether one value is asked for, which puts the prompt into the singular."""
        return self.num_queries * self.num_values == 1

    @property
    def noun(self) -> str:
        """What is asked for, in the prompt's number: ``number``, ``uuids``."""
        return self.value.removesuffix("s") if self.is_single else self.value

    def needle(self, key: str, value: str) -> str:
        """The hidden sentence, which has the plural whatever the prompt has."""
        return NEEDLE.format(kind=self.value.removesuffix("s"), key=key, value=value)


@dataclass(frozen=True, kw_only=True)
class VtTask:
    """Variable tracking: which variables have a value, by a chain of assignments.

    Attributes:
        name: RULER's.
        haystack: the noise line.
        num_chains: chains hidden; the first is asked for.
        num_hops: assignments of a variable to a variable in each.
        tokens_to_generate: tokens kept free for the answer.
    """

    name: str
    haystack: Haystack = "noise"
    num_chains: int = 1
    num_hops: int = 4
    tokens_to_generate: int = 30


Task = NiahTask | VtTask

_NIAH = (
    NiahTask(name="niah_single_1", haystack="noise", key="words", value="numbers"),
    NiahTask(name="niah_single_2", haystack="essay", key="words", value="numbers"),
    NiahTask(name="niah_single_3", haystack="essay", key="words", value="uuids"),
    NiahTask(name="niah_multikey_1", haystack="essay", key="words", value="numbers", num_keys=4),
    NiahTask(name="niah_multikey_2", haystack="needle", key="words", value="numbers"),
    NiahTask(name="niah_multikey_3", haystack="needle", key="uuids", value="uuids"),
    NiahTask(name="niah_multivalue", haystack="essay", key="words", value="numbers", num_values=4),
    NiahTask(name="niah_multiquery", haystack="essay", key="words", value="numbers", num_queries=4),
)
NIAH = tuple(task.name for task in _NIAH)
TASKS: dict[str, Task] = {task.name: task for task in (*_NIAH, VtTask(name="vt"))}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"expected a RULER task of {', '.join(TASKS)}, found {name!r}")
    return TASKS[name]


def niah_head(task: NiahTask) -> str:
    """The prompt before the context."""
    some, are = ("A", "is") if task.is_single else ("Some", "are")
    return (
        f"{some} special magic {task.noun} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {task.noun} afterwards."
    )


def niah_question(task: NiahTask, keys: Sequence[str]) -> str:
    """The prompt after the context."""
    what = "is" if task.is_single else "are all"
    return f"What {what} the special magic {task.noun} for {join_keys(keys)} mentioned in the provided text?"


def niah_answer_prefix(task: NiahTask, keys: Sequence[str]) -> str:
    """How the answer must begin, with the space before it."""
    are = "is" if task.is_single else "are"
    return f" The special magic {task.noun} for {join_keys(keys)} mentioned in the provided text {are}"


def join_keys(keys: Sequence[str]) -> str:
    """Keys as the question names them.

    >>> join_keys(["a", "b", "c"])
    'a, b, and c'
    """
    return f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]


VT_HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text."
VT_LABEL = "Question: "


def vt_question(value: str) -> str:
    """The prompt after the context, without the label before it."""
    return f"Find all variables that are assigned the value {value} in the text above."


def vt_answer_prefix(task: VtTask, value: str) -> str:
    """How the answer must begin, with the spaces around it."""
    return (
        " Answer: According to the chain(s) of variable assignment in the text above, "
        f"{task.num_hops + 1} variables are assgined the value {value}, they are: "  # RULER's spelling
    )
