"""``/v1/memories/{name}/documents``: adding, changing, reading and removing documents."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from starlette.convertors import Convertor, register_url_convertor

from msa.documents import Document
from msa.documents.formats import clean_surrogates
from msa.documents.readers import documents_from_mappings
from msa.memory import AddProgress, Memory
from msa.serving.bodies import discard, spool_body, spool_documents, start_spooled
from msa.serving.errors import ApiError, invalid, memory_not_found
from msa.serving.http import (
    KeyOf,
    OperationsOf,
    ReadableMemory,
    ServicesOf,
    WritableMemory,
    as_model,
    deadline_of,
    length_of,
    read_json,
    result_of,
    room_for_body,
)
from msa.serving.idempotency import once
from msa.serving.intake import checked, documents_of_body, media_type
from msa.serving.job import Job, Lane
from msa.serving.keys import ApiKey
from msa.serving.ledger import TakenKey
from msa.serving.openapi import described
from msa.serving.operations import Operations
from msa.serving.scheduler import Place
from msa.serving.schemas import (
    DocumentDeleted,
    DocumentInfo,
    DocumentPage,
    DocumentsAdded,
    DocumentsDeleted,
    OperationInfo,
)
from msa.serving.services import Services
from msa.serving.waiting import answer_operation


class _DocumentId(Convertor[str]):
    """The rest of the path, newlines included, which Starlette's own ``path`` leaves out."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("document_id", _DocumentId())
router = APIRouter(prefix="/v1/memories/{name}/documents", tags=["documents"])

_UPLOADS = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "multipart/form-data")
_PAGE = 50  # documents read at a time
_PAGE_BYTES = 8 << 20  # of texts and metadata in one listing
_MAX_DELETED = 10_000
_DOCUMENT = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 512},
        "text": {"type": "string"},
        "metadata": {"type": "object"},
    },
}
_DOCUMENTS = {"type": "array", "items": _DOCUMENT}
_MANY = {"type": "object", "required": ["documents"], "properties": {"documents": _DOCUMENTS}}
_ADDITION = {
    "required": True,
    "content": {
        "application/json": {"schema": {"anyOf": [_MANY, _DOCUMENT]}},
        "application/x-ndjson": {"schema": {"type": "string"}},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
        },
    },
}


class DeleteRequest(BaseModel):
    """Body of a removal of several documents."""

    model_config = ConfigDict(extra="ignore")
    ids: Annotated[list[StrictStr], Field(max_length=_MAX_DELETED)]


class PutRequest(BaseModel):
    """Body that replaces a document."""

    model_config = ConfigDict(extra="ignore")
    text: StrictStr
    metadata: dict[str, Any] = Field(default_factory=dict)


class PatchRequest(BaseModel):
    """Body that changes a document; what is left out stays."""

    model_config = ConfigDict(extra="ignore")
    text: StrictStr | None = None
    metadata: dict[str, Any] | None = None


@router.post(
    "",
    **described(
        {200: DocumentsAdded | OperationInfo, 202: OperationInfo},
        body=_ADDITION,
        errors=(429, 504, 507),
        idempotent=True,
    ),
)
async def add_documents(
    name: WritableMemory,
    request: Request,
    key: KeyOf,
    services: ServicesOf,
    operations: OperationsOf,
    wait: bool | None = None,
) -> Response:
    """Add documents; answered when they are durable, large bodies with 202 and an operation unless ``wait=true``."""
    await asyncio.to_thread(_check_exists, name, services)
    if media_type(request.headers.get("content-type", "")) in _UPLOADS:
        return await _add_upload(name, request, key, services, operations, wait)
    with room_for_body(request, services):
        return await _add_json(name, request, key, services, operations, wait)


async def _add_json(
    name: str, request: Request, key: ApiKey, services: Services, operations: Operations, wait: bool | None
) -> Response:
    most = services.settings.background_bytes
    if wait is False or (length_of(request) or 0) > most:
        with operations.receiving() as place:
            return await _add_received(name, request, key, services, operations, wait, place)
    services.scheduler.check_room(Lane.WRITE)
    return await _add_received(name, request, key, services, operations, wait, None)


