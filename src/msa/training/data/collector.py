"""What all readers of training files share: records with their place, and the collector of what they say.

A reader never stops at the first mistake. It raises :class:`Fault` for one record, :meth:`Collector.faults` turns that
into a problem, and :meth:`Collector.finish` reports all of them together.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msa.documents.formats import clean_surrogates, wide_encoding
from msa.errors import TrainingDataError
from msa.training.data.samples import Sample, TrainingSet

logger = logging.getLogger(__name__)

_SHOWN_PROBLEMS = 10
_SHOWN_CHARS = 60
_BLANK = re.compile(r"[ \t\r\n]*")


class Fault(Exception):
    """One record that cannot be used; ``kind`` groups problems in the report."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True)
class Place:
    """Where a record stands: a file, a line counted from 1, and an item counted from 1 if the file is one JSON list."""

    file: str
    line: int = 0
    item: int = 0

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}" + (f": item {self.item}" if self.item else "")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    place: Place
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class Collector:
    """Documents, samples and problems, as the files are read.

    Args:
        max_document_tokens: longer documents are problems; None: any length.
        count_tokens: text → number of tokens.
        has_corpus: whether the caller gave a corpus, which only changes the words of a report.
    """

    def __init__(
        self,
        *,
        max_document_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        has_corpus: bool = False,
    ) -> None:
        self.corpus: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._samples: list[tuple[Place, Sample]] = []
        self._seen: dict[str, tuple[str, Place]] = {}  # every id, also of documents that are left out
        self._unused_keys: Counter[str] = Counter()
        self._max_tokens, self._count_tokens, self._has_corpus = max_document_tokens, count_tokens, has_corpus

    def add_problem(self, place: Place, kind: str, what: str) -> None:
        """Note a problem; the record at ``place`` is not used."""
        self.problems.append(Problem(place, kind, what))

    @contextlib.contextmanager
    def faults(self, place: Place) -> Iterator[None]:
        """Turn a :class:`Fault` of the block into a problem at ``place``."""
        try:
            yield
        except Fault as fault:
            self.add_problem(place, fault.kind, str(fault))

    def note_unused(self, record: Mapping[str, Any], known: Iterable[str]) -> None:
        """Count the keys of a record that no reader looks at, to be logged at the end."""
        self._unused_keys.update(record.keys() - set(known))

    def add_document(self, name: str, text: str, place: Place) -> None:
        """Put a text into the corpus, unless it is empty or too long, which is a problem.

        Raises:
            Fault: another text has this id.
        """
        if name in self._seen:
            first, first_place = self._seen[name]
            if first != text:
                what = f"the id {shorten(name)} has another text in {first_place}. Rename one"
                raise Fault("one id, two texts", what)
            return
        self._seen[name] = (text, place)
        if what_is_wrong := self._unfit(text):
            kind, what = what_is_wrong
            self.add_problem(place, kind, f"the document {shorten(name)} {what}")
        else:
            self.corpus[name] = text

    def _unfit(self, text: str) -> tuple[str, str] | None:
        if not text.strip():
            return "empty document", "has no text"
        if self._max_tokens is not None and self._count_tokens is not None:
            tokens = self._count_tokens(text)
            if tokens > self._max_tokens:
                return "too long", f"has {tokens} tokens, {self._max_tokens} are allowed. Cut it into parts"
        return None

    def add_sample(self, place: Place, texts: Iterable[tuple[str, str]] = (), **fields: Any) -> None:
        """Add a sample and the texts that came with it; a document that is a positive is not also listed as a further.

        Args:
            place: of the sample.
            texts: (id, text) of documents given inside the sample.
            fields: of :class:`Sample`.

        Raises:
            Fault: the sample contradicts itself, or a text has another one's id.
        """
        positives = fields["positives"] = tuple(fields["positives"])
        twice = [name for name, count in Counter(positives).items() if count > 1]
        if twice:
            raise Fault("invalid sample", f'"positives" names {shorten(twice[0])} twice')
        further = dict.fromkeys(fields.get("documents", ()))
        fields["documents"] = tuple(name for name in further if name not in positives)
        try:
            sample = Sample(**fields)
        except ValueError as error:
            raise Fault("invalid sample", str(error)) from error
        for name, text in texts:
            self.add_document(name, text, place)
        self._samples.append((place, sample))

    def finish(self, *, skip_bad: bool) -> TrainingSet:
        """Look up every id and report the problems.

        Raises:
            TrainingDataError: there are problems and ``skip_bad`` is false, or nothing is left to learn from.
        """
        samples = [sample for place, sample in self._samples if self._knows_all(place, sample)]
        files = {problem.place.file: None for problem in self.problems}
        order = {file: index for index, file in enumerate(files)}
        self.problems.sort(key=lambda problem: (order[problem.place.file], problem.place.line, problem.place.item))
        if self._unused_keys:
            named = ", ".join(f"{shorten(key)} ({count})" for key, count in self._unused_keys.most_common())
            logger.warning("keys that training makes no use of, with the number of records: %s", named)
        if self.problems and not skip_bad:
            raise TrainingDataError(
                f"{self._report()}\nCorrect them, or set skip_bad to true to train on the rest and have these listed"
            )
        if not samples or not self.corpus:
            lacking = "no samples" if not samples else "no documents"
            report = f".\n{self._report()}" if self.problems else ""
            raise TrainingDataError(f"there are {lacking} to learn from. Give files that hold samples{report}")
        if self.problems:
            logger.warning("left out of the training data: %s", self._report())
        return TrainingSet(self.corpus, samples, [str(problem) for problem in self.problems])

    def _knows_all(self, place: Place, sample: Sample) -> bool:
        """Whether all documents of a sample are in the corpus; if not, that is a problem."""
        for name in sample.named:
            if name in self.corpus:
                continue
            if name in self._seen:
                what = f"names the document {shorten(name)}, which cannot be used ({self._seen[name][1]})"
                self.add_problem(place, "names an unusable document", what)
            else:
                hint = "Add it to the corpus" if self._has_corpus else "Give the corpus file"
                hint += ' or, if this is a text and no id, write it into "documents" as {"text": "..."}'
                self.add_problem(place, "unknown id", f"no document has the id {shorten(name)}. {hint}")
            return False
        return True

    def _report(self) -> str:
        kinds = Counter(problem.kind for problem in self.problems)
        counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
        total = len(self.problems)
        lines = [f"{total} problem{'s' * (total != 1)} ({counts}):"]
        lines += [f"{problem}." for problem in self.problems[:_SHOWN_PROBLEMS]]
        lines += [f"And {total - _SHOWN_PROBLEMS} more."] if total > _SHOWN_PROBLEMS else []
        return "\n  ".join(lines)  # a command shows it in one line, so each ends as a sentence


