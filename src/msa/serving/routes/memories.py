"""``/v1/memories``: making, listing, removing and searching memories; their snapshots."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from msa.errors import ContextLengthError
from msa.generation.types import Hit
from msa.serving.errors import ApiError, invalid, memory_not_found
from msa.serving.http import (
    KeyOf,
    OperationsOf,
    ReadableMemory,
    ServicesOf,
    WritableMemory,
    as_model,
    check_may_write,
    deadline_of,
    read_json,
    read_model,
    result_of,
)
from msa.serving.idempotency import once
from msa.serving.job import Job, Lane
from msa.serving.keys import ApiKey
from msa.serving.ledger import TakenKey
from msa.serving.memories import check_name
from msa.serving.openapi import described
from msa.serving.operation import Operation
from msa.serving.operations import Operations
from msa.serving.queries import check_query, check_where
from msa.serving.schemas import (
    Compaction,
    FoundList,
    MemoryDeleted,
    MemoryInfo,
    MemoryList,
    OperationInfo,
    Restored,
    Snapshot,
    SnapshotDeleted,
    SnapshotList,
    Verification,
)
from msa.serving.services import Services
from msa.serving.waiting import answer_operation

router = APIRouter(prefix="/v1/memories", tags=["memories"])

_MAX_HITS = 1000
_ANYTHING = {"required": False, "content": {"application/json": {"schema": {"type": "object"}}}}


class SearchRequest(BaseModel):
    """Body of a search."""

    model_config = ConfigDict(extra="ignore")
    query: Annotated[StrictStr, Field(min_length=1)]
    top_k: Annotated[StrictInt, Field(ge=1, le=_MAX_HITS)] = 16
    where: dict[str, Any] | None = None
    hybrid: StrictBool = False


class RestoreRequest(BaseModel):
    """Body of a restore."""

    model_config = ConfigDict(extra="ignore")
    memory: StrictStr


@router.get("", **described({200: MemoryList}))
def list_memories(key: KeyOf, services: ServicesOf) -> dict[str, Any]:
    """All memories that the key opens; ``available`` ones were made by the model that is served."""
    memories = services.memories
    data = [
        {"id": name, "object": "memory", "available": memories.fits(name)}
        for name in memories.names()
        if key.opens(name)
    ]
    return {"object": "list", "data": data}


@router.put("/{name}", **described({200: MemoryInfo, 201: MemoryInfo}, body=_ANYTHING, idempotent=True))
async def create_memory(name: str, request: Request, key: KeyOf, services: ServicesOf) -> Response:
    """Make an empty memory; one that is there already stays as it is."""
    check_may_write(key, services)
    check_name(name)
    if not key.opens(name):  # whether it exists or not
        raise ApiError(403, f"this API key opens no memory {name!r}", "memory_not_allowed")
    raw = await _read_nothing(request, services)
    assert services.ledger is not None

    async def create(_: TakenKey | None) -> Response:
        created = await asyncio.to_thread(services.memories.create, name, key.opens)
        return JSONResponse(await asyncio.to_thread(_about, name, services), 201 if created else 200)

    return await once(request, key, name, hashlib.sha256(raw).hexdigest(), services.ledger, create)


async def _read_nothing(request: Request, services: Services) -> bytes:
    """A body that need not say anything, as it came.

    Raises:
        ApiError: not a JSON object: 400.
    """
    body, raw = await read_json(request, services.settings.max_request_bytes, services)
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object, {} for instance")
    return raw


@router.get("/{name}", **described({200: MemoryInfo}))
def get_memory(name: ReadableMemory, services: ServicesOf) -> dict[str, Any]:
    """Counts and sizes of a memory."""
    return _about(name, services)


def _about(name: str, services: Services) -> dict[str, Any]:
    with services.memories.lease(name) as memory:
        stats = memory.stats()
        read_only = memory.bank.read_only
    return {"id": name, "object": "memory", "read_only": read_only, **stats}


@router.delete("/{name}", **described({200: MemoryDeleted}, errors=(429, 504)))
async def delete_memory(
    name: WritableMemory, request: Request, services: ServicesOf, operations: OperationsOf
) -> dict[str, Any]:
    """Remove a memory with its documents, snapshots and unfinished operations; says what went."""

    def work(job: Job) -> dict[str, Any]:
        documents = services.memories.delete(name)
        # now that it is gone; on the worker thread no slice of an operation can come between
        operations.cancel_all(name)
        if services.ledger is not None:
            services.ledger.forget_memory(name)
        return {
            "id": name,
            "object": "memory.deleted",
            "deleted": True,
            "documents": documents,
            "snapshots": services.snapshots.delete_all(name),
        }

    await asyncio.to_thread(_check_exists, name, services)
    operations.hold(name)  # what runs need not be waited for, and goes on if nothing comes of this
    try:
        job = services.scheduler.submit(work, Lane.WRITE, deadline=deadline_of(services))
    except BaseException:
        operations.release(name)
        raise
    job.future.add_done_callback(lambda _: operations.release(name))
    result: dict[str, Any] = await result_of(job, request, services)
    return result


def _check_exists(name: str, services: Services) -> None:
    if not services.memories.exists(name):
        raise memory_not_found(name)


@router.post("/{name}/search", **described({200: FoundList}, body=SearchRequest, errors=(429, 504)))
async def search(name: ReadableMemory, request: Request, services: ServicesOf) -> dict[str, Any]:
    """The best documents for a query; nothing is generated."""
    services.scheduler.check_room()
    deadline = deadline_of(services)
    wanted = await read_model(request, SearchRequest, services)

    def work(job: Job) -> list[Hit]:
        with services.memories.lease(name) as memory:
            if not len(memory):
                return []
            try:
                return memory.search(wanted.query, wanted.top_k, wanted.where, hybrid=wanted.hybrid)
            except ContextLengthError as error:
                raise invalid(str(error), "query", "context_length_exceeded") from error
            except ValueError as error:
                raise invalid(str(error), "query") from error

    with services.scheduler.place() as place:
        check_where(wanted.where)
        await asyncio.to_thread(check_query, wanted.query, services.model)
        await asyncio.to_thread(_check_exists, name, services)
        trace = services.tracing.work(**{"msa.memory": name})
        job = services.scheduler.submit(work, deadline=deadline, place=place)
    job.future.add_done_callback(lambda _: trace.ended(job))
    hits = await result_of(job, request, services)
    names = ("id", "text", "score", "metadata", "ranking")
    data = [{**{name: getattr(hit, name) for name in names}, **hit.place} for hit in hits]
    return {"object": "list", "data": data}


@router.post("/{name}/verify", **described({200: Verification}, errors=(429, 504)))
async def verify(name: ReadableMemory, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Check every checksum of a memory, while it is used."""
    await asyncio.to_thread(_check_exists, name, services)
    verifier = services.verifier
    job = verifier.submit(lambda job: services.memories.verify(name, job.give_way), deadline=deadline_of(services))
    root = f"{services.root}/"
    problems = [problem.replace(root, "") for problem in await result_of(job, request, services, verifier)]
    return {"object": "memory.verification", "ok": not problems, "problems": problems}


