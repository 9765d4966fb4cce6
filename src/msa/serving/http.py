"""What the routes share: who asks, reading bodies within limits, waiting for jobs while watching the client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from msa.serving.errors import ApiError, invalid, memory_not_found
from msa.serving.futures import event_of
from msa.serving.intake import media_type, too_large
from msa.serving.job import CancelledJobError, DeadlineError, Job, QueueFullError
from msa.serving.json_values import parse_json
from msa.serving.keys import ANYBODY, ApiKey, find_key
from msa.serving.memories import is_name
from msa.serving.operations import Operations
from msa.serving.scheduler import Scheduler
from msa.serving.services import Services

Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)

_BODY_RETRY_S = 5.0
_PARSED_AT_ONCE = 16 * 1024  # bytes of JSON that take less time than a thread's turn


# what routes depend on is async, for the rest would be given to a thread each time; none of it waits for anything


async def services_of(request: Request) -> Services:
    """The server's services."""
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(services_of)]


async def key_of(request: Request, services: ServicesOf) -> ApiKey:
    """The key of a request.

    Raises:
        ApiError: none, or an unknown one, where keys are needed: 401.
    """
    keys = services.settings.keys
    if not keys:
        return ANYBODY
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    found = find_key(keys, secret.strip()) if scheme.lower() == "bearer" else None
    if found is None:
        what = "this API key is not known" if secret else "an API key is needed: 'Authorization: Bearer KEY'"
        raise ApiError(401, what, "invalid_api_key", headers={"www-authenticate": "Bearer"})
    request.state.key_name = found.name
    return found


KeyOf = Annotated[ApiKey, Depends(key_of)]


async def reading(name: str, key: KeyOf, services: ServicesOf) -> str:
    """The memory in the path, if the key opens it; it may not exist.

    Raises:
        ApiError: the key does not open it, or no memory can have this name: 404, as if it did not exist.
    """
    if not key.opens(name) or not is_name(name):
        raise memory_not_found(name)
    return name


def check_may_write(key: ApiKey, services: Services) -> None:
    """Make sure that changes are allowed.

    Raises:
        ApiError: the server or the key is read-only: 403.
    """
    if services.settings.read_only:
        raise ApiError(403, "this server is read-only; send changes to the one that writes the folder", "read_only")
    if key.read_only:
        raise ApiError(403, "this API key may read only", "read_only_key")


async def writing(name: Annotated[str, Depends(reading)], key: KeyOf, services: ServicesOf) -> str:
    """The memory in the path, if the key may change it; it may not exist."""
    check_may_write(key, services)
    return name


ReadableMemory = Annotated[str, Depends(reading)]
WritableMemory = Annotated[str, Depends(writing)]


async def operations_of(services: ServicesOf) -> Operations:
    """The operations.

    Raises:
        ApiError: a read-only server has none: 404.
    """
    if services.operations is None:
        raise ApiError(404, "a read-only server has no operations", "operation_not_found")
    return services.operations


OperationsOf = Annotated[Operations, Depends(operations_of)]


def deadline_of(services: Services) -> float:
    """When a request that arrives now must be answered."""
    return time.monotonic() + services.settings.request_timeout_s


