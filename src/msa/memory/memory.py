"""The user's memory: documents in a folder that can be added to, changed, searched and asked."""

from __future__ import annotations

import builtins
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from msa.bank import MemoryBank
from msa.bank.state import State
from msa.documents import Document
from msa.documents.readers import documents_from_mappings
from msa.engine import Engine
from msa.errors import BankUnreadableError, MemoryBudgetError, NoDocumentsError, ParallelError
from msa.generation.decoding import Decoding
from msa.generation.options import AskOptions
from msa.generation.sampling import Sampling, check_whole
from msa.generation.types import Answer, Event, Hit
from msa.memory.adding import AddProgress, WindowWriter, spec_of, windows
from msa.model.bundle import MSAModel
from msa.parallel import Ranks, ShardedLibrary
from msa.routing import BankView, Library, Tiers
from msa.zoo import load

_AGREEMENT_ATTEMPTS = 5
_PAUSE_S = 5.0  # between two attempts to load what could not be read


class View(Library, Protocol):
    """One state of a memory, as questions are asked of it."""

    state: State


OpenView = Callable[[MemoryBank, torch.device, Tiers | None, Any, str], View]


class Memory:
    """A memory folder with the model that reads it; a context manager. Open one with :meth:`open`.

    Threads: all methods of one object may be called from several threads at a time, and so may those of several objects
    over one folder, of which one process at a time may have one open for writing. A question is answered from the
    version that is the newest when it is asked, a stream's to its end, whatever is added or deleted meanwhile. Windows
    of several :meth:`add` are encoded one after the other; :meth:`delete` waits for a commit, not for encoding. Asking
    from several threads at a time is safe; they share the processor. Not safe: advancing one stream from two threads,
    and, where ``ranks`` share the memory, all but one thread, since all ranks must do the same in the same order.
    :meth:`close` waits for a commit at work; what is called after it raises :class:`msa.errors.BankError`.

    Attributes:
        open_view: makes what the newest version is asked through, from the bank, the model's device, the tiers, what it
            made of the version before (None: nothing yet) and the model's similarity; see
            :meth:`msa.parallel.LedMemories.view`.
    """

    def __init__(
        self, bank: MemoryBank, model: MSAModel | None, tiers: Tiers | None = None, ranks: Ranks | None = None
    ) -> None:
        self._bank = bank
        self._model = model
        self._tiers = tiers
        self._ranks = ranks
        self.open_view: OpenView = BankView
        self._view: View | None = None
        self._engine: tuple[object, Engine] | None = None
        self._look_again_s = math.inf  # by the clock of time.monotonic
        # what is made when first needed is made once
        self._making = threading.RLock()
        self._writer = WindowWriter(bank, lambda: self.model, ranks)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: MSAModel | str | Path | None = None,
        *,
        create: bool = True,
        read_only: bool = False,
        max_bytes: int | None = None,
        tiers: Tiers | None = None,
        ranks: Ranks | None = None,
    ) -> Self:
        """Open a memory folder, creating it if need be.

        Args:
            path: the folder.
            model: the model that encodes and answers: loaded, or a name for :func:`msa.load`. None: the one the
                memory was made with, or the default for a new memory; loaded when first needed.
            create: make an empty memory where there is none.
            read_only: refuse changes; any number of readers may have a memory open while one process writes.
            max_bytes: refuse additions that would make the folder larger; None: no limit.
            tiers: where latents live while the memory is asked; None: routing keys on the model's device as they are
                stored, content mapped from disk.
            ranks: processes that share the memory (Memory Parallel). All of them open the same folder or copies of it;
                each loads its share, and all ask the same questions at the same time. They stay at the version of the
                first question. Only rank 0 can have it open for writing; the others then help it encode
                (:func:`msa.parallel.follow_encoding`).

        Raises:
            BankNotFoundError: no memory there and ``create`` is False (or ``read_only`` is True).
            BankMismatchError: the memory was made by another model.
            BankLockedError: another process is writing to it.
            BankFormatError, BankCorruptError: it is no memory, or a damaged one.
            TypeError: ``model`` is neither a model nor a name.
            ValueError: ``tiers`` that this machine does not have.
        """
        (tiers or Tiers()).check_available()
        if isinstance(model, str | Path):
            model = load(model)
        if model is not None and not isinstance(model, MSAModel):
            raise TypeError(f"model must be a loaded model or the name of one, got {type(model).__name__}")
        if create and not read_only and not MemoryBank.exists(path):
            model = model or load()
            bank = MemoryBank.create(path, fingerprint=model.fingerprint, spec=spec_of(model), max_bytes=max_bytes)
            return cls(bank, model, tiers, ranks)
        bank = MemoryBank.open(
            path,
            fingerprint=None if model is None else model.fingerprint,
            model_name=None if model is None else model.name,
            read_only=read_only,
            max_bytes=max_bytes,
        )
        return cls(bank, model, tiers, ranks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self._bank.close()

    @property
    def model(self) -> MSAModel:
        """The model; loaded now if it was not given.

        Raises:
            BankMismatchError: the model of that name is no longer the one the memory was made with.
        """
        with self._making:
            if self._model is None:
                model = load(self._bank.spec.model_name)
                self._bank.check_fingerprint(model.fingerprint, model.name)
                self._model = model
            return self._model

    @property
    def bank(self) -> MemoryBank:
        """The bank underneath."""
        return self._bank

    def __len__(self) -> int:
        return len(self._bank)

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._bank

    def get(self, doc_id: str) -> Document | None:
        """One document as it was added; None if it is not there."""
        stored = self._bank.get(doc_id)
        return None if stored is None else Document(id=stored.id, text=stored.text, metadata=stored.metadata)

    def list(self, *, limit: int | None = None, after: str | None = None) -> builtins.list[Document]:
        """Documents in the order they were first added, ``limit`` of them after document ``after``.

        Raises:
            KeyError: there is no document ``after``.
            ValueError: ``limit`` is negative.
            TypeError: it is no whole number.
        """
        if limit is not None:
            check_whole("limit", limit)
        stored = self._bank.list(limit=limit, after=after)
        return [Document(id=item.id, text=item.text, metadata=item.metadata) for item in stored]

    def add(
        self,
        documents: Iterable[Mapping[str, Any] | Document | str],
        *,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> builtins.list[str]:
        """Encode documents into the memory.

        The same id with the same text costs nothing; with new text it updates the document; of an id given several
        times the last one stays. Work is committed as it goes: what an interrupted call had committed is kept, and
        calling again goes on from there. On a GPU documents are read up to two windows ahead of the commits.

        Args:
            documents: mappings with ``text`` and optionally ``id`` and ``metadata``, :class:`Document` objects, or
                plain strings; any iterable, read as it is needed.
            progress: called after each batch and commit.

        Returns:
            The ids, one per document given.

        Raises:
            DocumentError: an item that is no document; names its position. What came before it is added, also where the
                iterable itself fails.
            NotFiniteError: the model makes NaN or infinite latents of documents, which are named; what was committed
                before stays.
            BankFullError: the memory would grow beyond ``max_bytes``; what was committed before stays.
            BankUnreadableError: whether one of them is there already cannot be read at present.
            TypeError: one document instead of several.
        """
        self._bank.check_open()
        ids: builtins.list[str] = []
        groups = windows(documents_from_mappings(documents), ids, self._writer.commit_tokens)
        self._writer.add(groups, progress)
        return ids

    def delete(self, ids: Iterable[str]) -> builtins.list[str]:
        """Remove documents; returns the ids that were there. Unknown ids are ignored."""
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            got = "one string" if isinstance(ids, str) else f"one {type(ids).__name__}"
            raise TypeError(f"delete expects several ids, as in memory.delete(['a']); got {got}")
        wanted = [*dict.fromkeys(ids)]
        with self._writer.changing:
            found = self._bank.state().find(wanted)
            present = [doc_id for doc_id in wanted if doc_id in found]
            if present:
                self._bank.commit(delete=present)
        return present

    def search(
        self, query: str, top_k: int = 16, where: Mapping[str, Any] | None = None, *, hybrid: bool = False
    ) -> builtins.list[Hit]:
        """The best documents for a query by the mean of the router layers' scores; nothing is generated.

        Args:
            query: the user's words.
            top_k: documents to return, at most; of a long document its best part.
            where: metadata a document must have, ``{"lang": "en"}``; a list means any of its members, and a document's
                own list matches if one of its members does.
            hybrid: fuse the routers' order with that of exact words; each hit's ``ranking`` says so.

        Raises:
            ValueError: an empty query or ``top_k`` below 1.
            TypeError: a query that is no text, a ``top_k`` that is no whole number.
            NoDocumentsError: the memory holds no documents; where only none match ``where``, none are found.
            BankFileError: no document can be found, because the latents are damaged or cannot be read.
        """
        check_whole("top_k", top_k)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        engine = self._current_engine()
        wanted = top_k
        while True:
            hits = engine.search([query], wanted, where, hybrid=hybrid)[0]
            best: dict[str, Hit] = {}
            for hit in hits:
                best.setdefault(hit.id, hit)
            if len(best) >= top_k or len(hits) < wanted:
                return [*best.values()][:top_k]
            wanted *= 4  # parts of the same documents crowd the list: look further

    def ask(self, question: str, **options: Any) -> Answer:
        """Answer one question; ``options`` as for :meth:`stream`."""
        return self._current_engine().ask([question], _options(**options))[0]

    def ask_many(self, questions: Sequence[str], **options: Any) -> builtins.list[Answer]:
        """Answer several questions as one batch; each gets the answer it would get alone, up to rounding in 16 bits.

        Raises:
            TypeError: one string instead of several questions; else as for :meth:`stream`.
        """
        return self._current_engine().ask(questions, _options(**options))

    def stream(self, question: str, *, cancelled: Callable[[], bool] | None = None, **options: Any) -> Iterator[Event]:
        """Answer one question, event by event.

        Args:
            question: the user's words.
            cancelled: asked between tokens; True ends the answer with ``finish_reason="cancelled"``.
            options: fields of :class:`msa.AskOptions` (``max_rounds``, ``max_new_tokens``, ``retrieval``, ``where``,
                ``stop``, …) and of :class:`msa.Sampling` (``temperature``, ``top_p``, ``top_k``, ``seed``).

        Yields:
            :class:`msa.RoundStarted`, :class:`msa.DocumentRetrieved`, :class:`msa.TextPiece`, and one
            :class:`msa.Done` with the whole :class:`msa.Answer`.

        Raises:
            ValueError: an empty question, or one too long for the model's context.
            TypeError: a question that is no text.
            NoDocumentsError: the memory holds no documents, or none that match ``where``.
            BankFileError: no document can be found, because the latents are damaged or cannot be read.
        """
        return self._current_engine().stream(question, _options(**options), cancelled)

    def steps(
        self, question: str, *, cancelled: Callable[[], bool] | None = None, **options: Any
    ) -> Generator[Event | Decoding, None, None]:
        """As :meth:`stream`, to be answered together with other questions: see :class:`msa.engine.Batcher`."""
        return self._current_engine().steps(question, _options(**options), cancelled)

    def _current_engine(self) -> Engine:
        """An engine over the memory's latest version."""
        if len(self._bank) == 0:
            raise NoDocumentsError(
                f"memory {self._bank.path} holds no documents; add some first: msa add {self._bank.path} PATH…"
            )
        with self._making:
            # the state itself: it can become another one of the same version, where more of it can be read
            state = None if self._ranks is not None else self._bank.state()
            now = (state, self._similarity())
            if self._engine is None or self._engine[0] != now or time.monotonic() > self._look_again_s:
                if self._ranks is not None:
                    self._engine = (now, Engine(self.model, self._shared_view(self._ranks)))
                else:
                    self._view = self._newer_view()
                    self._engine = ((self._view.state, now[1]), Engine(self.model, self._view))
                    unread = any(isinstance(problem, BankUnreadableError) for problem in self._view.damage)
                    self._look_again_s = time.monotonic() + _PAUSE_S if unread else math.inf
            return self._engine[1]

    def _similarity(self) -> str:
        """What the model compares routing keys by, as its configuration says now."""
        return str(self.model.lm.config.routing_similarity)

    def _newer_view(self) -> View:
        """The latest version, by what is loaded of the last one."""
        try:
            return self.open_view(self._bank, self.model.device, self._tiers, self._view, self._similarity())
        except MemoryBudgetError:
            if self._view is None:
                raise
            # all was written anew, as by a compaction: there is room for one version, not for both
            self._view = self._engine = None
        return self.open_view(self._bank, self.model.device, self._tiers, None, self._similarity())

    def _shared_view(self, ranks: Ranks) -> ShardedLibrary:
        """This process's share of a version that all ranks see."""
        for _ in range(_AGREEMENT_ATTEMPTS):
            shard = (ranks.rank, ranks.world)
            view = BankView(self._bank, self.model.device, self._tiers, None, self._similarity(), shard)
            versions = torch.cat(ranks.gather(torch.tensor([view.version])))
            if bool((versions == view.version).all()):
                return ShardedLibrary(view, ranks, view.positions.tolist())
        raise ParallelError(
            f"the ranks see different versions of {self._bank.path}: {versions.tolist()}. Stop writing to it, or bring "
            "the copies to the same state"
        )

    def stats(self) -> dict[str, Any]:
        """Counts and sizes: documents, parts, chunks, tokens, bytes on disk, and the model it was made with."""
        return self._bank.stats()

    def verify(self) -> builtins.list[str]:
        """Check every checksum; returns one line per problem, naming the file. Empty: all is sound."""
        return self._bank.verify()

    def compact(self, *, drop_damaged: bool = False, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Rewrite the memory without deleted documents; returns what was gained. See :meth:`MemoryBank.compact`.

        ``check`` is called between two blocks of it; if it raises, nothing was changed.
        """
        with self._writer.changing:
            return self._bank.compact(drop_damaged=drop_damaged, check=check)

    def backup(self, destination: str | Path) -> None:
        """Copy the memory as it is now into a new or empty folder; the copy is a memory, checked byte by byte.

        Raises:
            BankError: the folder is not empty, or the disk failed.
            BankCorruptError: the memory is damaged; nothing is left.
        """
        self._bank.backup(destination)


def _options(**options: Any) -> AskOptions:
    """Ask options from one flat set of keywords."""
    drawn = {key: options.pop(key) for key in ("temperature", "top_p", "top_k", "seed") if key in options}
    stop = options.get("stop")
    options["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if drawn:
        options["sampling"] = Sampling(**drawn)
    return AskOptions(**options)
