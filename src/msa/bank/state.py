"""One state of a memory: what a manifest and its segments say is present, and where it is.

Axes: d documents, n parts.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msa.bank.documents import batches, id_digests, id_prefixes
from msa.bank.manifest import Manifest
from msa.bank.schema import StoredDocument, StoredPart
from msa.bank.segment import Segment
from msa.bank.terms import filter_terms
from msa.errors import BankCorruptError, BankFileError

_NOTHING = np.zeros((5, 0), np.int64)


class State:
    """A consistent, immutable state.

    Args:
        manifest: of the state.
        segments: its segments in order, opened.
        previous: an older state; where this one has but more segments, only those are gone through.

    Attributes:
        newest: version of the newest manifest file, which a damaged one may make larger than the state's own.
        stamp: what tells that file from another of the same version.
        places: ``[d]`` int64 ascending, of the present documents; place_segments: which segment has each.
        numbers: ``[n]`` int64 ascending, of the present parts; part_segments, part_places, part_tokens, part_chunks:
            where their documents are, and their sizes.
        abandoned: ``[a]`` int64 ascending: places whose ids newer segments have at other places. Most are superseded
            as well; a document that was added again while its file could not be read is not, and is not present either.
    """

    def __init__(self, manifest: Manifest, segments: Sequence[Segment], previous: State | None = None) -> None:
        self.manifest, self.segments = manifest, tuple(segments)
        self.newest, self.stamp = manifest.version, ""
        if previous is not None and previous.segments != self.segments[: len(previous.segments)]:
            previous = None
        first = 0 if previous is None else len(previous.segments)
        self.abandoned = _abandoned(self.segments, first)
        if previous is not None:
            self.abandoned = np.union1d(previous.abandoned, self.abandoned)
        superseded = self.abandoned
        documents, parts = [_NOTHING[:2]], [_NOTHING]
        for index in reversed(range(first, len(segments))):
            segment = segments[index]
            if segment.has_documents:
                file = segment.documents
                present = file.places[~np.isin(file.places, superseded)]
                documents.append(np.stack([present, np.full_like(present, index)]))
                kept = np.isin(file.part_places, present)
                columns = (file.part_numbers, file.part_places, file.part_tokens, file.part_chunks)
                rows = np.stack([column[kept] for column in columns])
                parts.append(np.concatenate([rows, np.full_like(rows[:1], index)]))
            superseded = np.union1d(superseded, segment.superseded)
        self._documents, self._parts = _sorted(documents), _sorted(parts)
        if previous is not None:
            self._documents = _joined(previous._documents, 0, superseded, self._documents)
            self._parts = _joined(previous._parts, 1, superseded, self._parts)
        self.places, self.place_segments = self._documents
        self.numbers, self.part_places, self.part_tokens, self.part_chunks, self.part_segments = self._parts

    @property
    def damage(self) -> list[BankFileError]:
        """What is wrong with the files of this state, as far as opening them shows."""
        return [problem for segment in self.segments for problem in segment.damage]

    def find(self, ids: Iterable[str]) -> dict[str, int]:
        """Places of the present documents among ``ids``, damaged ones included."""
        # hashed once, and in order: that is how the segments' tables are searched fastest
        digests = sorted((digest, id_) for id_, digest in id_digests(ids).items())
        names, wanted = [id_ for _, id_ in digests], np.array([digest for digest, _ in digests], dtype="S16")
        found: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            if segment.has_documents:
                here, places = segment.documents.locate(wanted)
                for row, place in zip(here.tolist(), places.tolist(), strict=True):
                    if self.segment_of(place) == index:
                        found[names[row]] = place
        return found

    def content_hashes(self, ids: Iterable[str]) -> dict[str, str]:
        """Content hashes of the present documents among ``ids`` with sound latents, as stored; no text is read.

        Raises:
            BankError: whether one is there and sound cannot be read at present.
        """
        found = self._found_for_sure([*ids])
        hashes: dict[int, str] = {}
        for index, places in self._by_segment(found.values()).items():
            with contextlib.suppress(BankCorruptError):
                hashes |= self.segments[index].documents.content_hashes(places)
        lost = self.unroutable_places
        return {id_: hashes[place] for id_, place in found.items() if place in hashes and place not in lost}

    def sound_documents(self, ids: Iterable[str]) -> dict[str, StoredDocument]:
        """Those of the present documents among ``ids`` whose texts and latents are sound.

        Raises:
            BankError: whether one is there and sound cannot be read at present.
        """
        found = self._found_for_sure([*ids])
        documents: dict[int, StoredDocument] = {}
        for index, places in self._by_segment(found.values()).items():
            documents |= self.segments[index].documents.sound_documents(places)
        lost = self.unroutable_places
        return {id_: documents[place] for id_, place in found.items() if place in documents and place not in lost}

    def _found_for_sure(self, ids: Sequence[str]) -> dict[str, int]:
        """As :meth:`find`; nothing may seem lost that only cannot be read."""
        found = self.find(ids)
        for segment in self.segments:
            if segment.is_unreadable:
                hidden = any(id_ not in found for id_ in ids)
                if hidden if not segment.has_documents else not self.unroutable_places.isdisjoint(found.values()):
                    raise segment.damage[0]
        return found

    def _by_segment(self, places: Iterable[int]) -> dict[int, list[int]]:
        """Distinct places by the segment that has them.

        Raises:
            KeyError: a place without a document.
        """
        by_segment: dict[int, list[int]] = {}
        for place in dict.fromkeys(places):
            index = self.segment_of(place)
            if index is None:
                raise KeyError(place)
            by_segment.setdefault(index, []).append(place)
        return by_segment

    def segment_of(self, place: int) -> int | None:
        """Which segment has the present document at ``place``; None: there is none."""
        row = int(np.searchsorted(self.places, place))
        return int(self.place_segments[row]) if row < len(self.places) and self.places[row] == place else None

    def documents(self, places: Sequence[int]) -> list[StoredDocument]:
        """The documents at these places, in the same order.

        Raises:
            KeyError: a place without a document.
            BankCorruptError: a document is damaged.
        """
        found: dict[int, StoredDocument] = {}
        for index, wanted in self._by_segment(places).items():
            found |= self.segments[index].documents.documents(wanted)
        return [found[place] for place in places]

    def documents_after(self, place: int, limit: int | None) -> list[StoredDocument]:
        """Up to ``limit`` documents behind ``place``, in order.

        Raises:
            BankFileError: a document is damaged, or those of a segment cannot be read and would be missing.
        """
        self._check_listable()
        start = int(np.searchsorted(self.places, place, side="right"))
        end = None if limit is None else start + limit
        return self.documents(self.places[start:end].tolist())

    def ids(self) -> Iterator[str]:
        """Ids of all documents in order; errors as for :meth:`documents_after`."""
        self._check_listable()
        for page in batches(self.places.tolist()):
            names: dict[int, str] = {}
            for index, own in self._by_segment(page).items():
                names |= self.segments[index].documents.ids(own)
            yield from (names[place] for place in page)

    def _check_listable(self) -> None:
        for segment in self.segments:
            if not segment.has_documents:
                raise segment.damage[0]

    def parts(self, numbers: Sequence[int]) -> list[StoredPart]:
        """The parts of these numbers, in the same order.

        Raises:
            KeyError: a number of no present part.
            BankCorruptError: a document is damaged.
        """
        asked = np.asarray(numbers, dtype=np.int64)
        rows = np.searchsorted(self.numbers, asked)
        for number, row in zip(asked.tolist(), rows.tolist(), strict=True):
            if row >= len(self.numbers) or self.numbers[row] != number:
                raise KeyError(number)
        places = self.part_places[rows].tolist()
        distinct = builtins.list(dict.fromkeys(places))
        documents = dict(zip(distinct, self.documents(distinct), strict=True))
        return [_part(documents[place], number) for place, number in zip(places, asked.tolist(), strict=True)]

    def ids_of(self, numbers: Iterable[int]) -> dict[int, str]:
        """Part number → id of its document, for the present and readable ones among ``numbers``; no text is read."""
        asked = np.unique(np.fromiter(numbers, np.int64))
        rows = np.searchsorted(self.numbers, asked)
        present = rows < len(self.numbers)
        present[present] = self.numbers[rows[present]] == asked[present]
        places = dict(zip(asked[present].tolist(), self.part_places[rows[present]].tolist(), strict=True))
        names: dict[int, str] = {}
        for index, own in self._by_segment(places.values()).items():
            with contextlib.suppress(BankFileError):
                names |= self.segments[index].documents.ids(own)
        return {number: names[place] for number, place in places.items() if place in names}

    def matching_numbers(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Numbers of the parts whose document fulfils every condition of ``where``, ascending ``[n]``."""
        conditions = filter_terms(where)
        if not conditions:
            return self.numbers
        kept = np.zeros(len(self.numbers), dtype=bool)
        for index, segment in enumerate(self.segments):
            if segment.has_documents:
                matches = set.intersection(*(segment.documents.with_terms(terms) for terms in conditions))
                places = np.fromiter(matches, np.int64, len(matches))
                kept |= (self.part_segments == index) & np.isin(self.part_places, places)
        return self.numbers[kept]

    def matches(self, words: str, limit: int, among: NDArray[np.int64] | None = None) -> list[tuple[int, float]]:
        """The ``limit`` best part numbers for an FTS5 query, and their scores (BM25, higher is better).

        ``among``: the numbers ``[n]`` that may be found; None: all. A segment's scores weigh words by how rare they are
        in it; one segment, as after compaction, makes them exact.
        """
        found: list[tuple[int, float]] = []
        wanted = np.ones(len(self.numbers), dtype=bool) if among is None else np.isin(self.numbers, among)
        for index, segment in enumerate(self.segments):
            own = set(self.numbers[wanted & (self.part_segments == index)].tolist())
            if own and segment.has_documents:
                present = (match for match in segment.documents.matches(words) if match[0] in own)
                found += itertools.islice(present, limit)
        return sorted(found, key=lambda match: (-match[1], match[0]))[:limit]

    @cached_property
    def unroutable_places(self) -> frozenset[int]:
        """Places of documents with latents that are damaged."""
        if not self.damage:
            return frozenset()
        readable = [segment.numbers.numpy() for segment in self.segments if segment.has_latents]
        lost = ~np.isin(self.numbers, np.concatenate([np.zeros(0, np.int64), *readable]))
        return frozenset(self.part_places[lost].tolist())