async def _add_received(
    name: str,
    request: Request,
    key: ApiKey,
    services: Services,
    operations: Operations,
    wait: bool | None,
    place: str | None,
) -> Response:
    """Add documents of a JSON body; ``place``: of the operation that it will be, None: it need not be one."""
    deadline, most = deadline_of(services), services.settings.background_bytes
    body, raw = await read_json(request, services.settings.max_json_bytes, services)
    at_once = place is None and len(raw) <= most
    with services.scheduler.place(Lane.WRITE) if at_once else contextlib.nullcontext() as turn:
        documents = await asyncio.to_thread(documents_of_body, body, services.limits)

        async def add(taken: TakenKey | None) -> Response:
            if turn is not None:
                return JSONResponse(await _add_now(name, documents, deadline, request, services, turn))
            with operations.receiving(place) as operation_id:
                arguments = (documents, name, operations, operation_id, taken)
                operation = await asyncio.to_thread(spool_documents, *arguments)
            return await answer_operation(operation, services, wait=bool(wait))

        assert services.ledger is not None
        return await once(request, key, name, hashlib.sha256(raw).hexdigest(), services.ledger, add)


async def _add_upload(
    name: str, request: Request, key: ApiKey, services: Services, operations: Operations, wait: bool | None
) -> Response:
    with operations.receiving() as place:
        spooled = await spool_body(request, services, operations, place)
        started = False

        async def add(taken: TakenKey | None) -> Response:
            nonlocal started
            started = True
            arguments = (spooled, name, request.headers["content-type"], operations, taken)
            operation = await asyncio.to_thread(start_spooled, *arguments)
            waits = spooled.num_bytes <= services.settings.background_bytes if wait is None else wait
            return await answer_operation(operation, services, wait=waits)

        assert services.ledger is not None
        try:
            return await once(request, key, name, spooled.digest, services.ledger, add)
        finally:
            if not started:
                await asyncio.to_thread(discard, operations.folder_of(spooled.operation_id))


async def _add_now(
    name: str, documents: list[Document], deadline: float, request: Request, services: Services, turn: Place
) -> dict[str, Any]:
    """Add documents on the worker thread and wait for it."""

    def work(job: Job) -> tuple[list[str], AddProgress]:
        return services.add(job, name, documents)

    job = services.scheduler.submit(work, deadline=deadline, place=turn)
    ids, done = await result_of(job, request, services)
    counts = ("documents", "encoded", "updated", "unchanged", "tokens")
    return {"object": "documents.added", "memory": name, "ids": ids, **{key: getattr(done, key) for key in counts}}


async def _submitted(work: Callable[[Job], Any], name: str, services: Services) -> Job:
    """Queue a change of a memory that is there."""
    with services.scheduler.place(Lane.WRITE) as place:
        await asyncio.to_thread(_check_exists, name, services)
        return services.scheduler.submit(work, deadline=deadline_of(services), place=place)


def _check_exists(name: str, services: Services) -> None:
    if not services.memories.exists(name):
        raise memory_not_found(name)


@router.get("", **described({200: DocumentPage}))
def list_documents(
    name: ReadableMemory,
    services: ServicesOf,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: str | None = None,
    text: bool = True,
) -> dict[str, Any]:
    """Documents in the order they were first added, behind document ``after``; ``text=false`` leaves the texts out."""
    with services.memories.lease(name) as memory:
        data, has_more = _page(memory, limit, after, text)
        total = len(memory)
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "total": total,
    }


def _page(memory: Memory, limit: int, after: str | None, text: bool) -> tuple[list[dict[str, Any]], bool]:
    """So many documents, fewer if their texts or metadata are long; and whether there are more."""
    data: list[dict[str, Any]] = []
    size = 0
    while True:
        try:
            documents = memory.list(limit=min(_PAGE, limit + 1 - len(data)), after=after)
        except KeyError as error:
            raise invalid(f"there is no document {after!r} to list after", "after", "document_not_found") from error
        for document in documents:
            if len(data) == limit or (data and size >= _PAGE_BYTES):
                return data, True
            data.append(_to_json(document, text))
            size += (len(document.text) if text else 0) + len(json.dumps(document.metadata))
        if not documents:
            return data, False
        after = documents[-1].id


def _to_json(document: Document, text: bool = True) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": document.id, "object": "document", "metadata": document.metadata}
    if text:
        shown["text"] = document.text
    return {**shown, "characters": len(document.text)}


def _found(memory: Memory, doc_id: str) -> Document:
    document = memory.get(doc_id)
    if document is None:
        raise ApiError(404, f"there is no document {doc_id[:200]!r} in this memory", "document_not_found")
    return document


