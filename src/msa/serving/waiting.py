"""How an operation answers the request that started it."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from msa.serving.errors import ApiError
from msa.serving.http import outcome_of
from msa.serving.operation import Operation, headers_of
from msa.serving.services import Services


async def answer_operation(
    operation: Operation, services: Services, *, wait: bool, status: int = 200, bare: bool = False
) -> JSONResponse:
    """The finished operation if it is waited for and ends in time, else 202 and where to ask for it.

    Args:
        operation: just accepted.
        services: of the server.
        wait: whether the client waits.
        status: of success.
        bare: answer with the operation's result alone.

    Raises:
        ApiError: it failed, or was called off.
    """
    if wait:
        ended = await outcome_of(operation.outcome, services)
        if ended is not None:
            if ended.failure is not None:
                raise ended.failure
            if ended.state == "cancelled":
                raise ApiError(409, "the operation was called off", "operation_cancelled", retry=False)
            return JSONResponse(ended.result if bare else ended.to_json(), status)
    return JSONResponse(operation.to_json(), 202, headers=headers_of(operation.id))
