"""Sources → one corpus, three sets of questions over it that share no document, and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msa.errors import TrainingDataError
from msa.training.data.near_duplicates import NearDuplicates, Passages, normalised
from msa.training.data.samples import Sample
from msa.training.data.sources.entry import Question, Source, SourceEntry
from msa.training.data.sources.unanswerable import unanswerable

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
CORPUS = "corpus.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a data set is made.

    Attributes:
        test, validation: share of every source's documents whose questions are kept from training.
        hold_out_sources: sources whose questions all are test questions.
        similarity: from which on two documents are near-duplicates.
        unanswerable: questions per source that the corpus cannot answer, at most.
        unanswerable_answer: what to answer to them.
        count_tokens: tokens of a text; None: the manifest counts words.

    Raises:
        ValueError: shares that leave nothing to train on, a negative number.
    """

    test: float = 0.08
    validation: float = 0.02
    hold_out_sources: Collection[str] = ()
    similarity: float = 0.8
    unanswerable: int = 0
    unanswerable_answer: str = "It is not in memory."
    count_tokens: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        if min(self.test, self.validation) < 0 or self.test + self.validation >= 1:
            raise ValueError(
                f"test and validation must be shares with a sum below 1, not {self.test} and {self.validation}"
            )
        if self.unanswerable < 0:
            raise ValueError(f"unanswerable must be 0 or more, not {self.unanswerable}")


@dataclass
class _Part:
    """What one source gives: the chosen entries, further ones for unanswerable questions, the split of each group."""

    source: Source
    chosen: list[SourceEntry] = field(default_factory=list)
    left_out: list[SourceEntry] = field(default_factory=list)
    near_duplicates: int = 0
    ambiguous: int = 0
    splits: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {split: [] for split in SPLITS})

    def split(self, entry: SourceEntry) -> str:
        return self.splits[entry.group or entry.id]


