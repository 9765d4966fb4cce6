"""What an evaluation keeps with its records: the options that decide them, and what the given files hold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msa.evaluation import QuestionSet
    from msa.model.bundle import MSAModel

# options that change no answer and no score: whom and what is asked, what is shown, where it is kept
_HARMLESS = {
    "run",
    "debug",
    "verbose",
    "out",
    "write",
    "note",
    "ways",
    "limits",
    "tasks",
    "sizes",
    "metric",
    "skip_bad",
}
# options that change answers or scores and are kept by what they come to: the model's, the judge's in its own file
_RESOLVED = {"model", "device", "dtype", "judge", "rubric"}
# options that are kept only where they are given: a folder that was begun before there were any goes on without them
_LATER = {"held_out_words", "split", "corpus"}


def settings_of(task: str, args: argparse.Namespace, model: MSAModel, **contents: str) -> dict[str, Any]:
    """What decides the results: the model, its device and number format, all options but harmless ones, and contents.

    Args:
        task: of ``msa eval``.
        args: its options.
        model: that answers.
        contents: digests of what the folders and files that options name hold; haystacks and encoders are added.
    """
    options = {name: value for name, value in vars(args).items() if name not in _HARMLESS | _RESOLVED}
    options = {name: value for name, value in options.items() if value or name not in _LATER}
    if "task" in options:
        options["ruler_task"] = options.pop("task")
    for name in ("haystack", "encoder"):
        if options.get(name):
            contents[name] = digest_of(options[name])
    device, dtype = model.lm.device.type, str(model.lm.dtype).removeprefix("torch.")
    stamp = {"task": task, "model": model.name, "fingerprint": model.fingerprint, "device": device, "dtype": dtype}
    held = model.protocol.strings.constrain_answers
    if held != "none":  # the fingerprint is of what encodes documents, and says nothing of this
        stamp["constrain_answers"] = held
    return {**stamp, **options, "contents": contents or None}


def settings_of_records(folder: Path, settings: dict[str, Any], extendable: Sequence[str]) -> dict[str, Any]:
    """The settings that the records in a folder go with.

    Args:
        folder: of the run.
        settings: of it now.
        extendable: those that say how many questions are asked and change none of them. A run that goes on may have
            others than it was begun with, which stay in its records' first line.
    """
    from msa.evaluation.records import RECORDS_NAME, begun_with

    begun = begun_with(folder / RECORDS_NAME) or {}
    return {**settings, **{name: begun[name] for name in extendable if name in begun}}


def digest_of(paths: str | Sequence[str]) -> str:
    """Digest of files, or of all files in a folder."""
    from msa.evaluation.digests import files_digest

    given = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    folders = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in given]
    return files_digest(path for folder in folders for path in folder if not path.is_dir())


def ruler_digest(args: argparse.Namespace) -> dict[str, str]:
    """Of RULER's files in ``--read``; whatever else lies there is not looked at."""
    from msa.evaluation.ruler.files import FILE

    return {"read": digest_of([str(path) for path in sorted(Path(args.read).glob(f"*/{FILE}"))])} if args.read else {}


def set_digest(questions: QuestionSet, is_growing: bool) -> str:
    """Of the documents, and of the questions where they say which documents come first; else each record keeps its own.

    So further questions about the same documents go on with what is there.
    """
    from msa.evaluation.digests import value_digest

    asked = [[one.id, one.positives] for one in questions.questions] if is_growing else []
    return value_digest([list(questions.documents.items()), asked])