@contextlib.contextmanager
def _room(request: Request, services: Services) -> Iterator[None]:
    """Room for a body and for the change it asks for, before it is read."""
    services.scheduler.check_room(Lane.WRITE)
    with room_for_body(request, services):
        yield


@router.post("/delete", **described({200: DocumentsDeleted}, body=DeleteRequest, errors=(429, 504, 507)))
async def delete_documents(name: WritableMemory, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Remove several documents; ids that are not there are named."""
    with _room(request, services):
        body, _ = await read_json(request, services.settings.max_json_bytes, services)
        ids = as_model(body, DeleteRequest).ids
        _check_ids(ids)  # all of them before any is deleted: the answer names them, and could not be sent
        deleted = await _delete(name, ids, request, services)
    gone = set(deleted)
    return {
        "object": "documents.deleted",
        "deleted": deleted,
        "unknown": [doc_id for doc_id in dict.fromkeys(ids) if doc_id not in gone],
    }


def _check_ids(ids: list[str]) -> None:
    for index, doc_id in enumerate(ids):
        if clean_surrogates(doc_id) != doc_id:
            raise invalid(
                f"ids.{index}: {doc_id[:40]!r} holds half a character (a lone surrogate), which no id does: it "
                "is stored as U+FFFD. Give the id as adding answered it; nothing was deleted",
                param=f"ids.{index}",
            )


async def _delete(name: str, ids: list[str], request: Request, services: Services) -> list[str]:

    def work(job: Job) -> list[str]:
        with services.memories.lease(name, writing=True) as memory:
            return memory.delete(ids)

    job = await _submitted(work, name, services)
    deleted: list[str] = await result_of(job, request, services)
    return deleted


@router.get("/{doc_id:document_id}", **described({200: DocumentInfo}))
def get_document(name: ReadableMemory, doc_id: str, services: ServicesOf) -> dict[str, Any]:
    """One document as it was added."""
    with services.memories.lease(name) as memory:
        return _to_json(_found(memory, doc_id))


@router.put("/{doc_id:document_id}", **described({200: DocumentInfo}, body=PutRequest, errors=(429, 504, 507)))
async def put_document(name: WritableMemory, doc_id: str, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Add a document, or replace it."""
    with _room(request, services):
        body, _ = await read_json(request, services.settings.max_json_bytes, services)
        wanted = as_model(body, PutRequest)
        document = _checked(doc_id, wanted.text, wanted.metadata, services)
        return await _store(name, lambda: document, request, services)


@router.patch("/{doc_id:document_id}", **described({200: DocumentInfo}, body=PatchRequest, errors=(429, 504, 507)))
async def patch_document(name: WritableMemory, doc_id: str, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Change the text or the metadata of a document; new metadata alone cost no encoding."""
    with _room(request, services):
        body, _ = await read_json(request, services.settings.max_json_bytes, services)
        wanted = as_model(body, PatchRequest)

        def changed() -> Document:
            with services.memories.lease(name) as memory:
                present = _found(memory, doc_id)
            text = present.text if wanted.text is None else wanted.text
            metadata = present.metadata if wanted.metadata is None else wanted.metadata
            return _checked(doc_id, text, metadata, services)

        return await _store(name, changed, request, services)


def _checked(doc_id: str, text: str, metadata: dict[str, Any], services: Services) -> Document:
    record = {"id": doc_id, "text": text, "metadata": metadata}
    (document,) = checked(documents_from_mappings([record], "document"), services.limits)
    return document


async def _store(name: str, document: Callable[[], Document], request: Request, services: Services) -> dict[str, Any]:
    """Add one document, made on the worker thread: there no other change can come between a look and a change."""

    def work(job: Job) -> Document:
        made = document()
        services.add(job, name, [made])
        return made

    job = await _submitted(work, name, services)
    return _to_json(await result_of(job, request, services))


@router.delete("/{doc_id:document_id}", **described({200: DocumentDeleted}, errors=(429, 504, 507)))
async def delete_document(name: WritableMemory, doc_id: str, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Remove a document."""
    if not await _delete(name, [doc_id], request, services):
        raise ApiError(404, f"there is no document {doc_id[:200]!r} in this memory", "document_not_found")
    return {"id": doc_id, "object": "document.deleted", "deleted": True}
