"""A memory that rank 0 asks alone, while every rank holds a share of it.

Axes: B rows, T tokens, Hq query heads, N documents, C chunks, k selected documents; Nr, Cr those of rank r.
"""

from __future__ import annotations

import hashlib
import itertools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa.bank import ByteCounter, MemoryBank, StoredPart
from msa.bank.manifest import read_manifest
from msa.bank.opening import open_state
from msa.bank.state import State
from msa.errors import BankCorruptError, BankFileError, BankNotFoundError, ParallelError
from msa.model import SelectedMemory
from msa.model.memory_view import chunks_of_documents
from msa.ops import Routing, RoutingSpec
from msa.parallel.leading import Attempt, Channel, Leader, follow
from msa.parallel.ranks import DEFAULT_TIMEOUT_S, Ranks
from msa.parallel.sharded_library import ShardedLibrary
from msa.routing import BankView, Library, Tiers

_ATTEMPTS = 5
_PAUSE_S = 0.02  # doubled at each attempt


class LedMemories:
    """On rank 0: opens memories below a folder on all ranks. The others are in :func:`follow_memories`.

    Args:
        leader: of the ranks.
        root: the folder; the others have the same one, or a copy of it.
    """

    def __init__(self, leader: Leader, root: Path) -> None:
        self.leader, self.root = leader, root
        self._numbers = itertools.count(1)

    def view(
        self,
        bank: MemoryBank,
        device: torch.device | str,
        tiers: Tiers | None = None,
        previous: Library | None = None,
        similarity: str | None = None,
    ) -> LedLibrary:
        """The newest state of a bank, every rank holding its share; a memory's ``open_view``.

        Raises:
            ParallelError: a rank was lost, or does not have this state.
            MemoryBudgetError: a rank has no room for its share.
            BankError: a rank cannot read the memory.
        """
        for attempt in range(1, _ATTEMPTS):
            try:
                return self._newest(bank, torch.device(device), tiers or Tiers(), previous, similarity)
            except (BankCorruptError, BankNotFoundError):  # another process may have compacted it meanwhile
                time.sleep(_PAUSE_S * 2**attempt)
        try:
            return self._newest(bank, torch.device(device), tiers or Tiers(), previous, similarity)
        except (BankCorruptError, BankNotFoundError) as error:
            raise ParallelError(
                f"the ranks see different states of {bank.path}: {error}. A memory that changes must lie in a folder "
                "that all ranks share; copies of it can be served as long as nobody changes one of them"
            ) from error

    def _newest(
        self, bank: MemoryBank, device: torch.device, tiers: Tiers, previous: Library | None, similarity: str | None
    ) -> LedLibrary:
        state, number = bank.state(), next(self._numbers)
        last = previous if isinstance(previous, LedLibrary) else None
        known = None if last is None else last.local
        ranks, how = self.leader.ranks, (device, tiers, known, similarity)
        shares = self.leader.command(
            "open",
            lambda channel, attempt: _shares(channel, attempt, ranks, bank.path, lambda: state, *how),
            view=number,
            memory=bank.path.absolute().relative_to(self.root).as_posix(),
            version=state.manifest.version,
            digest=_digest(state),
            tiers=asdict(tiers),
            similarity=similarity,
            previous=None if last is None else last.number,
        )
        assert shares is not None, "where nothing went wrong there is a view"
        return LedLibrary(self.leader, number, shares, bank.fetched)


