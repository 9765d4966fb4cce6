"""The shapes of answers, for the API's description alone: answers are made, and not checked again, by the routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every answer that is an error."""

    error: ErrorDetails


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class Ready(BaseModel):
    """Questions are answered."""

    status: Literal["ready"]
    model: str


class ModelInfo(BaseModel):
    """The model with one memory."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    memory: str


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelInfo]


class UrlCitation(BaseModel):
    """Which characters of the content rest on which document."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A citation as OpenAI's clients read it."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class Message(BaseModel):
    """The answer's text and what it rests on."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Annotation]


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0]
    message: Message
    finish_reason: Literal["stop", "length"]
    logprobs: None


class CompletionDetails(BaseModel):
    """Of the completion's tokens those that are not in the text: ids of documents, and what was quoted."""

    reasoning_tokens: int


class UsageCounts(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class Source(BaseModel):
    """A document that was retrieved; ``read``: whether its text was given to the model.

    ``text`` is the ``part``-th of its ``parts``, beginning at the character ``offset``.
    """

    id: str
    title: str
    url: str
    score: float
    text: str
    metadata: dict[str, Any]
    part: int
    parts: int
    offset: int
    number: int
    read: bool
    ranking: Literal["memory", "hybrid"]


class RoundInfo(BaseModel):
    """What one round of retrieval found; ``selected``: per router layer the numbers of its documents."""

    retrieved: list[str]
    numbers: list[int]
    selected: dict[str, list[int]]


class Extras(BaseModel):
    """What only this server says of an answer; ``fetched_bytes``: selected documents' content read for it."""

    memory: str
    rounds: list[RoundInfo]
    votes: dict[str, list[str]]
    timings: dict[str, float]
    fetched_bytes: int
    notes: list[str]


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: UsageCounts
    sources: list[Source]
    msa: Extras


class MemoryName(BaseModel):
    """A memory; ``available``: it was made by the model that is served."""

    id: str
    object: Literal["memory"]
    available: bool


class MemoryList(BaseModel):
    """All memories that the key opens."""

    object: Literal["list"]
    data: list[MemoryName]


class MemoryInfo(BaseModel):
    """Counts and sizes of a memory."""

    id: str
    object: Literal["memory"]
    read_only: bool
    documents: int
    parts: int
    chunks: int
    tokens: int
    segments: int
    bytes_on_disk: int
    deleted_parts: int
    version: int
    fingerprint: str
    model_name: str
    chunk_size: int
    layers: list[int]
    dtype: str


class MemoryDeleted(BaseModel):
    """What went with a memory; ``documents`` null: it could not be read."""

    id: str
    object: Literal["memory.deleted"]
    deleted: Literal[True]
    documents: int | None
    snapshots: int


class Found(BaseModel):
    """A document that a search found; ``part``, ``parts`` and ``offset`` as of a source."""

    id: str
    text: str
    score: float
    metadata: dict[str, Any]
    ranking: Literal["memory", "hybrid"]
    part: int
    parts: int
    offset: int


class FoundList(BaseModel):
    """They, best first."""

    object: Literal["list"]
    data: list[Found]


class Verification(BaseModel):
    """What is damaged."""

    object: Literal["memory.verification"]
    ok: bool
    problems: list[str]


class Compaction(BaseModel):
    """What compaction gained."""

    object: Literal["memory.compaction"]
    compacted: bool
    message: str


class Snapshot(BaseModel):
    """A checked copy of a memory."""

    id: str
    object: Literal["memory.snapshot"]
    memory: str
    created_at: int
    documents: int
    tokens: int
    bytes_on_disk: int
    version: int
    model_name: str


class SnapshotList(BaseModel):
    """The snapshots of a memory, oldest first."""

    object: Literal["list"]
    data: list[Snapshot]


class SnapshotDeleted(BaseModel):
    """A snapshot is gone."""

    id: str
    object: Literal["memory.snapshot.deleted"]
    deleted: Literal[True]


class Restored(BaseModel):
    """A new memory was made of a snapshot."""

    memory: str
    snapshot: str
    documents: int


class OperationInfo(BaseModel):
    """How long work stands."""

    id: str
    object: Literal["operation"]
    kind: Literal["add_documents", "compact", "snapshot", "restore"]
    memory: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: ErrorDetails | None
    created_at: int
    updated_at: int


class OperationList(BaseModel):
    """Operations, newest first."""

    object: Literal["list"]
    data: list[OperationInfo]
    has_more: bool


class DocumentInfo(BaseModel):
    """A document; ``text`` is left out where the request says so."""

    id: str
    object: Literal["document"]
    metadata: dict[str, Any]
    text: str = Field(default="")
    characters: int


class DocumentPage(BaseModel):
    """Documents in the order they were first added."""

    object: Literal["list"]
    data: list[DocumentInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None
    total: int


class DocumentsAdded(BaseModel):
    """Documents that are durable now, and what that took."""

    object: Literal["documents.added"]
    memory: str
    ids: list[str]
    documents: int
    encoded: int
    updated: int
    unchanged: int
    tokens: int


class DocumentDeleted(BaseModel):
    """A document is gone."""

    id: str
    object: Literal["document.deleted"]
    deleted: Literal[True]


class DocumentsDeleted(BaseModel):
    """Which documents are gone, and which were not there."""

    object: Literal["documents.deleted"]
    deleted: list[str]
    unknown: list[str]
