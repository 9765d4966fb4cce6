"""Upload bodies go to disk as they arrive and are synced before anybody is told that they were received."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request

from msa.documents import Document
from msa.serving.http import body_pieces
from msa.serving.idempotency import IDEMPOTENCY_KEY
from msa.serving.intake import boundary_of, write_lines
from msa.serving.ledger import TakenKey
from msa.serving.memories import sync_folder
from msa.serving.operation import Operation
from msa.serving.operations import Operations
from msa.serving.services import BODY, DOCUMENTS, Services

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """A body in the spool, not yet an operation.

    Attributes:
        operation_id: whose it will be.
        num_bytes: its length.
        digest: its SHA-256.
    """

    operation_id: str
    num_bytes: int
    digest: str


async def spool_body(request: Request, services: Services, operations: Operations, operation_id: str) -> Spooled:
    """Receive a body into a file of its own.

    Args:
        request: whose body.
        services: of the server.
        operations: whose spool.
        operation_id: that has its place, see :meth:`Operations.receiving`.

    Raises:
        ApiError: too large: 413; too slow: 408.
    """
    folder = operations.folder_of(operation_id)
    await asyncio.to_thread(folder.mkdir)
    digest, num_bytes, buffer = hashlib.sha256(), 0, bytearray()
    try:
        with open(folder / BODY, "wb", buffering=0) as file:
            async for piece in body_pieces(request, services.settings.max_upload_bytes, services):
                digest.update(piece)
                num_bytes += len(piece)
                buffer += piece
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(_write_all, file, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(_write_all, file, bytes(buffer))
            await asyncio.to_thread(os.fsync, file.fileno())
        await asyncio.to_thread(_sync, folder)
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary and IDEMPOTENCY_KEY in request.headers:
            # the same form sent again has another boundary
            digest = await asyncio.to_thread(_digest_without, folder / BODY, boundary)
    except BaseException:
        discard(folder)
        raise
    return Spooled(operation_id=operation_id, num_bytes=num_bytes, digest=digest.hexdigest())


def _digest_without(file: Path, boundary: bytes) -> Any:
    """SHA-256 of a file as if its boundary did not stand in it."""
    digest, rest = hashlib.sha256(), b""
    with open(file, "rb") as body:
        while block := body.read(_BUFFER_BYTES):
            *whole, rest = (rest + block).split(boundary)
            for piece in whole:
                digest.update(piece)
            held = len(boundary) - 1  # may be the beginning of one
            digest.update(rest[: max(0, len(rest) - held)])
            rest = rest[max(0, len(rest) - held) :]
    digest.update(rest)
    return digest


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync(folder: Path) -> None:
    sync_folder(folder)
    sync_folder(folder.parent)


def spool_documents(
    documents: list[Document], memory: str, operations: Operations, operation_id: str, key: TakenKey | None
) -> Operation:
    """Accept documents that were received and checked already; when this returns they are on disk.

    Args:
        documents: to be added.
        memory: where to.
        operations: that there will be one more of.
        operation_id: that has its place.
        key: the idempotency key of the request.
    """
    folder = operations.folder_of(operation_id)
    folder.mkdir()
    try:
        number, characters = write_lines(iter(documents), folder / DOCUMENTS)
        sync_folder(folder.parent)
        request = {"documents_total": number, "characters_total": characters}
        return operations.start("add_documents", memory, request, operation_id, key)
    except BaseException:
        discard(folder)
        raise


def discard(folder: Path) -> None:
    """Remove what was received of a body that nobody will work on."""
    shutil.rmtree(folder, ignore_errors=True)


def start_spooled(
    spooled: Spooled, memory: str, content_type: str, operations: Operations, key: TakenKey | None
) -> Operation:
    """Accept a spooled body as an operation; ``key`` is the idempotency key of the request."""
    request = {"content_type": content_type, "bytes": spooled.num_bytes}
    try:
        return operations.start("add_documents", memory, request, spooled.operation_id, key)
    except BaseException:
        discard(operations.folder_of(spooled.operation_id))
        raise
