"""lm-evaluation-harness's prompts, answered with a memory; nothing here needs lm-eval."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msa.errors import EvaluationError
from msa.evaluation.ruler.documents import DOCUMENT_TOKENS, cut
from msa.evaluation.ruler.samples import Needle, NotRulerError, find_needles, split_prompt
from msa.evaluation.ruler.tasks import TASKS
from msa.generation.options import AskOptions
from msa.generation.sampling import Sampling
from msa.memory import Memory
from msa.model.bundle import MSAModel

_SAMPLED = ("temperature", "top_p", "top_k", "seed")
_CUE = re.compile(r"\s*\bAnswer:\s*\Z")


class MemoryAnswers:
    """Answers prompts from a memory, or each from the context inside it.

    Args:
        model: encodes and answers.
        memory: folder of the memory that is asked every prompt as it is; None with ``context``.
        context: True, or the words before the question: see ``by`` of :func:`split`; False with ``memory``.
        batch_size: prompts asked at a time.
        document_tokens: about how long a document of a context is.
        options: fields of :class:`msa.AskOptions`.

    Raises:
        EvaluationError: both or none of ``memory`` and ``context``, or a value that one of the others cannot have.
        BankError: the memory cannot be opened, or was made by another model.
    """

    def __init__(
        self,
        model: MSAModel,
        memory: str | Path | None,
        context: bool | str = False,
        *,
        batch_size: int = 1,
        document_tokens: int = DOCUMENT_TOKENS,
        **options: Any,
    ) -> None:
        if (memory is None) == (context is False):
            raise EvaluationError("expected either memory=FOLDER or cut=true, and not both")
        if not isinstance(context, bool) and not (isinstance(context, str) and context.strip()):
            raise EvaluationError(f"cut must be true or the words before the question, got {context!r}")
        for name, value in (("batch_size", batch_size), ("document_tokens", document_tokens)):
            if not isinstance(value, int) or value < 1:
                raise EvaluationError(f"{name} must be 1 or more, got {value!r}")
        try:
            AskOptions(**options)
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"of the model arguments {error}") from error
        self._model, self._memory, self._context = model, memory, context
        self._batch_size, self._document_tokens, self._options = batch_size, document_tokens, options
        if memory is not None:
            with self._opened(None):
                pass

    def __str__(self) -> str:
        if self._memory is not None:
            return f"memory {self._memory}"
        return f"each prompt's context, cut into documents of about {self._document_tokens} tokens"

    def answer(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[int, str]]:
        """Answer prompts, each with lm-eval's settings for it; yields (number of the request, answer).

        Prompts of one context are answered one after the other, from one memory.

        Raises:
            EvaluationError: a prompt that ``cut`` does not understand, or a setting a memory does not have.
        """
        contexts: dict[Context | None, dict[tuple[tuple[str, Any], ...], list[int]]] = {}
        questions: list[str] = []
        for index, (prompt, settings) in enumerate(requests):
            context, question = (None, prompt) if self._context is False else split(prompt, self._context)
            questions.append(question)
            options = tuple(ask_options(settings).items())
            contexts.setdefault(context, {}).setdefault(options, []).append(index)
        for context, by_options in contexts.items():
            with self._opened(context) as memory:
                for options, indices in by_options.items():
                    for start in range(0, len(indices), self._batch_size):
                        batch = indices[start : start + self._batch_size]
                        asked = [questions[index] for index in batch]
                        answers = memory.ask_many(asked, **self._options, **dict(options))
                        yield from ((i, answer.text) for i, answer in zip(batch, answers, strict=True))

    @contextmanager
    def _opened(self, context: Context | None) -> Iterator[Memory]:
        """The memory folder, or a temporary one with the documents of a context."""
        if context is None:
            with Memory.open(str(self._memory), self._model, read_only=True) as memory:
                yield memory
            return
        with tempfile.TemporaryDirectory(prefix="msa-lm-eval-") as folder, Memory.open(folder, self._model) as memory:
            memory.add({"id": name, "text": text} for name, text in self.documents(context).items())
            yield memory

    def documents(self, context: Context) -> dict[str, str]:
        """The documents of a context by id, in order."""
        pieces = cut(context.text, context.needles, self._count, self._document_tokens)
        return {f"{number:06d}": piece.text for number, piece in enumerate(pieces)}

    def _count(self, text: str) -> int:
        return len(self._model.protocol.plain_ids(text))


@dataclass(frozen=True)
class Context:
    """The text inside a prompt that the question is about, and the needles in it."""

    text: str
    needles: tuple[Needle, ...] = ()


def split(prompt: str, by: bool | str) -> tuple[Context, str]:
    """Context and question of a prompt.

    Left out are what a memory cannot be given, the beginning of the answer (RULER's answer prefix, or a last
    ``Answer:``), and of RULER's prompts what stands before the context.

    Args:
        prompt: the prompt.
        by: True: it is one of RULER's needle tasks or of variable tracking. A text: everything before its last place
            is the context, everything after it the question.

    Raises:
        EvaluationError: the prompt is not so.

    >>> split("The sky is blue. Grass is green.\\nQuestion: What is blue?\\nAnswer:", "Question:")
    (Context(text='The sky is blue. Grass is green.', needles=()), 'What is blue?')
    """
    if isinstance(by, str):
        before, found, question = prompt.rpartition(by)
        question = _CUE.sub("", question).strip()
        if not (found and before.strip() and question):
            raise EvaluationError(
                f"cut={by!r} expects prompts that hold {by!r} with a context before and a question after its last "
                f"place, got one that ends with {prompt[-100:]!r}"
            )
        return Context(before.strip()), question
    for task in (TASKS["niah_single_1"], TASKS["vt"]):
        try:
            _, _, context, question, _ = split_prompt(task, prompt)
        except NotRulerError:
            continue
        return Context(context, tuple(find_needles(task, context))), question
    raise EvaluationError(
        "cut=true expects prompts of RULER's needle tasks or variable tracking, got one that begins with "
        f"{prompt[:100]!r}. For others name the words before the question, as in cut='Question:'"
    )


def ask_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's settings of a request, normalised by it, as :meth:`msa.Memory.ask` takes them.

    Raises:
        EvaluationError: a setting that a memory does not have, or a value outside its range.

    >>> ask_options({"until": ["\\n"], "max_gen_toks": 32, "do_sample": False, "temperature": 0.0})
    {'max_new_tokens': 32, 'stop': ('\\n',), 'temperature': 0.0}
    """
    rest = dict(settings)
    most, until = rest.pop("max_gen_toks"), rest.pop("until")
    if most < 1:
        raise EvaluationError(f"max_gen_toks must be at least 1, got {most}")
    return {"max_new_tokens": most, "stop": tuple(text for text in until if text), **sampled(rest)}


def sampled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens are drawn, as :class:`msa.Sampling` takes it.

    Raises:
        EvaluationError: a setting that is not one of them, or a value outside its range.
    """
    drawn = dict(settings)
    do_sample = drawn.pop("do_sample", None)
    if drawn.get("num_beams") == 1:
        del drawn["num_beams"]
    for name in drawn:
        if name not in _SAMPLED:
            known = ", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLED))
            raise EvaluationError(f"the generation setting {name}={drawn[name]!r} is not offered. Known: {known}")
    drawn.setdefault("temperature", 1.0 if do_sample else 0.0)
    if do_sample is False:
        drawn["temperature"] = 0.0
    if drawn["temperature"] and drawn.get("seed") is None:
        drawn["seed"] = int(torch.randint(2**31, ()))
    try:
        Sampling(**drawn)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"of the generation settings {error}") from error
    return drawn
