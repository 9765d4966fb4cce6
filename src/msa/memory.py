"""The user's memory: documents in a folder that can be added to, changed, searched and asked."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from msa.bank import BankSpec, Latents, MemoryBank, Part, StoredDocument
from msa.documents import Document
from msa.documents.readers import documents_from_mappings
from msa.documents.splitting import split_text
from msa.encoding import encode_in_batches
from msa.engine import Engine
from msa.errors import BankError, ParallelError
from msa.generation.options import AskOptions
from msa.generation.sampling import Sampling
from msa.generation.types import Answer, Event, Hit
from msa.model.bundle import MSAModel
from msa.ops.route import quantize_keys
from msa.parallel import Ranks, ShardedLibrary, lead_encoding
from msa.routing import BankView, Tiers
from msa.routing.segment_latents import similarity_of
from msa.zoo import load

_AGREEMENT_ATTEMPTS = 5
_COMMIT_TOKENS = 65536  # encoded between two commits: what a kill can cost, and what is held in memory


@dataclass(frozen=True, kw_only=True)
class AddProgress:
    """How far an :meth:`Memory.add` has come; all counts since its start.

    Attributes:
        documents: documents read so far, unchanged ones included.
        encoded: documents committed with a new text.
        updated: documents committed with new metadata only.
        unchanged: documents that were already there, or given again before the commit.
        tokens: tokens encoded.
        characters: characters of the documents read.
    """

    documents: int = 0
    encoded: int = 0
    updated: int = 0
    unchanged: int = 0
    tokens: int = 0
    characters: int = 0


class Memory:
    """A memory folder with the model that reads it; a context manager. Open one with :meth:`open`."""

    def __init__(
        self, bank: MemoryBank, model: MSAModel | None, tiers: Tiers | None = None, ranks: Ranks | None = None
    ) -> None:
        self._bank = bank
        self._model = model
        self._tiers = tiers
        self._ranks = ranks
        self._view: BankView | None = None
        self._engine: tuple[int, Engine] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: MSAModel | str | None = None,
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
        """
        if isinstance(model, str):
            model = load(model)
        if create and not read_only and not MemoryBank.exists(path):
            model = model or load()
            bank = MemoryBank.create(path, fingerprint=model.fingerprint, spec=_spec_of(model), max_bytes=max_bytes)
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
        """Documents in the order they were first added, ``limit`` of them after document ``after``."""
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
        calling again goes on from there.

        Args:
            documents: mappings with ``text`` and optionally ``id`` and ``metadata``, :class:`Document` objects, or
                plain strings; any iterable, read as it is needed.
            progress: called after each batch and commit.

        Returns:
            The ids, one per document given.

        Raises:
            DocumentError: an item that is no document; names its position.
            BankFullError: the memory would grow beyond ``max_bytes``; what was committed before stays.
        """
        ids: builtins.list[str] = []
        done = AddProgress()
        for window in self._windows(documents_from_mappings(documents), ids):
            done = self._add_window(window, done, progress)
        return ids

    def _windows(self, documents: Iterator[Document], ids: builtins.list[str]) -> Iterator[builtins.list[Document]]:
        """Documents in groups of about one commit's size; notes every id."""
        window: builtins.list[Document] = []
        size = 0
        for document in documents:
            ids.append(document.id)
            window.append(document)
            size += len(document.text) // 3 + 16  # tokens, roughly
            if size >= _COMMIT_TOKENS:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _add_window(
        self, window: builtins.list[Document], done: AddProgress, progress: Callable[[AddProgress], None] | None
    ) -> AddProgress:
        put: builtins.list[StoredDocument] = []
        sequences: builtins.list[builtins.list[int]] = []
        encoded = updated = 0
        number = self._bank.next_number
        distinct = {document.id: document for document in window}
        present = self._bank.content_hashes([*distinct])
        for document in distinct.values():
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            if present.get(document.id) == digest:
                stored = self._bank.get(document.id)
                assert stored is not None
                if stored.metadata != document.metadata:
                    put.append(_stored(document, digest, stored.parts))
                    updated += 1
                continue
            parts, token_ids = self._split(document.text, number)
            number += len(parts)
            sequences += token_ids
            put.append(_stored(document, digest, parts))
            encoded += 1

        tokens_done = done.tokens

        def report(tokens: int) -> None:
            nonlocal tokens_done
            tokens_done += tokens
            if progress:
                progress(AddProgress(**{**vars(done), "tokens": tokens_done}))

        latents = self._encode(put, sequences, report) if sequences else None
        if put:
            self._bank.commit(put=put, latents=latents)
        done = AddProgress(
            documents=done.documents + len(window),
            encoded=done.encoded + encoded,
            updated=done.updated + updated,
            unchanged=done.unchanged + len(window) - encoded - updated,
            tokens=tokens_done,
            characters=done.characters + sum(len(document.text) for document in window),
        )
        if progress:
            progress(done)
        return done

    def _split(self, text: str, number: int) -> tuple[tuple[Part, ...], builtins.list[builtins.list[int]]]:
        """Parts of a text, numbered from ``number``, and the token ids each is encoded as."""
        protocol, chunk_size = self.model.protocol, self._bank.spec.chunk_size
        spans = split_text(text, max_tokens=protocol.strings.max_document_tokens, token_starts=protocol.plain_starts)
        parts, sequences = [], []
        for offset, (start, end) in enumerate(spans):
            ids = protocol.document_ids(number + offset, text[start:end])
            sequences.append(ids)
            parts.append(
                Part(
                    number=number + offset,
                    start=start,
                    end=end,
                    num_tokens=len(ids),
                    num_chunks=-(-len(ids) // chunk_size),
                )
            )
        return tuple(parts), sequences

    def _encode(
        self, put: Sequence[StoredDocument], sequences: Sequence[Sequence[int]], report: Callable[[int], None]
    ) -> Latents:
        """Stage 1 over the new parts, in the order of their numbers, in the bank's dtype on the CPU."""
        if self._ranks is not None:
            memory = lead_encoding(self.model.lm, sequences, self._ranks, progress=report)
        else:
            memory = encode_in_batches(self.model.lm, sequences, progress=report)
        dtype = getattr(torch, self._bank.spec.dtype)
        first = self._bank.next_number

        def stored(states: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            return {layer: tensor.to("cpu", dtype) for layer, tensor in states.items()}

        routing_keys = stored(memory.routing_keys)
        similarity = similarity_of(self._bank.spec)
        eight = {layer: quantize_keys(keys, similarity) for layer, keys in routing_keys.items() if self._bank.spec.int8}
        return Latents(
            routing_keys=routing_keys,
            int8_routing_keys={layer: block.keys for layer, block in eight.items()},
            int8_scales={layer: block.scale for layer, block in eight.items()},
            keys=stored(memory.keys),
            values=stored(memory.values),
            numbers=torch.arange(first, first + len(sequences)),
            chunk_offsets=memory.chunk_offsets.cpu(),
        )

    def delete(self, ids: Iterable[str]) -> builtins.list[str]:
        """Remove documents; returns the ids that were there. Unknown ids are ignored."""
        if isinstance(ids, str):
            raise TypeError("delete expects several ids, as in memory.delete(['a']); got one string")
        present = [doc_id for doc_id in dict.fromkeys(ids) if doc_id in self._bank]
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
            where: metadata a document must have, ``{"lang": "en"}``.
            hybrid: fuse the routers' order with that of exact words; each hit's ``ranking`` says so.

        Raises:
            ValueError: an empty query or ``top_k`` below 1.
        """
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
        """Answer several questions as one batch; each gets the answer it would get alone."""
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
            BankError: the memory holds no documents.
        """
        return self._current_engine().stream(question, _options(**options), cancelled)

    def _current_engine(self) -> Engine:
        """An engine over the memory's latest version."""
        if len(self._bank) == 0:
            raise BankError(
                f"memory {self._bank.path} holds no documents; add some first: msa add {self._bank.path} PATH…"
            )
        if self._ranks is not None:
            if self._engine is None:
                self._engine = (0, Engine(self.model, self._shared_view(self._ranks)))
            return self._engine[1]
        version = self._bank.version
        if self._engine is None or self._engine[0] != version:
            self._view = BankView(self._bank, self.model.device, self._tiers, self._view)
            self._engine = (self._view.version, Engine(self.model, self._view))
        return self._engine[1]

    def _shared_view(self, ranks: Ranks) -> ShardedLibrary:
        """This process's share of a version that all ranks see."""
        for _ in range(_AGREEMENT_ATTEMPTS):
            view = BankView(self._bank, self.model.device, self._tiers, shard=(ranks.rank, ranks.world))
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

    def compact(self, *, drop_damaged: bool = False) -> dict[str, Any]:
        """Rewrite the memory without deleted documents; returns what was gained. See :meth:`MemoryBank.compact`."""
        return self._bank.compact(drop_damaged=drop_damaged)

    def backup(self, destination: str | Path) -> None:
        """Copy the memory as it is now into a new or empty folder; the copy is a memory, checked byte by byte.

        Raises:
            BankError: the folder is not empty, or the disk failed.
            BankCorruptError: the memory is damaged; nothing is left.
        """
        self._bank.backup(destination)


def _spec_of(model: MSAModel) -> BankSpec:
    config = model.lm.config
    return BankSpec(
        layers=tuple(config.router_layers),
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        chunk_size=config.chunk_size,
        dtype=str(model.lm.dtype).removeprefix("torch."),
        model_name=model.name,
        settings={"routing_similarity": config.routing_similarity},
        int8=True,
    )


def _stored(document: Document, digest: str, parts: tuple[Part, ...]) -> StoredDocument:
    return StoredDocument(
        id=document.id, text=document.text, metadata=document.metadata, content_hash=digest, parts=parts
    )


def _options(**options: Any) -> AskOptions:
    """Ask options from one flat set of keywords."""
    drawn = {key: options.pop(key) for key in ("temperature", "top_p", "top_k", "seed") if key in options}
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    if drawn:
        options["sampling"] = Sampling(**drawn)
    return AskOptions(**options)
