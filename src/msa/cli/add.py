"""``msa add``: read documents and encode them into a memory."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msa.cli.console import console, count, is_terminal, one_line, working, write_line, write_note
from msa.cli.opening import is_shared, load_model, memory_folder, open_memory, ranks_of_torchrun, with_model
from msa.cli.options import (
    MODEL_THAT_MADE_OR_MAKES_IT,
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_memory_argument,
    byte_size,
)
from msa.cli.same_files import other_files, other_ids

if TYPE_CHECKING:
    from rich.progress import Progress

    from msa.documents import Document
    from msa.memory import AddProgress, Memory
    from msa.model.bundle import MSAModel
    from msa.parallel import Ranks

_SAMPLE_CHARACTERS = 20_000  # tokenised beforehand, to tell characters from tokens
_SAMPLE_OF_ONE = 2_000
_SHOWN_NOTES = 50
_LOOKED_AHEAD = 200_000  # characters of what can be read only once
_CHARACTERS_OF_ONE = 50  # that a document counts for whatever its text
_LOOKED_UP = 200  # documents looked up in the memory at a time


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "add",
        run,
        summary="encode documents into a memory; makes the memory if there is none",
        details="Documents that are in it already, unchanged, cost nothing: stop with Ctrl-C whenever you like and\n"
        "run the same command again to go on. A document with new text replaces the old one.",
        examples=[
            "msa add mem/ notes/ report.pdf",
            'msa add mem/ corpus.jsonl      # a line: {"id": "a", "text": "…", "metadata": {"lang": "en"}}',
            "pdftotext thesis.pdf - | msa add mem/ -",
        ],
        model=MODEL_THAT_MADE_OR_MAKES_IT,
    )
    add_memory_argument(parser)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file (text, HTML, PDF), a folder, a .jsonl file, a pipe, or - for standard input",
    )
    parser.add_argument(
        "--max-size",
        type=byte_size,
        metavar="SIZE",
        help="stop before the memory's folder gets larger than this, for instance 20GB; what was added stays",
    )


@dataclass
class _Survey:
    """What the documents to add are, from one quick reading.

    Attributes:
        documents: how many there are.
        pending: how many of them are not in the memory as they are.
        characters: length of the pending ones.
        sample: beginnings of some pending ones.
        notes: lines for documents whose id or file is in the memory already, without the other.
        all_seen: False if these are only the first documents of what can be read only once.
    """

    documents: int = 0
    pending: int = 0
    characters: int = 0
    sample: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    all_seen: bool = True


@dataclass
class _Told:
    """Lines about what was read, until they are written."""

    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_skipped: int = 0

    def write(self) -> None:
        """Write those that are new."""
        for line in self.skipped:
            write_note(f"skipped: {line}")
        for line in self.notes[:_SHOWN_NOTES]:
            write_note(f"note: {line}")
        if len(self.notes) > _SHOWN_NOTES:
            write_note(f"note: {count(len(self.notes) - _SHOWN_NOTES, 'more note')} like these")
        self.num_skipped += len(self.skipped)
        self.skipped.clear()
        self.notes.clear()


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if "" in args.paths:
        raise UsageError("one of the paths is empty; name a file or a folder, '.' for the current one")
    if not is_shared():
        return _read_and_add(args, None)
    from msa.parallel import ENCODING_TIMEOUT_S, begin_encoding, end_encoding, follow_encoding

    ranks = ranks_of_torchrun(ENCODING_TIMEOUT_S)
    assert ranks is not None, "they are shared"
    with ranks:
        if ranks.rank:
            follow_encoding(lambda: _same_model(args).lm, ranks)
            return 0
        begin_encoding(ranks)  # the others wait from here on, however long the documents take to read
        try:
            return _read_and_add(args, ranks)
        finally:
            end_encoding(ranks)


def _same_model(args: argparse.Namespace) -> MSAModel:
    """The model that rank 0 encodes with."""
    from msa.bank import MemoryBank

    folder = memory_folder(args)
    made_with = None
    if not args.model and MemoryBank.exists(folder):
        with MemoryBank.open(folder, read_only=True) as bank:
            made_with = bank.spec.model_name
    return load_model(args, made_with)


def _read_and_add(args: argparse.Namespace, ranks: Ranks | None) -> int:
    from msa.bank import MemoryBank
    from msa.documents.readers import is_stream, read_documents

    told = _Told()
    documents: Callable[[], Iterator[Document]]
    all_seen = True
    if any(map(is_stream, args.paths)):
        rest = read_documents(args.paths, on_skip=told.skipped.append, on_note=told.notes.append)
        kept, all_seen = _begin(rest)
        documents = lambda: itertools.chain(kept, rest)  # noqa: E731
        first = iter(kept)
    else:
        documents = lambda: read_documents(args.paths)  # noqa: E731
        first = read_documents(args.paths, on_skip=told.skipped.append, on_note=told.notes.append)
    folder = memory_folder(args)
    memory = open_memory(args, read_only=False) if MemoryBank.exists(folder) or folder.is_file() else None
    is_new, makes_folder = memory is None, not folder.exists()
    try:
        with working("reading the documents"):
            survey = _look_at(first, memory)
        survey.all_seen = all_seen
        told.notes += survey.notes
        told.write()
        if not survey.documents:
            write_note("msa: nothing was added: none of the given paths holds a document")
            return 1
        memory = _ready(memory, survey, args, ranks)
        memory.bank.max_bytes = args.max_size
        return _add(memory, documents, survey, told)
    except BaseException:
        if is_new and memory is not None and memory.bank.version == 0:
            with contextlib.suppress(OSError):  # what failed first is what to tell
                _take_back(memory.bank.path, with_folder=makes_folder)
        raise
    finally:
        if memory is not None:
            memory.close()


def _begin(documents: Iterator[Document]) -> tuple[list[Document], bool]:
    """The first documents, about as many as are encoded at a time, and whether these are all."""
    kept: list[Document] = []
    characters = 0
    for document in documents:
        kept.append(document)
        characters += len(document.text) + _CHARACTERS_OF_ONE
        if characters > _LOOKED_AHEAD:
            return kept, False
    return kept, True


def _take_back(folder: Path, *, with_folder: bool) -> None:
    """Remove a memory that this command has made, to which nothing was committed."""
    from msa.bank.lock import LOCK_NAME
    from msa.bank.segment import SEGMENTS

    shutil.rmtree(folder / SEGMENTS)
    for file in (*folder.glob("manifest-*"), *folder.glob(".manifest-*"), folder / LOCK_NAME):
        file.unlink()
    if with_folder:
        folder.rmdir()


def _look_at(documents: Iterator[Document], memory: Memory | None) -> _Survey:
    survey = _Survey()
    sampled = 0
    while page := list(itertools.islice(documents, _LOOKED_UP)):
        present = {} if memory is None else memory.bank.content_hashes([document.id for document in page])
        survey.documents += len(page)
        pending = [document for document in page if not _is_there(document, present)]
        if memory is not None:
            survey.notes += other_files(memory.bank, [document for document in pending if document.id in present])
            survey.notes += other_ids(memory.bank, [document for document in pending if document.id not in present])
        for document in pending:
            survey.pending += 1
            survey.characters += len(document.text)
            if sampled < _SAMPLE_CHARACTERS:
                survey.sample.append(document.text[:_SAMPLE_OF_ONE])
                sampled += len(survey.sample[-1])
    return survey


def _is_there(document: Document, hashes: dict[str, str]) -> bool:
    return document.id in hashes and hashes[document.id] == hashlib.sha256(document.text.encode()).hexdigest()


def _ready(memory: Memory | None, survey: _Survey, args: argparse.Namespace, ranks: Ranks | None) -> Memory:
    """The memory, created if need be, and with its model if there is something to encode."""
    from msa.memory import Memory

    if memory is None:
        return Memory.open(memory_folder(args), model=load_model(args), ranks=ranks)
    if survey.pending or not survey.all_seen or args.model or ranks is not None:
        return with_model(memory, args, ranks)
    return memory


def _add(memory: Memory, documents: Callable[[], Iterator[Document]], survey: _Survey, told: _Told) -> int:
    before = len(memory)
    started = time.monotonic()
    try:
        with _Meter(memory, survey) as meter:
            memory.add(documents(), progress=meter.update)
    except KeyboardInterrupt as error:
        kept = count(meter.last.encoded, "document") if meter.last else "nothing yet"
        raise KeyboardInterrupt(
            f"stopped; {kept} of this run committed to {memory.bank.path}. Run the same command again to go on"
        ) from error
    finally:
        told.write()  # of what could be read only once
    seconds = time.monotonic() - started
    last = meter.last
    encoded, unchanged, tokens = (last.encoded, last.unchanged, last.tokens) if last else (0, 0, 0)
    added = len(memory) - before
    updated = max(encoded - added, 0) + (last.updated if last else 0)
    changed = [f"{added:,} added", f"{updated:,} updated", f"{unchanged:,} unchanged"]
    work = f"{count(tokens, 'token')} in {seconds:.1f} s"
    if tokens:
        work += f", {tokens / max(seconds, 1e-9):,.0f} tok/s"
    write_line(one_line(f"{', '.join(changed)}, {told.num_skipped:,} skipped; {work}"))
    return 0


class _Meter:
    """A progress bar in tokens; how many there will be, if it can be known, is estimated, better with each commit."""

    def __init__(self, memory: Memory, survey: _Survey) -> None:
        self.last: AddProgress | None = None  # of the last commit
        self._survey = survey
        self._bar: Progress | None = None
        self._expected: float | None = None
        if (survey.pending or not survey.all_seen) and is_terminal(sys.stderr):
            if survey.all_seen:
                self._expected = _expected_tokens(memory, survey)
            self._bar = _progress_bar(with_share=survey.all_seen)

    def __enter__(self) -> _Meter:
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("encoding", total=self._expected, pace="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: AddProgress) -> None:
        """Called by :meth:`msa.Memory.add` after each batch and commit."""
        if done.documents > (self.last.documents if self.last else 0):
            self.last = done
        if self._bar is None:
            return
        speed = done.tokens / max(time.monotonic() - self._started, 1e-9)
        pace = f"{speed:,.0f} tok/s" if done.tokens else ""
        total = None
        if self._expected is not None:
            if self.last is not None and self.last.encoded:  # the rest will be like the documents so far
                self._expected = self.last.tokens * self._survey.pending / self.last.encoded
                if self.last.encoded >= self._survey.pending:
                    self._expected = done.tokens
            total = max(self._expected, done.tokens)
            if done.tokens:
                pace += f", {_clock((total - done.tokens) / speed)} left"
        self._bar.update(self._task, completed=done.tokens, total=total, pace=pace)


def _expected_tokens(memory: Memory, survey: _Survey) -> float:
    """How many tokens the pending documents have, by those of the sample."""
    sampled = sum(len(text) for text in survey.sample)
    tokens = sum(len(memory.model.protocol.document_ids(1, text)) for text in survey.sample)
    return tokens * survey.characters / sampled if sampled else float(tokens)


def _clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> _clock(65), _clock(7300)
    ('1:05', '2:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _progress_bar(*, with_share: bool) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    share = ("{task.percentage:>3.0f}%",) if with_share else ()
    columns = ("{task.description}", BarColumn(), *share, "{task.completed:,.0f} tokens")
    return Progress(*columns, TextColumn("{task.fields[pace]}"), console=console(error=True), refresh_per_second=4)
