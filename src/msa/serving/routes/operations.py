"""``/v1/operations``: work that was acknowledged before it was done."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query

from msa.serving.errors import ApiError
from msa.serving.http import KeyOf, OperationsOf, ServicesOf, check_may_write
from msa.serving.keys import ApiKey
from msa.serving.openapi import described
from msa.serving.operation import Operation
from msa.serving.operations import Operations
from msa.serving.schemas import OperationInfo, OperationList

router = APIRouter(prefix="/v1/operations", tags=["operations"])


@router.get("", **described({200: OperationList}, errors=(404,)))
def list_operations(
    key: KeyOf,
    services: ServicesOf,
    operations: OperationsOf,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    memory: str | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    """The newest operations first, of those older than operation ``after``."""
    names = None if memory is None else [memory]
    if not key.is_unrestricted:
        mine = [name for name in services.memories.names() if key.opens(name)]
        names = mine if names is None else [name for name in names if key.opens(name)]
    if after is not None:
        _found(after, key, operations)
    found = operations.list(names, limit + 1, after)
    return {
        "object": "list",
        "data": [operation.to_json() for operation in found[:limit]],
        "has_more": len(found) > limit,
    }


@router.get("/{operation_id}", **described({200: OperationInfo}))
def get_operation(operation_id: str, key: KeyOf, operations: OperationsOf) -> dict[str, Any]:
    """How an operation stands."""
    return _found(operation_id, key, operations).to_json()


@router.delete("/{operation_id}", **described({200: OperationInfo}))
async def cancel_operation(
    operation_id: str, key: KeyOf, services: ServicesOf, operations: OperationsOf
) -> dict[str, Any]:
    """Call an operation off; documents it has added stay."""
    check_may_write(key, services)
    operation = await asyncio.to_thread(_found, operation_id, key, operations)
    if operation.state in ("queued", "running"):
        await asyncio.to_thread(operations.cancel, operation)
    return operation.to_json()


def _found(operation_id: str, key: ApiKey, operations: Operations) -> Operation:
    operation = operations.get(operation_id)
    if operation is None or not key.opens(operation.memory):
        raise ApiError(404, f"there is no operation {operation_id[:80]!r}", "operation_not_found")
    return operation