def build(
    sources: Sequence[Source],
    counts: Mapping[str, int],
    seed: int,
    out: Path,
    options: BuildOptions | None = None,
) -> dict[str, Any]:
    """Write ``corpus.jsonl``, ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``manifest.json``.

    The corpus holds the documents of all splits: what is searched at a test has to be in memory. No document answers
    questions of two splits, and no question is one that another document answers as well, as far as words show. The
    same arguments and files give the same bytes.

    Args:
        sources: where documents and questions come from.
        counts: name of each source → documents, at most.
        seed: of all drawing.
        out: folder to write to; the manifest is written last.
        options: shares, sources held out and so on.

    Returns:
        The manifest.

    Raises:
        ValueError: a source without count, an unknown source held out, two sources of one name.
        TrainingDataError: a source whose files are missing, or that gives nothing.
    """
    options = options or BuildOptions()
    _check(sources, counts, options)
    # files that are missing are to be known before anything is read
    inputs = {source.name: source.files() for source in sources}
    seen = NearDuplicates(options.similarity)
    parts = [_collect(source, counts[source.name], seed, seen, options) for source in sources]
    _make_samples(parts)
    _add_unanswerable(parts, seed, options)
    for part in parts:
        for split, samples in part.samples.items():
            random.Random(f"{seed}/order/{part.source.name}/{split}").shuffle(samples)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    written = _write(parts, out)
    manifest = {
        "seed": seed,
        "options": _settings(options),
        "documents": sum(len(part.chosen) for part in parts),
        "near_duplicates_removed": sum(part.near_duplicates for part in parts),
        "sources": {part.source.name: _report(part, inputs[part.source.name], options) for part in parts},
        "files": {path.name: _sha256(path) for path in written},
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _check(sources: Sequence[Source], counts: Mapping[str, int], options: BuildOptions) -> None:
    names = [source.name for source in sources]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected one or more sources of different names, found {names}")
    if wrong := [name for name in names if counts.get(name, 0) < 1]:
        raise ValueError(f"counts must give 1 or more documents for each source; missing or too small: {wrong}")
    if unknown := sorted(set(options.hold_out_sources) - set(names)):
        raise ValueError(f"no source to hold out is called {unknown[0]!r}; the sources are {names}")


def _collect(source: Source, count: int, seed: int, seen: NearDuplicates, options: BuildOptions) -> _Part:
    """Read a source until there is enough, and divide its groups among the splits."""
    part = _Part(source)
    # some of the names left out are in other documents and cannot be used
    spare = 2 * options.unanswerable
    ids: set[str] = set()
    for entry in source.read(random.Random(f"{seed}/read/{source.name}")):
        if entry.id in ids:
            raise TrainingDataError(f"source {source.name} gives the document {entry.id!r} twice; ids must be unique")
        ids.add(entry.id)
        if not seen.add(entry.text):
            part.near_duplicates += 1
            continue
        (part.chosen if len(part.chosen) < count else part.left_out).append(entry)
        if len(part.chosen) == count and len(part.left_out) >= spare:
            break
    if not part.chosen:
        raise TrainingDataError(f"source {source.name} gives no document; its files hold nothing that can be used")
    del part.left_out[spare:]
    part.splits = _divide(part, random.Random(f"{seed}/split/{source.name}"), options)
    logger.info("%s: %d documents, %d near-duplicates", source.name, len(part.chosen), part.near_duplicates)
    return part


def _divide(part: _Part, rng: random.Random, options: BuildOptions) -> dict[str, str]:
    """Group → split, so that test and validation get their shares of the documents."""
    splits: dict[str, str] = {}
    # the entries left out apart from the others, so that each split gets unanswerable questions as well
    for entries in (part.chosen, part.left_out):
        sizes = Counter(entry.group or entry.id for entry in entries)
        groups = sorted(set(sizes) - set(splits))
        rng.shuffle(groups)
        wanted = {"test": options.test * len(entries), "validation": options.validation * len(entries)}
        for group in groups:
            split = next((split for split, size in wanted.items() if size > 0), "train")
            splits[group] = "test" if part.source.name in options.hold_out_sources else split
            if split != "train":
                wanted[split] -= sizes[group]
    return splits


def _make_samples(parts: Sequence[_Part]) -> None:
    """The samples of every part, without questions that other documents answer as well.

    Those are questions asked of several documents, and questions whose words stand in another document.
    """
    documents = {entry.id: entry.text for part in parts for entry in part.chosen}
    passages = Passages(documents)
    asked: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for _, entry, question in _questions(parts):
        asked[_key(question.query)].add(question.hops or (entry.id,))
    done: set[str] = set()
    for part, entry, question in _questions(parts):
        hops, key = question.hops or (entry.id,), _key(question.query)
        if len(asked[key]) > 1 or passages.holders(question.query) - set(hops):
            part.ambiguous += 1
        elif key not in done and all(hop in documents for hop in hops):
            done.add(key)
            part.samples[part.split(entry)].append(
                Sample(
                    query=question.query,
                    positives=hops,
                    answer=question.answer,
                    hops=tuple((hop,) for hop in hops) if len(hops) > 1 else (),
                    source=f"{part.source.name}/{question.kind}",
                )
            )


def _questions(parts: Sequence[_Part]) -> Iterator[tuple[_Part, SourceEntry, Question]]:
    for part in parts:
        for entry in part.chosen:
            for question in entry.questions:
                yield part, entry, question


def _key(query: str) -> str:
    """What makes two questions the same one; punctuation alone tells ``C`` from ``C++``."""
    return " ".join(normalised(query)) or query


def _add_unanswerable(parts: Sequence[_Part], seed: int, options: BuildOptions) -> None:
    """Up to ``options.unanswerable`` questions per source, divided like its documents."""
    if not options.unanswerable:
        return
    texts = [entry.text for part in parts for entry in part.chosen]
    asked = {_key(sample.query) for part in parts for samples in part.samples.values() for sample in samples}
    for part in parts:
        name = part.source.name
        rng = random.Random(f"{seed}/unanswerable/{name}")
        found = 0
        answer = options.unanswerable_answer
        for entry, sample in unanswerable(part.left_out, texts, answer, f"{name}/unanswerable", rng):
            if found < options.unanswerable and _key(sample.query) not in asked:
                asked.add(_key(sample.query))
                part.samples[part.split(entry)].append(sample)
                found += 1
        if found < options.unanswerable:
            logger.warning("%s: %d of %d unanswerable questions", name, found, options.unanswerable)


def _write(parts: Sequence[_Part], out: Path) -> list[Path]:
    corpus = (
        {"id": entry.id, "text": entry.text, "source": part.source.name} for part in parts for entry in part.chosen
    )
    paths = [_write_lines(out / CORPUS, corpus)]
    for split in SPLITS:
        samples = (sample.to_json() for part in parts for sample in part.samples[split])
        paths.append(_write_lines(out / f"{split}.jsonl", samples))
    return paths


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def _settings(options: BuildOptions) -> dict[str, Any]:
    """The options, as far as they are data."""
    plain = {name: value for name, value in vars(options).items() if name != "count_tokens"}
    return plain | {"hold_out_sources": sorted(options.hold_out_sources)}


def _report(part: _Part, files: Mapping[str, Path], options: BuildOptions) -> dict[str, Any]:
    """A source's entry in the manifest."""
    texts = [entry.text for entry in part.chosen]
    documents = Counter(part.split(entry) for entry in part.chosen)
    count = options.count_tokens
    size = {"tokens": sum(map(count, texts))} if count else {"words": sum(len(text.split()) for text in texts)}
    return {
        "licence": part.source.licence,
        "settings": part.source.settings,
        "documents": len(texts),
        "documents_by_split": {split: documents[split] for split in SPLITS},
        "characters": sum(map(len, texts)),
        **size,
        "questions": {split: _kinds(part.samples[split]) for split in SPLITS},
        "near_duplicates_removed": part.near_duplicates,
        "ambiguous_questions_removed": part.ambiguous,
        "inputs": {name: _sha256(path) for name, path in files.items()},
    }


def _kinds(samples: Iterable[Sample]) -> dict[str, int]:
    counts = Counter(sample.source.rpartition("/")[2] for sample in samples)
    return {kind: counts[kind] for kind in sorted(counts)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