def _sorted(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Join ``[width, rows]`` tables and sort their rows by the first column."""
    whole: NDArray[np.int64] = np.concatenate(tables, axis=1)
    return whole[:, whole[0].argsort(kind="stable")]


def _joined(
    table: NDArray[np.int64], place_column: int, superseded: NDArray[np.int64], new: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A sorted table without the rows of superseded places, and with the ``new`` rows."""
    gone = np.isin(table[place_column], superseded)
    if gone.any():
        table = table[:, ~gone]
    if table.shape[1] and new.shape[1] and new[0, 0] < table[0, -1]:
        return _sorted([table, new])
    return np.concatenate([table, new], axis=1)


def _abandoned(segments: Sequence[Segment], first: int) -> NDArray[np.int64]:
    """Places whose ids are at other places in newer segments, the newer from ``first`` on."""
    new = [segment.documents for segment in segments[first:] if segment.has_documents]
    if not new:
        return np.zeros(0, np.int64)
    digests = np.concatenate([file.id_digests for file in new])
    old = [segment.documents.locate(digests) for segment in segments[:first] if segment.has_documents]
    places = np.concatenate([*(places for _, places in old), *(file.id_places for file in new)])
    digests = np.concatenate([*(digests[rows] for rows, _ in old), digests])
    prefixes = id_prefixes(digests)
    order = prefixes.argsort()
    left, right = order[:-1], order[1:]
    twice = left[(prefixes[left] == prefixes[right]) & (places[left] != places[right])]
    rows = np.flatnonzero(np.isin(prefixes, prefixes[twice])) if len(twice) else twice
    ids, wheres = digests[rows].tolist(), places[rows].tolist()
    newest = dict(zip(ids, wheres, strict=True))  # the last one stays
    found = {place for id_, place in zip(ids, wheres, strict=True) if place != newest[id_]}
    return np.array(sorted(found), dtype=np.int64)


def _part(document: StoredDocument, number: int) -> StoredPart:
    index, part = next((i, p) for i, p in enumerate(document.parts) if p.number == number)
    return StoredPart(
        part=part,
        document_id=document.id,
        index=index,
        num_parts=len(document.parts),
        text=document.text[part.start : part.end],
        metadata=document.metadata,
    )
