"""Requests that are sent again, by a client that did not hear the answer, are answered with the first answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from msa.serving.errors import ApiError, invalid
from msa.serving.job import ShuttingDownError
from msa.serving.keys import ApiKey
from msa.serving.ledger import KeptAnswer, Ledger, TakenKey
from msa.serving.operation import headers_of

IDEMPOTENCY_KEY = "idempotency-key"
_MAX_KEY_CHARACTERS = 255


async def once(
    request: Request,
    key: ApiKey,
    memory: str,
    raw_digest: str,
    ledger: Ledger,
    answer: Callable[[TakenKey | None], Awaitable[Response]],
) -> Response:
    """Answer a request that has an ``Idempotency-Key`` once: a repetition gets the first answer again.

    Args:
        request: what was asked.
        key: who asks; each has keys of their own.
        memory: the memory concerned.
        raw_digest: SHA-256 of the body.
        ledger: where answers are kept.
        answer: coroutine function that does the work and returns a :class:`Response` with a ``body``. It is given the
            idempotency key, to be noted with the operation that it may start.

    Raises:
        ApiError: the key was used for something else: 422; its first request is still being answered: 409.
    """
    word = request.headers.get(IDEMPOTENCY_KEY)
    if word is None:
        return await answer(None)
    if not 0 < len(word) <= _MAX_KEY_CHARACTERS:
        raise invalid(f"Idempotency-Key must have 1 to {_MAX_KEY_CHARACTERS} characters", param="Idempotency-Key")
    taken = TakenKey(key.digest.hex(), word)
    whole = f"{request.method} {request.url.path}?{request.url.query} {raw_digest}"
    digest = hashlib.sha256(whole.encode()).hexdigest()
    kept = await asyncio.to_thread(ledger.begin_key, *taken, memory, digest)
    if kept is not None:
        return _again(kept, digest)
    try:
        response = await answer(taken)
    except BaseException as error:
        # one that was interrupted has not failed: its operation goes on after the restart, and is answered then
        failed = isinstance(error, Exception) and not isinstance(error, ShuttingDownError)
        await asyncio.shield(asyncio.to_thread(partial(ledger.release_key, *taken, accepted=failed)))
        raise
    text = bytes(response.body).decode()
    await asyncio.to_thread(ledger.finish_key, *taken, response.status_code, text)
    return response


def _again(kept: KeptAnswer, digest: str) -> Response:
    """The first answer."""
    if kept.digest != digest:
        message = "this Idempotency-Key was used for another request; take a new one"
        raise ApiError(422, message, "idempotency_key_reused", param="Idempotency-Key")
    if kept.status is None:
        message = "the first request with this Idempotency-Key is still being answered"
        raise ApiError(409, message, "idempotency_key_in_use", headers={"retry-after": "1"}, retry=True)
    body = json.loads(kept.body or "{}")
    headers = headers_of(body["id"]) if kept.status == 202 else {}
    return JSONResponse(body, kept.status, headers={**headers, "idempotency-replayed": "true"})
