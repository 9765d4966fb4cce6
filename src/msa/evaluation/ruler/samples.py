"""One RULER sample: the parts of its prompt, the needles in its context, and how a prompt is taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from msa.evaluation.ruler.tasks import VT_LABEL, NiahTask, Task, VtTask, find_task

# a needle of any kind, and an assignment; a key may hold spaces ("ad hoc-dump truck"), a value no full stop
_NEEDLE = re.compile(r"One of the special magic (?:words|numbers|uuids) for ([^\n:]{1,100}?) is: ([^\n.]{1,100})\.")
_ASSIGNMENT = re.compile(r"VAR ([A-Z]+) = ((?:VAR [A-Z]+)|\d+)")
_ASKED = re.compile(r" for (.+) mentioned in the provided text")
# \s where RULER has a line break: its --remove_newline_tab makes them spaces
_NIAH_HEAD = re.compile(
    r"(?:Some|A) special magic \w+ (?:are|is) hidden within the following text\. Make sure to memorize it\. "
    r"I will quiz you about the \w+ afterwards\.(\s)"
)
_NIAH_QUESTION = re.compile(
    r"\s(What (?:are all|is) the special magic \w+ for .{1,1000}? mentioned in the provided text\?)"
)
_NIAH_PREFIX = re.compile(r" ?The special magic \w+ for .{1,1000}? mentioned in the provided text (?:are|is)")
_VT_HEAD = re.compile(
    r"Memorize and track the chain\(s\) of variable assignment hidden in the following text\.(\s{1,2})"
)
_VT_QUESTION = re.compile(r"\sQuestion: (Find all variables that are assigned the value \w+ in the text above\.)")
_VT_PREFIX = re.compile(
    r" ?Answer: According to the chain\(s\) of variable assignment in the text above, \w+ variables are "
    r"assi?gi?ned the value \w+, they are:\s*"
)


class NotRulerError(ValueError):
    """A prompt that is not as RULER's template has it; the message says what is missing, as half a sentence."""


@dataclass(frozen=True)
class Needle:
    """A hidden sentence: where it stands in the context, and what it says."""

    start: int
    end: int
    key: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A context and a question over it.

    Attributes:
        task: name of the task.
        index: number of the sample in its set.
        head: prompt before the context.
        context: the haystack with its needles.
        question: prompt after the context.
        answer_prefix: how the answer must begin, with the space before it.
        answers: RULER's ``outputs``: all of them are wanted.
        example: a solved example before the prompt (variable tracking); empty otherwise.
        length: tokens of prompt and answer prefix, and those kept free for the answer; 0: not known.
        size: the length it was made for; 0: not known.
        note: what a reader of scores must know of the haystack and the keys; empty where nothing.
    """

    task: str
    index: int
    head: str
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    example: str = ""
    length: int = 0
    size: int = 0
    note: str = ""

    @property
    def input(self) -> str:
        """The prompt as RULER writes it, without the answer prefix."""
        if isinstance(find_task(self.task), VtTask):
            return f"{self.example}{self.head}\n\n{self.context}\n{VT_LABEL}{self.question}"
        return f"{self.head}\n{self.context}\n{self.question}"

    def needles(self) -> list[Needle]:
        """Every needle in the context, in order, asked for or not."""
        return find_needles(find_task(self.task), self.context)

    def asked(self) -> list[Needle]:
        """Those of :meth:`needles` that the answer needs: one a reference, or all assignments of the chain."""
        if isinstance(find_task(self.task), VtTask):
            return [needle for needle in self.needles() if needle.key in self.answers]
        keys = asked_keys(self.question)
        return [needle for needle in self.needles() if needle.key in keys and needle.value in self.answers]


def sample_tokens(sample: Sample, count: Callable[[str], int]) -> int:
    """Tokens of a sample as RULER counts them: prompt, answer prefix, and those kept free for the answer."""
    return count(sample.input + sample.answer_prefix) + find_task(sample.task).tokens_to_generate


def find_needles(task: Task, context: str) -> list[Needle]:
    """The needles in a text, recognised by their template."""
    pattern = _NEEDLE if isinstance(task, NiahTask) else _ASSIGNMENT
    return [Needle(*match.span(), *match.groups()) for match in pattern.finditer(context)]


def asked_keys(question: str) -> list[str]:
    """Keys a needle question asks for.

    >>> asked_keys("What are all the special magic numbers for a-b, c-d, and e-f mentioned in the provided text?")
    ['a-b', 'c-d', 'e-f']
    """
    found = _ASKED.search(question)
    return re.split(r", and |, ", found[1]) if found else []


def split_prompt(task: Task, prompt: str) -> tuple[str, str, str, str, str]:
    """Take a prompt of RULER's apart: example, head, context, question, and the answer prefix where it has one.

    What a model's chat template put around it is dropped.

    Raises:
        NotRulerError: the template's words are not there, or nothing between them.
    """
    if isinstance(task, NiahTask):
        heads, questions, prefix = _NIAH_HEAD.finditer(prompt), _NIAH_QUESTION, _NIAH_PREFIX
        head = next(heads, None)
    else:
        questions, prefix = _VT_QUESTION, _VT_PREFIX
        head = max(_VT_HEAD.finditer(prompt), key=re.Match.start, default=None)
    if head is None:
        raise NotRulerError("does not hold the words that begin the prompts of this task")
    question = max(questions.finditer(prompt, head.end() - 1), key=re.Match.start, default=None)
    if question is None:
        raise NotRulerError("does not hold the question of this task after the context")
    context = prompt[head.end() : question.start()]
    if not context.strip():
        raise NotRulerError("has no context between the words that begin the prompt and the question")
    example = ""
    if isinstance(task, VtTask):
        first = _VT_HEAD.search(prompt)
        example = prompt[first.start() if first else 0 : head.start()]
    found = prefix.search(prompt, question.end())
    return example, head[0].rstrip(), context, question[1], found[0] if found else ""
