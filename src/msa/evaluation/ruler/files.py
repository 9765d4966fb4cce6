"""RULER's files, ``<folder>/<task>/validation.jsonl``: those NVIDIA's scripts write, lm-eval's samples, and ours."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from msa.errors import EvaluationError
from msa.evaluation.ruler.documents import check_answers
from msa.evaluation.ruler.samples import NotRulerError, Sample, sample_tokens, split_prompt
from msa.evaluation.ruler.tasks import TASKS, find_task

FILE = "validation.jsonl"


def write_samples(folder: Path, samples: Iterable[Sample], count: Callable[[str], int]) -> list[Path]:
    """Write samples as RULER does, a file a task; an existing file is replaced once all are written.

    Fields: ``index`` (number of the sample), ``input``, ``outputs``, ``length``, ``length_w_model_temp`` (the same: no
    chat template is added), ``answer_prefix`` and ``token_position_answer``, the tokens before the first place of the
    first answer.

    Args:
        folder: where the tasks' folders are made.
        samples: of any tasks.
        count: tokens of a text.

    Returns:
        The files written.
    """
    parts: dict[str, TextIO] = {}
    with ExitStack() as open_files:
        for sample in samples:
            if sample.task not in parts:
                part = _part(folder, sample.task)
                part.parent.mkdir(parents=True, exist_ok=True)
                parts[sample.task] = open_files.enter_context(open(part, "w", encoding="utf-8"))
            parts[sample.task].write(json.dumps(_record(sample, count), ensure_ascii=False) + "\n")
    paths = []
    for task in parts:
        paths.append(folder / task / FILE)
        os.replace(_part(folder, task), paths[-1])
    return paths


def _part(folder: Path, task: str) -> Path:
    return folder / task / f"{FILE}.part"


def _record(sample: Sample, count: Callable[[str], int]) -> dict[str, Any]:
    prompt = sample.input
    return {
        "index": sample.index,
        "input": prompt,
        "outputs": list(sample.answers),
        "length": sample.length,
        "length_w_model_temp": sample.length,
        "answer_prefix": sample.answer_prefix,
        "token_position_answer": count(prompt[: prompt.find(sample.answers[0])]),
    }


def read_folder(folder: Path, tasks: Collection[str] = TASKS) -> Iterator[Sample]:
    """Samples of tasks of :data:`~msa.evaluation.ruler.tasks.TASKS` in a folder of RULER's layout, task by task.

    Args:
        folder: of the tasks' folders.
        tasks: whose samples are read; those that are not there are passed over.

    Raises:
        EvaluationError: no task of RULER is there, or what :func:`read_samples` raises.
    """
    found = [(name, folder / name / FILE) for name in TASKS if (folder / name / FILE).is_file()]
    if not found:
        raise EvaluationError(f"{folder} holds no RULER task; expected <task>/{FILE} with a task of {', '.join(TASKS)}")
    return (sample for name, path in found if name in tasks for sample in read_samples(path, name))


def read_by_size(
    folder: Path, count: Callable[[str], int], *, tasks: Collection[str] = TASKS, num_samples: int | None = None
) -> Iterator[tuple[int, Iterator[Sample]]]:
    """Samples of a folder of RULER's layout, by the length they were made for, shortest first; each with its tokens.

    The tokens are those of the longest of them (:func:`~msa.evaluation.ruler.samples.sample_tokens`), counted: files of
    NVIDIA's scripts do not say what length they were made for, and others were made with another tokenizer. The files
    are read once to count, and again for each length.

    Args:
        folder: of the tasks' folders.
        count: tokens of a text.
        tasks: whose samples are read and counted.
        num_samples: of each task and length, the first ones; None: all. It changes none of the tokens given, which are
            of the longest there is, so that more of them are more of the same.

    Raises:
        EvaluationError: as :func:`read_folder`.
    """
    longest: dict[int, int] = {}
    for sample in read_folder(folder, tasks):
        longest[sample.size] = max(longest.get(sample.size, 0), sample_tokens(sample, count))
    for size, tokens in sorted(longest.items(), key=lambda item: item[1]):
        yield tokens, _of_size(folder, tasks, size, num_samples)


def _of_size(folder: Path, tasks: Collection[str], size: int, num_samples: int | None) -> Iterator[Sample]:
    taken: Counter[str] = Counter()
    for sample in read_folder(folder, tasks):
        if sample.size == size and (num_samples is None or taken[sample.task] < num_samples):
            taken[sample.task] += 1
            yield sample


def read_samples(path: Path, task: str) -> Iterator[Sample]:
    """Samples of one file, in order; a sample's index is the number of its line, from 0.

    Files of NVIDIA's scripts of any year and lm-eval's (``gen_prefix``, ``max_length``) are read. Their ``index`` is
    not looked at: since 2025 NVIDIA's holds the place of the answer in the prompt, so two samples may share one.

    Args:
        path: the file.
        task: name of its task.

    Raises:
        ValueError: an unknown task.
        EvaluationError: a file that cannot be read or has no samples, or a broken line; file and line are named.
    """
    find_task(task)
    return _samples(path, task)


def _samples(path: Path, task: str) -> Iterator[Sample]:
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    index = 0
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _sample(line, task, index, f"{path}, line {number}")
                index += 1
    if not index:
        raise EvaluationError(f"{path} holds no samples")


def _sample(line: bytes, task: str, index: int, where: str) -> Sample:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}, is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise EvaluationError(f"{where}, holds {type(record).__name__}; expected an object with 'input' and 'outputs'")
    prompt, outputs = record.get("input"), record.get("outputs")
    if not isinstance(prompt, str):
        raise EvaluationError(f"{where}, has no text under 'input'")
    if not (isinstance(outputs, list) and outputs and all(isinstance(one, str) and one for one in outputs)):
        raise EvaluationError(f"{where}, has under 'outputs' {outputs!r}; expected a list of at least one text")
    try:
        example, head, context, question, prefix = split_prompt(find_task(task), prompt)
    except NotRulerError as error:
        raise EvaluationError(f"{where}, under 'input' {error}; is it a sample of {task}?") from error
    sample = Sample(
        task=task,
        index=index,
        head=head,
        context=context,
        question=question,
        answer_prefix=_text(record, where, "answer_prefix", "gen_prefix") or prefix,
        answers=tuple(outputs),
        example=example,
        length=_number(record, where, "length"),
        size=_number(record, where, "max_length"),
    )
    try:
        check_answers(sample, sample.asked())
    except EvaluationError as error:
        raise EvaluationError(f"{where}: {error}") from error
    return sample


def _text(record: dict[str, Any], where: str, *names: str) -> str:
    for name in names:
        value = record.get(name) or ""
        if not isinstance(value, str):
            raise EvaluationError(f"{where}, has under {name!r} {value!r}; expected a text")
        if value:
            return value if value.startswith(" ") else f" {value}"  # lm-eval's begins without the space
    return ""


def _number(record: dict[str, Any], where: str, name: str) -> int:
    value = record.get(name) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise EvaluationError(f"{where}, has under {name!r} {value!r}; expected a number of tokens")
    return value
