"""What the tools do: search, fetch, add and ask, on one memory. Knows nothing of MCP."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from msa.bank import MemoryBank
from msa.documents.formats import clean_surrogates
from msa.errors import MSAError
from msa.generation.types import Answer, Done
from msa.memory import AddProgress, Memory
from msa.model.bundle import MSAModel
from msa.serving.errors import ApiError, invalid, to_api_error
from msa.serving.intake import Limits, documents_of_body
from msa.serving.job import Job
from msa.serving.mcp.settings import McpSettings
from msa.serving.queries import check_query
from msa.serving.scheduler import Scheduler
from msa.serving.shape_caches import bound_shape_caches
from msa.zoo import load

logger = logging.getLogger(__name__)

_SNIPPET_CHARACTERS = 1000


class MemoryTools:
    """One memory and the thread that uses the model; :meth:`close` ends it.

    The memory is open for reading only, so that several such servers, ``msa add`` and ``msa serve`` can use it side by
    side; it is opened for writing for as long as one :meth:`add` takes. All methods that take a job run in the worker.

    Args:
        settings: which memory.
        model: the model; None: the one that the settings name, loaded by :meth:`ready` or with the first call.

    Raises:
        BankError: the memory cannot be opened.
        ValueError: tiers that this machine does not have.
    """

    def __init__(self, settings: McpSettings, model: MSAModel | None = None) -> None:
        bound_shape_caches()
        if settings.tiers is not None:
            settings.tiers.check_available()
        self.settings = settings
        self.folder = settings.folder
        self.name = settings.name
        self._limits = Limits(
            max_document_bytes=settings.max_document_bytes, max_id_characters=settings.max_id_characters
        )
        self._model = model
        self._bank: MemoryBank | None = None
        self._memory: Memory | None = None
        if settings.read_only or MemoryBank.exists(self.folder):
            self._bank = MemoryBank.open(self.folder, read_only=True)
        self.scheduler = Scheduler(settings.max_waiting, settings.max_waiting, name="msa-mcp")

    def ready(self, job: Job | None = None) -> Memory:
        """The open memory with its model, which is loaded now if it was not.

        Raises:
            ModelNotFoundError: the model cannot be found.
            BankMismatchError: another model made the memory.
        """
        if self._memory is None:
            if self._model is None:
                named = self.settings.model or (self._bank.spec.model_name if self._bank is not None else None)
                self._model = load(named, device=self.settings.device, dtype=self.settings.dtype)
            if self._bank is None:
                if not MemoryBank.exists(self.folder):
                    Memory.open(self.folder, self._model).close()
                    logger.warning("there was no memory %s; an empty one was made", self.folder)
                self._bank = MemoryBank.open(self.folder, read_only=True)
            self._bank.check_fingerprint(self._model.fingerprint, self._model.name)
            self._memory = Memory(self._bank, self._model, self.settings.tiers)
        return self._memory

    def search(self, job: Job, query: str) -> list[dict[str, str]]:
        """The best documents for a query, each with the beginning of the part that was found."""
        self._check_words(query, "query")
        memory = self._ready_for_questions()
        check_query(query, memory.model)
        if not len(memory):
            return []
        hits = memory.search(query, self.settings.top_k, hybrid=self.settings.hybrid)
        return [{**self._named(hit.id, hit.metadata), "text": _snippet(hit.text)} for hit in hits]

    def fetch(self, doc_id: str) -> dict[str, Any]:
        """One document; needs no model, and may be called in any thread.

        Raises:
            ApiError: there is none of this id.
        """
        document = self._bank.get(doc_id) if self._bank is not None else None
        if document is None:
            raise ApiError(404, f"there is no document {doc_id[:200]!r}; use an id that search returned")
        text, metadata = document.text, dict(document.metadata)
        most = self.settings.max_fetched_characters
        if len(text) > most:
            metadata["cut"] = f"the text has {len(text):,} characters; these are the first {most:,}"
        return {**self._named(doc_id, document.metadata), "text": clean_surrogates(text[:most]), "metadata": metadata}

    def add(self, job: Job, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Add documents, durably; between two batches the questions that wait are answered.

        Raises:
            DocumentError: one is no document.
            BankLockedError: another process is adding.
        """
        checked = documents_of_body({"documents": documents}, self._limits)
        if not checked or not all(document.text.strip() for document in checked):
            raise invalid("there is nothing to add: give text, or documents that all have a text")
        model = self._ready_for_questions().model
        last = AddProgress()

        def progress(done: AddProgress) -> None:
            nonlocal last
            last = done
            job.emit(f"{done.documents} of {len(checked)} documents")
            job.give_way()

        with Memory.open(self.folder, model, create=False) as writer:
            ids = writer.add(checked, progress=progress)
        counts = {key: getattr(last, key) for key in ("encoded", "updated", "unchanged", "tokens")}
        return {"ids": ids, **counts}

    def ask(self, job: Job, question: str) -> dict[str, Any]:
        """Answer a question; returns the answer, its sources (those the model read first) and the rounds.

        Raises:
            ApiError: an empty memory or question, or one that does not fit the model's context.
        """
        self._check_words(question, "question")
        memory = self._ready_for_questions()
        if not len(memory):
            raise invalid("the memory holds no documents; add some first")
        answer = self._answer(memory, job, question)
        sources: dict[str, dict[str, Any]] = {}
        for hit in sorted(answer.sources, key=lambda hit: not hit.read):
            shown = {**self._named(hit.id, hit.metadata), "score": round(hit.score, 6), "read": hit.read}
            sources.setdefault(hit.id, shown)
        return {
            "answer": answer.text,
            "sources": [*sources.values()],
            "rounds": [found.retrieved for found in answer.rounds],
            "finish_reason": answer.finish_reason,
            "notes": answer.notes,
        }

    def _answer(self, memory: Memory, job: Job, question: str) -> Answer:
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "hybrid": self.settings.hybrid}
        try:
            for event in memory.stream(question, cancelled=job.should_stop, **options):
                if job.stop_reason is not None:
                    raise job.stop_reason
                if isinstance(event, Done):
                    return event.answer
        except ValueError as error:  # a question that does not fit: the engine says how much does
            raise invalid(str(error)) from error
        raise RuntimeError("the engine ended an answer without its last event")

    def error_message(self, error: BaseException) -> str:
        """What a client is told about a failure; no path of this machine."""
        return to_api_error(error, self.folder).message

    def stop_accepting(self) -> None:
        """Take no new calls."""
        self.scheduler.close()

    def abort(self) -> None:
        """Fail all calls that wait or run."""
        self.scheduler.abort()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop, and close the memory once nothing uses it."""
        self.abort()
        if not self.scheduler.join(timeout_s):
            logger.warning("a call was still running when the server was closed")
        elif self._bank is not None:
            self._bank.close()

    def _ready_for_questions(self) -> Memory:
        """As :meth:`ready`, for a client: what failed goes to the log."""
        try:
            return self.ready()
        except (MSAError, ValueError, OSError, ImportError) as error:
            logger.error("the model or the memory cannot be opened: %s", error)
            message = "the model of this memory cannot be loaded; the server's log says why"
            raise ApiError(503, message, "model_not_loaded") from error

    def _check_words(self, text: str, what: str) -> None:
        if not text.strip():
            raise invalid(f"the {what} is empty")
        if len(text) > self.settings.max_query_characters:
            raise invalid(
                f"the {what} has {len(text):,} characters; {self.settings.max_query_characters:,} are allowed. "
                "Put long texts into the memory, and ask about them"
            )

    def _named(self, doc_id: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        title = str(metadata.get("title") or metadata.get("path") or doc_id)
        return {"id": doc_id, "title": title, "url": document_url(self.name, doc_id, metadata)}


def document_url(memory: str, doc_id: str, metadata: Mapping[str, Any]) -> str:
    """The document's address: ``url`` or ``path`` of its metadata, else one of ours.

    >>> document_url("my notes", "a/b c", {})
    'msa://my%20notes/a%2Fb%20c'
    >>> document_url("m", "a", {"path": "/notes/a b.md"}), document_url("m", "a", {"url": "https://example.com/a"})
    ('file:///notes/a%20b.md', 'https://example.com/a')
    """
    url, path = metadata.get("url"), metadata.get("path")
    if isinstance(url, str) and url:
        return url
    if isinstance(path, str) and path:
        return f"file://{quote(path, errors='replace')}" if path.startswith("/") else quote(path, errors="replace")
    return f"msa://{quote(memory, safe='', errors='replace')}/{quote(doc_id, safe='', errors='replace')}"


def _snippet(text: str) -> str:
    return text if len(text) <= _SNIPPET_CHARACTERS else text[:_SNIPPET_CHARACTERS].rstrip() + "…"
