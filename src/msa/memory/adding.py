"""Adding documents to a memory: windows of about one commit's size, of which only what is new is encoded."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from msa.bank import BankSpec, Latents, MemoryBank, Part, StoredDocument
from msa.bank.schema import dump_json
from msa.documents import Document
from msa.encoding import encode_in_batches
from msa.memory.pieces import Pieces
from msa.model import DocumentMemory
from msa.model.bundle import MSAModel
from msa.ops.route import quantize_keys
from msa.parallel import Ranks, lead_encoding
from msa.routing.segment_latents import similarity_of

_COMMIT_TOKENS = 65536  # encoded between two commits: what a kill can cost, and what is held in memory
_GPU_COMMIT_TOKENS = 1 << 20  # the same where that is seconds of work


@dataclass(frozen=True, kw_only=True)
class AddProgress:
    """How far an :meth:`Memory.add` has come; all counts since its start.

    Attributes:
        documents: documents read so far, unchanged ones included.
        encoded: documents committed with a new text.
        updated: documents committed with new metadata only, or replaced before the commit by a later one of their id.
        unchanged: documents that were already there, or given again as they were before the commit.
        tokens: tokens encoded.
        characters: characters of the documents read.
    """

    documents: int = 0
    encoded: int = 0
    updated: int = 0
    unchanged: int = 0
    tokens: int = 0
    characters: int = 0


def windows(
    documents: Iterator[Document], ids: list[str], commit_tokens: Callable[[], int] | None = None
) -> Iterator[list[Document]]:
    """Documents in groups of about one commit's size, ``commit_tokens`` if given; notes every id in ``ids``.

    Where reading fails, what was read before it is the last group.
    """
    window: list[Document] = []
    size = 0
    try:
        for document in documents:
            ids.append(document.id)
            window.append(document)
            size += len(document.text) // 3 + 16  # tokens, roughly
            if size >= (commit_tokens() if commit_tokens else _COMMIT_TOKENS):
                yield window
                window, size = [], 0
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window


@dataclass(frozen=True)
class _Plan:
    """What a window changes.

    Attributes:
        window: the documents given.
        first: the first number it may use.
        new: documents with a new text; updates: those with new metadata alone.
        sequences: token ids of the new parts, in the order of their numbers.
        num_replaced: documents of the window that a later one, of the same id and another content, takes the place of.
        finished: set once it is committed, or has failed.
    """

    window: Sequence[Document]
    first: int
    new: list[StoredDocument] = field(default_factory=list)
    updates: list[StoredDocument] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)
    num_replaced: int = 0
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def end(self) -> int:
        """The number after the last it uses."""
        return self.first + len(self.sequences)

    def after(self, done: AddProgress) -> AddProgress:
        """What is done once it is committed, of ``done`` before; tokens are counted elsewhere."""
        return replace(
            done,
            documents=done.documents + len(self.window),
            encoded=done.encoded + len(self.new),
            updated=done.updated + len(self.updates) + self.num_replaced,
            unchanged=done.unchanged + len(self.window) - len(self.new) - len(self.updates) - self.num_replaced,
            characters=done.characters + sum(len(document.text) for document in self.window),
        )


class _Turns:
    """Who may use the next numbers: one add at a time, until the windows it has begun are committed or given up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object = None
        self._windows = self._waiting = 0

    def take(self, who: object) -> None:
        """Wait for the turn of one more window; who has one at work waits only where others do."""
        with self._changed:
            if self._holder is not who or self._waiting:
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: not self._windows)
                finally:
                    self._waiting -= 1
            self._holder = who
            self._windows += 1

    def give_back(self, who: object, *, all_windows: bool = False) -> None:
        """One window, or all, of ``who`` are no longer at work."""
        with self._changed:
            if self._holder is who:
                self._windows = 0 if all_windows else max(0, self._windows - 1)
                self._changed.notify_all()