def length_of(request: Request) -> int | None:
    """How long the body says it is; None: it does not."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


@contextlib.contextmanager
def room_for_body(request: Request, services: Services) -> Iterator[None]:
    """While a request is answered whose body is kept in memory: of large ones there may be few.

    Raises:
        QueueFullError: there are as many as may be; the body has not been read.
    """
    length, settings = length_of(request), services.settings
    if length is not None and length <= settings.max_request_bytes:
        yield
        return
    if not services.large_bodies.acquire(blocking=False):
        message = (
            f"{settings.max_large_bodies} large bodies are being read or answered, as many as may; try again later"
        )
        raise QueueFullError(message, _BODY_RETRY_S)
    try:
        yield
    finally:
        services.large_bodies.release()


async def body_pieces(request: Request, limit: int, services: Services) -> AsyncIterator[bytes]:
    """The body as it arrives, each piece within the time for a piece, all of them within that for an upload.

    Raises:
        ApiError: larger than ``limit``: 413; too slow: 408.
        CancelledJobError: cut off.
    """
    what = "the request's body"
    if (length_of(request) or 0) > limit:
        raise too_large(what, limit)
    received, settings = 0, services.settings
    end = time.monotonic() + settings.upload_timeout_s
    pieces = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(min(settings.body_timeout_s, end - time.monotonic())):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise ApiError(408, "the request's body took too long to arrive", "body_timeout") from error
        except ClientDisconnect as error:
            raise CancelledJobError("the client went away") from error
        received += len(piece)
        if received > limit:
            raise too_large(what, limit)
        yield piece


async def read_body(request: Request, limit: int, services: Services) -> bytes:
    """The whole body; it must arrive within the time for a body."""
    pieces = []
    try:
        async with asyncio.timeout(services.settings.body_timeout_s):
            async for piece in body_pieces(request, limit, services):
                pieces.append(piece)
    except TimeoutError as error:
        raise ApiError(408, "the request's body took too long to arrive", "body_timeout") from error
    return b"".join(pieces)


async def read_json(request: Request, limit: int, services: Services) -> tuple[Any, bytes]:
    """A JSON body, parsed and as it came; an empty one is ``{}``.

    Raises:
        ApiError: another content type: 415; not JSON: 400.
    """
    raw = await read_body(request, limit, services)
    kind = media_type(request.headers.get("content-type", ""))
    # browsers send other types from any page without asking, so this also keeps foreign pages out
    if raw and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"send JSON with 'Content-Type: application/json', got {kind or 'no type'!r}", "media_type")
    return parse_json(raw) if len(raw) <= _PARSED_AT_ONCE else await asyncio.to_thread(parse_json, raw), raw


async def read_model(request: Request, model: type[Body], services: Services) -> Body:
    """A small JSON body as one of our types.

    Raises:
        ApiError: 400, naming the field.
    """
    body, _ = await read_json(request, services.settings.max_request_bytes, services)
    return as_model(body, model)


def as_model(body: Any, model: type[Body]) -> Body:
    """A parsed body as one of our types.

    Raises:
        ApiError: 400, naming the field.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "model_type":
            raise invalid("the body must be a JSON object") from error
        # names of union members and the like are pydantic's, not the request's
        names = [part for part in first["loc"] if isinstance(part, int) or part in model.model_fields]
        where = ".".join(map(str, names)) or None
        raise invalid(f"{where or 'the body'}: {first['msg'].lower()}", param=where) from error


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def result_of(job: Job, request: Request, services: Services, scheduler: Scheduler | None = None) -> Any:
    """A job's result; the job is cancelled when the client goes away or its time is up.

    Args:
        job: what to wait for.
        request: whose client waits.
        services: of the server.
        scheduler: the job's; None: the model's.

    Raises:
        CancelledJobError: the client went away.
        DeadlineError: the time is up.
        BaseException: what the job raised.
    """
    ended = asyncio.create_task(event_of(job.future).wait())
    gone = asyncio.create_task(until_gone(request.receive))
    seconds = None if job.deadline is None else max(0.0, job.deadline - time.monotonic())
    try:
        await asyncio.wait({ended, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if job.future.done():
            return job.future.result()
        if gone.done():
            reason: CancelledJobError | DeadlineError = CancelledJobError("the client went away")
        else:
            reason = DeadlineError("the request took longer than it may; ask for less, or raise the time limit")
        (scheduler or services.scheduler).cancel(job, reason)
        raise reason
    finally:
        ended.cancel()
        gone.cancel()


async def outcome_of(future: Future[Result], services: Services) -> Result | None:
    """What a future brings; None if that takes longer than a request may. The work itself goes on."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event_of(future).wait(), services.settings.request_timeout_s)
    return future.result() if future.done() else None
