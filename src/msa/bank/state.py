"""One state of a memory: what a manifest and its segments say is present, and where it is.

Axes: d documents, n parts.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msa.bank.documents import batches
from msa.bank.manifest import Manifest
from msa.bank.schema import StoredDocument, StoredPart
from msa.bank.segment import Segment
from msa.bank.terms import filter_terms
from msa.errors import BankCorruptError


class State:
    """A consistent, immutable state.

    Args:
        manifest: of the state.
        segments: its segments in order, opened.

    Attributes:
        newest: version of the newest manifest file, which a damaged one may make larger than the state's own.
        places: ``[d]`` int64 ascending, of the present documents; place_segments: which segment has each.
        numbers: ``[n]`` int64 ascending, of the present parts; part_segments, part_places, part_tokens, part_chunks:
            where their documents are, and their sizes.
    """

    def __init__(self, manifest: Manifest, segments: Sequence[Segment]) -> None:
        self.manifest, self.segments = manifest, tuple(segments)
        self.newest = manifest.version
        superseded: NDArray[np.int64] = np.zeros(0, np.int64)
        documents, parts = [], []
        for index in reversed(range(len(segments))):
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
        self.places, self.place_segments = _sorted(documents, 2)
        self.numbers, self.part_places, self.part_tokens, self.part_chunks, self.part_segments = _sorted(parts, 5)

    @property
    def damage(self) -> list[BankCorruptError]:
        """What is wrong with the files of this state, as far as opening them shows."""
        return [problem for segment in self.segments for problem in segment.damage]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Places of the present documents among ``ids``, damaged ones included."""
        found: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            if segment.has_documents:
                places = segment.documents.find(ids).items()
                found |= {id_: place for id_, place in places if self.segment_of(place) == index}
        return found

    def content_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Content hashes of the present documents among ``ids`` whose texts and latents are sound."""
        found = self.find(ids)
        hashes: dict[int, str] = {}
        for index, segment in enumerate(self.segments):
            own = [place for place in found.values() if self.segment_of(place) == index]
            if own:
                hashes |= segment.documents.content_hashes(own)
        return {i: hashes[p] for i, p in found.items() if p in hashes and p not in self.unroutable_places}

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
        by_segment: dict[int, list[int]] = {}
        for place in dict.fromkeys(places):
            index = self.segment_of(place)
            if index is None:
                raise KeyError(place)
            by_segment.setdefault(index, []).append(place)
        found: dict[int, StoredDocument] = {}
        for index, wanted in by_segment.items():
            found |= self.segments[index].documents.documents(wanted)
        return [found[place] for place in places]

    def documents_after(self, place: int, limit: int | None) -> list[StoredDocument]:
        """Up to ``limit`` documents behind ``place``, in order.

        Raises:
            BankCorruptError: a document is damaged, or those of a segment cannot be read and would be missing.
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
            for index in {self.segment_of(place) for place in page}:
                assert index is not None
                names |= self.segments[index].documents.ids([p for p in page if self.segment_of(p) == index])
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

    def matches(self, words: str, limit: int) -> list[tuple[int, float]]:
        """The ``limit`` best part numbers for an FTS5 query, and their scores (BM25, higher is better).

        A segment's scores weigh words by how rare they are in it; one segment, as after compaction, makes them exact.
        """
        found: list[tuple[int, float]] = []
        for index, segment in enumerate(self.segments):
            if segment.has_documents:
                own = set(self.numbers[self.part_segments == index].tolist())
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


def _sorted(columns: Sequence[NDArray[np.int64]], width: int) -> NDArray[np.int64]:
    """Join ``[width, rows]`` tables and sort their rows by the first column."""
    whole: NDArray[np.int64] = np.concatenate([np.zeros((width, 0), np.int64), *columns], axis=1)
    return whole[:, whole[0].argsort(kind="stable")]


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