class WindowWriter:
    """Commits windows of documents, one after the other also where several threads add.

    On a GPU the next window is tokenised and the last one committed while one is encoded; what is in the memory
    afterwards is the same.

    Args:
        bank: open for writing.
        load_model: gives the model, asked only when there is something to encode.
        ranks: processes that help to encode.

    Attributes:
        changing: to be held by whatever else changes the bank. It is free while a window is encoded.
    """

    def __init__(self, bank: MemoryBank, load_model: Callable[[], MSAModel], ranks: Ranks | None) -> None:
        self.changing = threading.Lock()
        self._turns = _Turns()
        self._bank = bank
        self._load_model = load_model
        self._ranks = ranks
        self._on_gpu = False  # as far as is known: the model may not be loaded yet
        self._overlapped: bool | None = None  # None: on a GPU
        self._copying: torch.cuda.Stream | None = None

    def commit_tokens(self) -> int:
        """About so many tokens are a window."""
        return _GPU_COMMIT_TOKENS if self._on_gpu else _COMMIT_TOKENS

    def add(self, rest: Iterator[Sequence[Document]], progress: Callable[[AddProgress], None] | None) -> None:
        """Encode what is new of each window and commit it."""
        done = AddProgress()
        for window in rest:
            overlapped = self._on_gpu if self._overlapped is None else self._overlapped
            if overlapped and self._ranks is None:
                self._add_overlapped(window, rest, _Progress(done, progress))
                return
            done = self._add_one(window, _Progress(done, progress))

    def _add_one(self, window: Sequence[Document], told: _Progress) -> AddProgress:
        """One window from its texts to its commit: the reference for what happens side by side."""
        who = object()
        self._turns.take(who)
        try:
            plan = self._plan(window)
            self._commit(plan, self._encode(plan, told.encoded))
        finally:
            self._turns.give_back(who)
        told.committed(plan)
        return told.done

    def _add_overlapped(
        self, window: Sequence[Document] | None, rest: Iterator[Sequence[Document]], told: _Progress
    ) -> None:
        """This window and the rest; reading them and progress stay in the caller's thread."""
        who = object()
        ahead: Future[Pieces] | None = None
        behind: tuple[_Plan, Future[None]] | None = None
        unreadable: Exception | None = None
        try:
            with ThreadPoolExecutor(2, thread_name_prefix="msa-add") as threads:
                while window is not None:
                    # read while no turn is needed: whatever the documents come from may add to the memory itself
                    following = None
                    try:
                        following = next(rest, None)
                    except Exception as error:
                        unreadable = error  # once what came before is committed
                    pieces = ahead.result() if ahead else None
                    self._turns.take(who)
                    plan = self._plan(window, pieces, behind[0] if behind else None)
                    ahead = threads.submit(self._tokenise, following, plan.end) if following else None
                    memory = self._encode(plan, told.encoded)
                    if behind:
                        behind[1].result()
                        told.committed(behind[0])
                    ready = _recorded(memory)
                    behind = plan, threads.submit(self._commit_and_give_back, who, plan, memory, ready)
                    window = following
                if behind:
                    behind[1].result()
                    told.committed(behind[0])
        finally:
            self._turns.give_back(who, all_windows=True)
        if unreadable:
            raise unreadable

    def _commit_and_give_back(
        self, who: object, plan: _Plan, memory: DocumentMemory | None, ready: torch.cuda.Event | None
    ) -> None:
        try:
            self._commit(plan, memory, ready)
        finally:
            plan.finished.set()
            self._turns.give_back(who)

    def _commit(self, plan: _Plan, memory: DocumentMemory | None, ready: torch.cuda.Event | None = None) -> None:
        latents = None if memory is None else self._latents(plan, memory, ready)
        with self.changing:
            # what was deleted while the others were encoded stays so
            there = self._bank.sound_documents(document.id for document in plan.updates)
            kept = [each for each in plan.updates if each.id in there and there[each.id].parts == each.parts]
            if plan.new or kept:
                self._bank.commit(put=[*plan.new, *kept], latents=latents)

    def _plan(self, window: Sequence[Document], pieces: Pieces | None = None, before: _Plan | None = None) -> _Plan:
        """What of a window is new, after what is in the bank and what, ``before`` it, is being committed.

        ``pieces`` has tokenised what was thought to be new.
        """
        if before and before.finished.is_set():  # looked at first: from here on the bank has it
            before = None
        distinct, num_replaced = _distinct(window)
        present = self._bank.sound_documents(distinct)
        first = self._bank.next_number
        if before:
            first = max(first, before.end)
            present |= {each.id: each for each in before.updates if each.id in present}
            present |= {each.id: each for each in before.new if each.id in distinct}
        plan = _Plan(window, first, num_replaced=num_replaced)
        changed: list[tuple[Document, str]] = []
        for document in distinct.values():
            digest = text_digest(document.text)
            stored = present.get(document.id)
            if stored is None or stored.content_hash != digest:
                changed.append((document, digest))
            elif _differ(stored.metadata, document.metadata):
                plan.updates.append(_stored(document, digest, stored.parts))
        if changed:
            pieces = pieces or self._pieces()
            cut = pieces.of([document.text for document, _ in changed], first)
            for (document, digest), (parts, token_ids) in zip(changed, cut, strict=True):
                plan.new.append(_stored(document, digest, parts))
                plan.sequences.extend(token_ids)
        return plan

    def _tokenise(self, window: Sequence[Document], number: int) -> Pieces:
        """What :meth:`_plan` will most likely ask for when its turn comes; the next number is most likely this."""
        distinct = {document.id: document for document in window}
        hashes = self._bank.content_hashes(distinct)
        pieces = self._pieces()
        pieces.of([each.text for each in distinct.values() if hashes.get(each.id) != text_digest(each.text)], number)
        return pieces

    def _pieces(self) -> Pieces:
        return Pieces(self._model().protocol, self._bank.spec.chunk_size)

    def _model(self) -> MSAModel:
        model = self._load_model()
        self._on_gpu = model.device.type == "cuda"
        return model

    def _encode(self, plan: _Plan, report: Callable[[int], None]) -> DocumentMemory | None:
        """Stage 1 over the new parts, in the order of their numbers; None: there are none."""
        if not plan.sequences:
            return None
        lm = self._model().lm
        if self._ranks is not None:
            return lead_encoding(lm, plan.sequences, self._ranks, progress=report)
        return encode_in_batches(lm, plan.sequences, progress=report)

    def _latents(self, plan: _Plan, memory: DocumentMemory, ready: torch.cuda.Event | None) -> Latents:
        """A plan's latents in the bank's dtype on the CPU, copied beside what the GPU does after they are ``ready``."""
        if ready is None:
            return self._copied(plan, memory)
        device = memory.chunk_offsets.device
        self._copying = self._copying or torch.cuda.Stream(device)
        self._copying.wait_event(ready)
        with torch.cuda.stream(self._copying):
            return self._copied(plan, memory)

    def _copied(self, plan: _Plan, memory: DocumentMemory) -> Latents:
        spec = self._bank.spec
        dtype = getattr(torch, spec.dtype)

        def stored(states: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            return {layer: tensor.to("cpu", dtype) for layer, tensor in states.items()}

        similarity = similarity_of(spec)
        routing_keys = memory.routing_keys.items() if spec.int8 else ()
        eight = {layer: quantize_keys(keys.to(dtype), similarity) for layer, keys in routing_keys}
        return Latents(
            routing_keys=stored(memory.routing_keys),
            int8_routing_keys={layer: block.keys.cpu() for layer, block in eight.items()},
            int8_scales={layer: block.scale.cpu() for layer, block in eight.items()},
            keys=stored(memory.keys),
            values=stored(memory.values),
            numbers=torch.arange(plan.first, plan.end),
            chunk_offsets=memory.chunk_offsets.cpu(),
        )


class _Progress:
    """Counts what is done and tells it; ``done.tokens`` is of what is encoded, the rest of what is committed."""

    def __init__(self, done: AddProgress, tell: Callable[[AddProgress], None] | None) -> None:
        self.done, self._tell = done, tell

    def encoded(self, tokens: int) -> None:
        """So many more tokens are encoded."""
        self._now(replace(self.done, tokens=self.done.tokens + tokens))

    def committed(self, plan: _Plan) -> None:
        """A window is committed."""
        self._now(plan.after(self.done))

    def _now(self, done: AddProgress) -> None:
        self.done = done
        if self._tell:
            self._tell(done)


def _recorded(memory: DocumentMemory | None) -> torch.cuda.Event | None:
    """What to wait for before the latents can be read; None: nothing."""
    if memory is None or memory.chunk_offsets.device.type != "cuda":
        return None
    return torch.cuda.current_stream(memory.chunk_offsets.device).record_event()


def spec_of(model: MSAModel) -> BankSpec:
    """The shape of the latents that a model makes."""
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


def text_digest(text: str) -> str:
    """What tells whether a document's text has changed: SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _distinct(window: Sequence[Document]) -> tuple[dict[str, Document], int]:
    """The last document of each id, and how many before them have another content than the next of their id."""
    distinct: dict[str, Document] = {}
    num_replaced = 0
    for document in window:
        earlier = distinct.get(document.id)
        if earlier and (earlier.text != document.text or _differ(earlier.metadata, document.metadata)):
            num_replaced += 1
        distinct[document.id] = document
    return distinct, num_replaced


def _differ(stored: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether metadata are other JSON; to Python's comparison 1, 1.0 and true are the same."""
    return dump_json(stored, "metadata") != dump_json(given, "metadata")


def _stored(document: Document, digest: str, parts: tuple[Part, ...]) -> StoredDocument:
    return StoredDocument(
        id=document.id, text=document.text, metadata=document.metadata, content_hash=digest, parts=parts
    )
