"""One piece of long work: what it is, how it stands, and where it ends early."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from msa.serving.errors import ApiError


class OperationCancelledError(Exception):
    """The operation was called off."""


class LeftForLaterError(Exception):
    """The operation stays queued and is begun again: the server stops, or its memory is being deleted."""


@dataclass
class Operation:
    """One piece of long work.

    Attributes:
        id: for ``GET /v1/operations/{id}``.
        memory: the memory concerned.
        kind: ``add_documents``, ``compact``, ``snapshot`` or ``restore``.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        request: what to do, for the runner of the kind.
        progress: counts so far.
        result: of one that succeeded.
        error: of one that failed, in OpenAI's shape.
        created, updated: Unix times.
        starts: how often it was begun and neither got on nor was put back.
        cancelled: whether it is to end at its next safe point.
        outcome: done when the operation has ended; its result is the operation.
        later: whether it should be left for later.
        failure: of one that failed in this process.
    """

    id: str
    memory: str
    kind: str
    request: dict[str, Any]
    state: str = "queued"
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    starts: int = 0
    cancelled: bool = False
    outcome: Future[Operation] = field(default_factory=Future, repr=False)
    later: Callable[[], bool] = lambda: False
    failure: ApiError | None = None

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "operation",
            "kind": self.kind,
            "memory": self.memory,
            "status": self.state,
            "progress": self.progress,
            "result": self.result,
            "error": self.error,
            "created_at": int(self.created),
            "updated_at": int(self.updated),
        }

    def check(self) -> None:
        """At a safe point: end if the operation was called off or is to be left for later."""
        if self.cancelled:
            raise OperationCancelledError
        if self.later():
            raise LeftForLaterError

    @property
    def line(self) -> tuple[str, str]:
        """Operations of one line are done one after another."""
        return self.memory, self.kind

    @property
    def fields(self) -> dict[str, Any]:
        """As the ledger keeps it; that it was called off is noted there on its own."""
        names = ("id", "memory", "kind", "state", "created", "updated", "request", "progress", "result", "error")
        return {name: getattr(self, name) for name in (*names, "starts")}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Operation:
        """From what the ledger has kept."""
        return cls(**{**fields, "progress": fields["progress"] or {}, "cancelled": bool(fields["cancelled"])})


def headers_of(operation_id: str) -> dict[str, str]:
    """Of an answer 202: where to ask for the operation, and when."""
    return {"location": f"/v1/operations/{quote(operation_id)}", "retry-after": "1"}