def shorten(text: str) -> str:
    """A text in quotes, cut to what fits into a message."""
    return json.dumps(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…", ensure_ascii=False)


def read_lines(path: Path, collector: Collector) -> Iterator[tuple[Place, str]]:
    """Lines of a UTF-8 file with their places; blank ones are passed over, invalid ones become problems."""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            place = Place(path.as_posix(), number)
            if number == 1 and (encoding := wide_encoding(raw)):
                name = encoding.upper()
                what = f"the file is {name}. Convert it: iconv -f {name} -t UTF-8 IN > OUT"
                collector.add_problem(place, "not UTF-8", what)
                return
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                collector.add_problem(place, "not UTF-8", f"byte {error.start + 1} of the line is not UTF-8")
                continue
            if text.strip(" \r\n"):
                yield place, text


def read_records(path: Path, collector: Collector) -> Iterator[tuple[Place, Any]]:
    """The values of a JSON lines file, or the items of a ``.json`` file that is one list; broken ones are problems."""
    if path.suffix.lower() == ".json" and _is_one_list(path):
        yield from _read_list(path, collector)
        return
    for place, text in read_lines(path, collector):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            collector.add_problem(place, "broken JSON", f"not JSON ({_reason(error)}). Write one value on each line")
            continue
        yield place, _clean(value)


def _is_one_list(path: Path) -> bool:
    """Whether the file is a list of records; a first line such as ``["a", "b"]`` is itself a record."""
    with open(path, "rb") as stream:
        first = next((line for line in stream if line.strip()), b"").removeprefix(b"\xef\xbb\xbf")
    if not first.lstrip().startswith(b"["):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not value or not all(isinstance(item, str) for item in value)


def _read_list(path: Path, collector: Collector) -> Iterator[tuple[Place, Any]]:
    data, file = path.read_bytes(), path.as_posix()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        collector.add_problem(Place(file, line), "not UTF-8", "the line is not UTF-8, so the whole file is not read")
        return
    decoder = json.JSONDecoder()
    position, counted, line = text.index("[") + 1, 0, 1
    item = 0
    while True:
        position = _skip_blank(text, position)
        if text.startswith("]", position):
            break
        if item and text.startswith(",", position):
            position = _skip_blank(text, position + 1)
        elif item:
            line += text.count("\n", counted, position)
            collector.add_problem(Place(file, line, item), "broken JSON", "no comma follows it; the rest is not read")
            return
        item += 1
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            what = f"not JSON ({_reason(error)}); the rest of the file is not read"
            collector.add_problem(Place(file, line, item), "broken JSON", what)
            return
        yield Place(file, line, item), _clean(value)
    if text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        collector.add_problem(Place(file, line), "broken JSON", "more text follows the end of the list")


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}".replace("at line 1, ", "at ")
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _clean(value: Any) -> Any:
    """The same value with lone surrogates, which no tokenizer takes, replaced by U+FFFD."""
    if isinstance(value, str):
        return clean_surrogates(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return {_clean(key): _clean(item) for key, item in value.items()} if isinstance(value, dict) else value
