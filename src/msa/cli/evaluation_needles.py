"""What ``msa eval`` asks over needles: RULER's samples, a memory that grows, and what a reader of both must know."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msa.cli.options import UsageError

if TYPE_CHECKING:
    from msa.evaluation.haystack import Essay
    from msa.evaluation.ruler import GrowingMemory, Sample, Words
    from msa.model.bundle import MSAModel

# what only samples that are made depend on, with what it is where it is not given; files of samples have their own
_OF_MADE_SAMPLES = {"sizes": [4000], "seed": 42, "haystack": None, "held_out_words": False}
_SENTENCE_TOKENS = 64  # that a document may be longer than asked for, as far as sentences of free text are
_SAMPLES = 100  # of each task and size, where they are made


def complete(args: argparse.Namespace, tasks: Collection[str]) -> None:
    """Give the options of ``msa eval ruler`` their defaults.

    Raises:
        UsageError: samples are read, and an option is given that only made ones depend on; or held-out words are asked
            for, and no task has any.
    """
    for name, default in _OF_MADE_SAMPLES.items():
        given = getattr(args, name)
        if args.read and given is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for samples that are made, --read takes them as they are")
        if not args.read and given is None:
            setattr(args, name, default)
    if not args.read:
        args.samples = args.samples or _SAMPLES
    _check_words(args, tasks)


def ruler_samples(
    args: argparse.Namespace, tasks: Collection[str], count: Callable[[str], int]
) -> Iterator[tuple[int, Iterable[Sample]]]:
    """RULER's samples with their size; that of samples in files is the tokens of the longest."""
    from msa.evaluation.ruler import SampleMaker, read_by_size

    if args.read:
        yield from read_by_size(Path(args.read), count, tasks=tasks, num_samples=args.samples)
        return
    essay, words = _essay(args), _words(args)
    for size in args.sizes:
        for task in tasks:
            maker = SampleMaker(task, size, count, seed=args.seed, essay=essay, words=words)
            maker.sample(0)  # raises where none fits
            yield size, maker.samples(args.samples)


def growing_memory(args: argparse.Namespace, model: MSAModel) -> GrowingMemory:
    """The memory that is grown; its documents' size and the number of its questions are options from here on."""
    from msa.evaluation.ruler import GrowingMemory

    _check_words(args, [args.task])
    args.document_tokens = document_tokens(args, model)
    args.questions = num_questions(args)
    return GrowingMemory(
        args.task,
        args.sizes,
        counter(model),
        num_questions=args.questions,
        seed=args.seed,
        document_tokens=args.document_tokens,
        essay=_essay(args),
        words=_words(args),
    )


def document_tokens(args: argparse.Namespace, model: MSAModel) -> int:
    """What is asked for, what the run that is gone on from has, or 512, if the model encodes that as one document."""
    return args.document_tokens or _begun_with(args, "document_tokens") or whole_document_tokens(model)


def whole_document_tokens(model: MSAModel) -> int:
    """About how many tokens a document of RULER's has: a longer one would be cut again, into a part and a remnant."""
    from msa.evaluation.ruler import DOCUMENT_TOKENS

    # documents end where a sentence does
    return max(1, min(DOCUMENT_TOKENS, model.protocol.strings.max_document_tokens - _SENTENCE_TOKENS))


def num_questions(args: argparse.Namespace) -> int:
    """Of the first size: what is asked for, what the run that is gone on from has, or one needle a document."""
    from msa.evaluation.ruler import DOCUMENT_TOKENS, default_questions

    number: int | None = args.questions or _begun_with(args, "questions")
    size: int = args.document_tokens or DOCUMENT_TOKENS
    return number or default_questions(args.task, args.sizes[0], document_tokens=size)


def _begun_with(args: argparse.Namespace, name: str) -> int | None:
    """A number among the settings of the run that is gone on from; None: there is none."""
    from msa.evaluation.records import RECORDS_NAME, begun_with

    number: int | None = (begun_with(Path(args.out) / RECORDS_NAME) or {}).get(name)
    return number


def untaught(ways: Sequence[str]) -> list[str]:
    """What to say where networks that know made-up needles alone are asked about other documents."""
    from msa.evaluation.alternatives.registry import ALTERNATIVES

    taught = [way for way in ways if ALTERNATIVES[way].train is not None]
    if not taught:
        return []
    return [
        f"{', '.join(taught)}: trained on made-up needles alone, and asked about other documents here; the row says "
        "what becomes of such a network then, not what one trained for them could do"
    ]


def seen_before(args: argparse.Namespace, model: MSAModel, tasks: Collection[str]) -> list[str]:
    """What a reader must know where needles like these, and words of their keys, were met in training.

    No checkpoint says so; of models that come by name it is known, of others not.
    """
    from msa.evaluation.alternatives import ALTERNATIVES
    from msa.evaluation.ruler import NIAH
    from msa.zoo import TRAINED_ON_NEEDLES

    ways = [name for name in getattr(args, "ways", []) if ALTERNATIVES[name].train is not None]
    trained = [*([model.name] if model.name in TRAINED_ON_NEEDLES else []), *ways]
    if not trained or not set(tasks) & set(NIAH):
        return []
    if args.held_out_words:
        keys = "keys here are of the words kept out of training, the sentence is not new"
    elif getattr(args, "read", None):
        keys = "keys here may be of words seen in training"
    else:
        keys = "keys here may be of words seen in training unless --held-out-words"
    met = "made-up needles of this very sentence with nine tenths of RULER's words"
    return [f"{', '.join(trained)}: trained, wholly or in part, on {met}; {keys}"]


def counter(model: MSAModel) -> Callable[[str], int]:
    """Tokens of a text, in the model's own."""
    return lambda text: len(model.protocol.plain_ids(text))


def _check_words(args: argparse.Namespace, tasks: Collection[str]) -> None:
    from msa.evaluation.ruler import find_task

    if args.held_out_words and not any(getattr(find_task(task), "key", "") == "words" for task in tasks):
        raise UsageError(f"--held-out-words is for keys that are words; those of {', '.join(tasks)} are none")


def _words(args: argparse.Namespace) -> Words | None:
    from msa.evaluation.ruler import ruler_words

    return ruler_words(held_out=True) if args.held_out_words else None


def _essay(args: argparse.Namespace) -> Essay | None:
    from msa.evaluation.haystack import load_essay

    return load_essay([Path(path) for path in args.haystack]) if args.haystack else None
