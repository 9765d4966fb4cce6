"""Every error the server answers with, in OpenAI's shape, and the one table that maps exceptions to them."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msa.documents.formats import clean_surrogates
from msa.errors import (
    BankCorruptError,
    BankError,
    BankFormatError,
    BankFullError,
    BankLockedError,
    BankMismatchError,
    BankNotFoundError,
    ContextLengthError,
    DocumentError,
    MemoryBudgetError,
    MSAError,
    NoDocumentsError,
    ParallelError,
)
from msa.serving.failure_log import log_failure
from msa.serving.job import CancelledJobError, DeadlineError, QueueFullError, ShuttingDownError

logger = logging.getLogger(__name__)

INVALID, AUTHENTICATION, PERMISSION = "invalid_request_error", "authentication_error", "permission_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"
CLIENT_GONE = 499  # nobody reads it, but the log and the metrics do


class ServingError(MSAError):
    """The server cannot be started: a missing package, a bad keys file, a folder another process serves."""


class ApiError(MSAError):
    """An answer that is an error.

    Args:
        status: of the response.
        message: what was expected, what was found, what to do.
        code: for programs.
        param: the field of the request that is wrong.
        kind: OpenAI's ``type``; None: by the status.
        headers: of the response.
        retry: whether the same request may succeed later; None: the client's own rule for the status holds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = clean_surrogates(message)  # half a character of the request's cannot be sent back
        self.code = code
        self.param = param
        self.kind = kind or _kind_of(status)
        self.headers = dict(headers or {})
        if retry is not None:
            self.headers["x-should-retry"] = "true" if retry else "false"

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _kind_of(status: int) -> str:
    known = {401: AUTHENTICATION, 403: PERMISSION, 429: RATE_LIMIT}
    return known.get(status, SERVER if status >= 500 else INVALID)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is wrong."""
    return ApiError(400, message, code, param=param)


def memory_not_found(name: str) -> ApiError:
    """404: also what a key that does not open the memory is told."""
    return ApiError(404, f"there is no memory {name[:80]!r}; GET /v1/memories lists yours", "memory_not_found")


@dataclass(frozen=True)
class _Row:
    """How one kind of exception is answered; ``shown``: whether its message is meant for the user."""

    error: type[BaseException]
    status: int
    code: str
    retry: bool | None = None
    shown: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


# the first row that fits; subclasses come before their bases
_TABLE = (
    _Row(QueueFullError, 429, "queue_full", retry=True),
    _Row(DeadlineError, 504, "deadline_exceeded", retry=False),
    _Row(CancelledJobError, CLIENT_GONE, "cancelled"),
    _Row(ShuttingDownError, 503, "shutting_down", headers={"retry-after": "5"}),
    _Row(ContextLengthError, 400, "context_length_exceeded", retry=False),
    _Row(DocumentError, 400, "invalid_document"),
    _Row(BankNotFoundError, 404, "memory_not_found"),
    _Row(BankLockedError, 409, "memory_locked", headers={"retry-after": "5"}),
    _Row(BankMismatchError, 409, "model_mismatch", retry=False),
    _Row(BankFullError, 507, "memory_full", retry=False),
    _Row(BankFormatError, 409, "not_a_memory", retry=False),
    _Row(BankCorruptError, 500, "memory_damaged", retry=False),
    _Row(NoDocumentsError, 400, "no_documents", retry=False),
    _Row(BankError, 503, "storage_error"),
    _Row(MemoryBudgetError, 503, "out_of_memory"),
    _Row(ParallelError, 503, "rank_lost", shown=False, headers={"retry-after": "5"}),
    _Row(MemoryError, 503, "out_of_memory", shown=False),
    _Row(sqlite3.Error, 503, "storage_error", shown=False),
    _Row(OSError, 503, "storage_error", shown=False),
)
_UNSHOWN = {
    "rank_lost": "one of the processes that share the memory failed or was lost; the server's log says which",
    "out_of_memory": "the model ran out of memory on this request; other requests go on. Ask for less",
    "storage_error": "the server's disk refused a read or a write; its log says why",
}


def code_of(error: BaseException) -> str:
    """For metrics and the log: the code that an exception is answered with; nothing is logged."""
    if isinstance(error, ApiError):
        return error.code or "invalid"
    row = _row_of(error)
    return "internal_error" if row is None else row.code


def _row_of(error: BaseException) -> _Row | None:
    row = next((row for row in _TABLE if isinstance(error, row.error)), None)
    if row is None and type(error).__name__ == "OutOfMemoryError":  # torch's, which has no base of its own
        row = next(row for row in _TABLE if row.error is MemoryError)
    return row


def to_api_error(error: BaseException, root: Path | None = None) -> ApiError:
    """The answer for an exception; ``root`` is left out of messages, since paths are nobody's business.

    Those that are the server's fault are logged with the way to them and without their messages, which may name
    documents. Exceptions that are not in the table are answered 500 without details.
    """
    if isinstance(error, ApiError):
        return error
    row = _row_of(error)
    if row is None:
        log_failure(logger, "while answering a request", error)
        return ApiError(500, "an unexpected error; the server's log has the details", "internal_error")
    if not row.shown or row.status >= 500:
        log_failure(logger, "while answering a request", error, row.code)
    message = _without(root, str(error)) if row.shown else _UNSHOWN[row.code]
    headers = dict(row.headers)
    if isinstance(error, QueueFullError):
        headers |= {
            "retry-after": str(max(1, round(error.retry_after_s))),
            "retry-after-ms": str(round(error.retry_after_s * 1000)),
        }
    return ApiError(row.status, message, row.code, headers=headers, retry=row.retry)


def _without(root: Path | None, message: str) -> str:
    return message if root is None else message.replace(f"{root}/", "").replace(str(root), "the server's folder")