class LedLibrary:
    """One state of a memory as rank 0's engine sees it; implements :class:`msa.routing.Library`.

    Routing and fetching call on the other ranks; texts and metadata are read here, for rank 0 has the whole folder.
    Methods may be called from several threads. Results are those of :class:`ShardedLibrary`.

    Args:
        leader: of the ranks.
        number: the other ranks' name for it.
        shares: of all ranks.
        fetched: counts the bytes of content that all ranks together have read.

    Attributes:
        local: this rank's share.
        state: what it shows; version: the state's.
        numbers: document number of each global index ``[N]`` int64.
        chunk_size: tokens per chunk.
        chunk_offsets: ``[N + 1]`` int64 of all documents.
    """

    def __init__(self, leader: Leader, number: int, shares: _Shares, fetched: ByteCounter) -> None:
        self.number, self._leader, self._shares, self._fetched = number, leader, shares, fetched
        self.local = shares.view
        self.state, self.version = self.local.state, self.local.version
        self.numbers: np.ndarray = shares.together.numbers
        self.chunk_size, self.chunk_offsets = shares.together.chunk_size, shares.together.chunk_offsets
        self._live = self._among(self.local.state.numbers)
        weakref.finalize(self, leader.no_longer_needs, number).atexit = False

    @property
    def num_documents(self) -> int:
        """Documents on all ranks, deleted ones included."""
        return self._shares.together.num_documents

    @property
    def damage(self) -> Sequence[BankFileError]:
        """Why documents that are present are left out, as far as this rank knows."""
        return self.local.damage

    def _among(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(np.isin(self.numbers, numbers)).to(self.local.device)

    def live_mask(self, where: Mapping[str, Any] | None = None) -> Tensor:
        """Bool ``[N]``: documents that are not deleted and whose metadata match ``where``."""
        return self._live & self._among(self.local.state.matching_numbers(where)) if where else self._live

    def parts(self, numbers: Sequence[int]) -> list[StoredPart | None]:
        """Original texts of documents by number, in the order asked; None for one whose text is damaged."""
        return self.local.parts(numbers)

    def matches(self, question: str, limit: int, among: np.ndarray) -> list[int]:
        """Numbers of up to ``limit`` of the documents ``among`` with words of the question, by BM25."""
        return self.local.matches(question, limit, among)

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        """See :class:`msa.MemoryView`."""
        if doc_mask is self._live:  # every rank has its part of it
            doc_mask = None
        return self._leader.command(
            "route",
            lambda _, attempt: self._shares.route(attempt, layer, query, query_mask, spec, top_k, doc_mask),
            view=self.number,
            layer=layer,
            query=_form(query),
            query_mask=query_mask.tolist(),
            spec=asdict(spec),
            top_k=top_k,
            doc_mask=None if doc_mask is None else _form(doc_mask),
        )

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """See :class:`msa.MemoryView`."""
        selected = self._leader.command(
            "fetch",
            lambda _, attempt: self._shares.fetch(attempt, layer, doc_indices),
            view=self.number,
            layer=layer,
            doc_indices=doc_indices.tolist(),
        )
        documents = doc_indices.to(self.chunk_offsets.device).unique()  # each was read once
        documents = documents[documents >= 0]
        chunks = int((self.chunk_offsets[documents + 1] - self.chunk_offsets[documents]).sum())
        self._fetched.add(2 * chunks * selected.keys.element_size() * selected.keys.shape[2:].numel())
        return selected


def follow_memories(ranks: Ranks, root: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """On all ranks but 0: hold a share of every memory that rank 0 asks, until it lets them go.

    No model is needed here: the network runs on rank 0.

    Args:
        ranks: the processes.
        root: the folder with the memories, or a copy of it.
        timeout_s: seconds without a word from rank 0 after which it counts as lost.

    Raises:
        ParallelError: rank 0 was lost.
    """
    views: dict[int, _Shares] = {}

    def open_view(channel: Channel, attempt: Attempt, command: dict[str, Any]) -> None:
        last = views.get(command["previous"])
        known = None if last is None else last.view
        folder = root / command["memory"]

        def state() -> State:
            return _state_of(folder, command["version"], command["digest"], None if known is None else known.state)

        tiers = Tiers(**command["tiers"])
        shares = _shares(channel, attempt, ranks, folder, state, ranks.device, tiers, known, command["similarity"])
        if shares is not None:
            views[command["view"]] = shares

    def blank(form: tuple[list[int], str]) -> Tensor:
        """What rank 0's tensor is received in."""
        return torch.zeros(form[0], dtype=getattr(torch, form[1]), device=ranks.device)

    def route(_: Channel, attempt: Attempt, command: dict[str, Any]) -> None:
        doc_mask = None if command["doc_mask"] is None else blank(command["doc_mask"])
        query, query_mask = blank(command["query"]), torch.tensor(command["query_mask"], device=ranks.device)
        shares, spec = views[command["view"]], RoutingSpec(**command["spec"])
        shares.route(attempt, command["layer"], query, query_mask, spec, command["top_k"], doc_mask)

    def fetch(_: Channel, attempt: Attempt, command: dict[str, Any]) -> None:
        indices = torch.tensor(command["doc_indices"], dtype=torch.int64, device=ranks.device)
        views[command["view"]].fetch(attempt, command["layer"], indices)

    def forget(numbers: Sequence[int]) -> None:
        for number in numbers:
            views.pop(number, None)

    follow(ranks, {"open": open_view, "route": route, "fetch": fetch}, forget, timeout_s)


class _Shares:
    """All ranks' shares of one state; every method is called on all ranks at the same time."""

    def __init__(self, view: BankView, ranks: Ranks) -> None:
        self.view = view
        self._own = _OwnShare(view)
        self.together = ShardedLibrary(self._own, ranks, view.positions.tolist())

    def route(
        self,
        attempt: Attempt,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None,
    ) -> Routing:
        """The query and ``doc_mask`` are rank 0's; the others' are only as large."""
        self._own.attempt = attempt
        if doc_mask is not None:
            doc_mask = self.together.ranks.broadcast(doc_mask)
        return self.together.route(layer, query, query_mask, spec, top_k, doc_mask)

    def fetch(self, attempt: Attempt, layer: int, doc_indices: Tensor) -> SelectedMemory:
        """The same indices on all ranks."""
        self._own.attempt = attempt
        return self.together.fetch(layer, doc_indices)


class _OwnShare:
    """A rank's documents; where they cannot be read, it says so in the attempt and answers with as many empty ones."""

    def __init__(self, view: BankView) -> None:
        self._view, self.attempt = view, Attempt()
        self.numbers, self.chunk_size, self.chunk_offsets = view.numbers, view.chunk_size, view.chunk_offsets
        self.num_documents, self.live_mask = view.num_documents, view.live_mask
        self.parts, self.matches, self.damage = view.parts, view.matches, view.damage

    def route(
        self,
        layer: int,
        query: Tensor,
        query_mask: Tensor,
        spec: RoutingSpec,
        top_k: int,
        doc_mask: Tensor | None = None,
    ) -> Routing:
        with self.attempt():
            return self._view.route(layer, query, query_mask, spec, top_k, doc_mask)

        def nothing(size: int) -> Tensor:
            return query.new_full((query.shape[0], size), float("-inf"), dtype=torch.float32)

        indices = nothing(top_k).new_full((query.shape[0], top_k), -1, dtype=torch.int64)
        return Routing(indices, nothing(top_k), nothing(self.num_documents), nothing(int(self.chunk_offsets[-1])))

    def fetch(self, layer: int, doc_indices: Tensor) -> SelectedMemory:
        with self.attempt():
            return self._view.fetch(layer, doc_indices)
        chunks, slot = chunks_of_documents(self.chunk_offsets, doc_indices)
        spec = self._view.spec
        shape = (*chunks.shape, spec.num_key_value_heads, spec.head_dim)
        empty = torch.zeros(shape, dtype=spec.torch_dtype, device=self._view.device)
        return SelectedMemory(keys=empty, values=empty, slot=slot)


class _PinnedBank(MemoryBank):
    """A memory open for reading that stays at one state."""

    def __init__(self, path: Path, state: State) -> None:
        super().__init__(path, state, None)
        self._pinned = state

    def state(self) -> State:
        return self._pinned


def _shares(
    channel: Channel,
    attempt: Attempt,
    ranks: Ranks,
    folder: Path,
    state: Callable[[], State],
    device: torch.device,
    tiers: Tiers,
    known: BankView | None,
    similarity: str | None,
) -> _Shares | None:
    """On all ranks: each loads its share of a state; None where one cannot, which the attempts then say."""
    found = None
    with attempt():
        found = state()
    # before anything is loaded: that may take long, and is not repeated
    if channel.problems(attempt.problem) or found is None:
        return None
    view = None
    with attempt():
        view = BankView(_PinnedBank(folder, found), device, tiers, known, similarity, (ranks.rank, ranks.world))
    if channel.problems(attempt.problem) or view is None:
        return None
    with attempt():
        try:
            return _Shares(view, ranks)
        except ValueError as error:  # on all ranks alike
            raise BankCorruptError(f"not all ranks could read the same of {folder}: {error}") from error
    return None


def _state_of(folder: Path, version: int, digest: str, known: State | None) -> State:
    """The state that rank 0 sees.

    Raises:
        BankNotFoundError: there is no such folder.
        BankCorruptError: it has no such version, or another one of this number.
    """
    if not folder.is_dir():
        raise BankNotFoundError(f"no memory at {folder}")
    state = open_state(folder, read_manifest(folder, version), known)
    if _digest(state) != digest:
        raise BankCorruptError(f"version {version} of {folder} is not that of rank 0, or cannot be read as a whole")
    return state


def _digest(state: State) -> str:
    """Equal for states with the same content that can be read as far."""
    readable = [(segment.name, segment.has_latents) for segment in state.segments]
    return hashlib.sha256(repr((state.manifest, readable)).encode()).hexdigest()


def _form(tensor: Tensor) -> tuple[list[int], str]:
    return [*tensor.shape], str(tensor.dtype).removeprefix("torch.")