@router.post(
    "/{name}/compact",
    **described({200: Compaction, 202: OperationInfo}, body=_ANYTHING, errors=(429,), idempotent=True),
)
async def compact(
    name: WritableMemory,
    request: Request,
    key: KeyOf,
    services: ServicesOf,
    operations: OperationsOf,
    wait: bool = True,
) -> Response:
    """Rewrite a memory without what was deleted; ``wait=false`` answers at once with an operation."""
    raw = await _read_nothing(request, services)
    await asyncio.to_thread(_check_exists, name, services)
    return await _operate(request, key, services, operations, ("compact", name, {}), raw, wait, status=200)


@router.post(
    "/{name}/snapshots",
    status_code=201,
    **described({201: Snapshot, 202: OperationInfo}, body=_ANYTHING, errors=(429,), idempotent=True),
)
async def create_snapshot(
    name: WritableMemory,
    request: Request,
    key: KeyOf,
    services: ServicesOf,
    operations: OperationsOf,
    wait: bool = True,
) -> Response:
    """Copy a memory, checked, while it is used; ``wait=false`` answers at once with an operation."""
    raw = await _read_nothing(request, services)
    await asyncio.to_thread(_check_exists, name, services)
    details = {"snapshot": services.snapshots.new_id()}
    return await _operate(request, key, services, operations, ("snapshot", name, details), raw, wait)


async def _operate(
    request: Request,
    key: ApiKey,
    services: Services,
    operations: Operations,
    what: tuple[str, str, dict[str, Any]],
    raw: bytes,
    wait: bool,
    check: Callable[[], None] = lambda: None,
    status: int = 201,
) -> Response:
    assert services.ledger is not None
    kind, memory, details = what

    async def start(taken: TakenKey | None) -> Response:
        await asyncio.to_thread(check)
        operation: Operation = await asyncio.to_thread(operations.start, kind, memory, details, key=taken)
        return await answer_operation(operation, services, wait=wait, status=status, bare=True)

    return await once(request, key, memory, hashlib.sha256(raw).hexdigest(), services.ledger, start)


@router.get("/{name}/snapshots", **described({200: SnapshotList}))
def list_snapshots(name: ReadableMemory, services: ServicesOf) -> dict[str, Any]:
    """The snapshots of a memory."""
    _check_exists(name, services)
    return {"object": "list", "data": services.snapshots.list(name)}


@router.get("/{name}/snapshots/{snapshot}", **described({200: Snapshot}))
def get_snapshot(name: ReadableMemory, snapshot: str, services: ServicesOf) -> dict[str, Any]:
    """One snapshot."""
    return services.snapshots.get(name, snapshot)


@router.delete("/{name}/snapshots/{snapshot}", **described({200: SnapshotDeleted}))
def delete_snapshot(name: WritableMemory, snapshot: str, services: ServicesOf) -> dict[str, Any]:
    """Remove a snapshot."""
    services.snapshots.delete(name, snapshot)
    return {"id": snapshot, "object": "memory.snapshot.deleted", "deleted": True}


@router.post(
    "/{name}/snapshots/{snapshot}/restore",
    status_code=201,
    **described({201: Restored, 202: OperationInfo}, body=RestoreRequest, errors=(429,), idempotent=True),
)
async def restore_snapshot(
    name: WritableMemory,
    snapshot: str,
    request: Request,
    key: KeyOf,
    services: ServicesOf,
    operations: OperationsOf,
    wait: bool = True,
) -> Response:
    """Make a new memory of a snapshot."""
    body, raw = await read_json(request, services.settings.max_request_bytes, services)
    new = as_model(body, RestoreRequest).memory
    if not key.opens(check_name(new)):
        raise ApiError(403, f"this API key opens no memory {new!r}", "memory_not_allowed", param="memory")
    details = {"source": name, "snapshot": snapshot}

    def check() -> None:
        services.snapshots.check_source(name, snapshot, new, key.opens)

    return await _operate(request, key, services, operations, ("restore", new, details), raw, wait, check)
