"""Around every request: its id, the log line, the metrics, and who may call from where.

Plain ASGI, since a wrapper that reads or buffers would hide from the routes that a client has gone away.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msa.serving.errors import CLIENT_GONE, ApiError, to_api_error
from msa.serving.failure_log import WORK_ID
from msa.serving.log_lines import log_line
from msa.serving.services import Services
from msa.serving.settings import ServerSettings
from msa.serving.tracing import Tracing

access_log = logging.getLogger("msa.serving.access")

REQUEST_ID = "x-request-id"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOTED = {"key_name": "key", "failure": "failure"}  # what routes note of a request → its name in the line
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
KNOWN_METHODS = _SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}


def new_request_id() -> str:
    """An id for a request that has none of its own."""
    return f"req_{uuid.uuid4().hex}"


def error_response(error: ApiError) -> JSONResponse:
    """An error as it is sent."""
    return JSONResponse(error.body, error.status, headers=error.headers)


class RequestLog:
    """Gives every request an id, answers what nobody has caught, and writes one line of log per request.

    The line names route, status and time; never a text, a query string, a key or a document's id.

    Args:
        app: what is wrapped.
        folder: with the memories; no error tells of it.
        paths: of the application's routes, where the routes do not note themselves in the scope.
    """

    def __init__(self, app: ASGIApp, folder: Path, paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._folder = folder
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ACCEPTED_ID.fullmatch(given) else new_request_id()
        WORK_ID.set(request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        scope.setdefault("state", {})
        with self._watched(scope) as ended:
            try:
                refusal = self._refusal(scope)
                if refusal is not None:
                    await error_response(refusal)(scope, receive, send_with_id)
                else:
                    await self._app(scope, receive, send_with_id)
            # nothing may end a request without an answer and a line of log
            except Exception as error:
                failure = to_api_error(error, self._folder)
                if not status:
                    await error_response(failure)(scope, receive, send_with_id)
            finally:
                seconds = time.monotonic() - started
                self._write(scope, request_id, status or CLIENT_GONE, seconds)
                ended(status or CLIENT_GONE, seconds)

    @contextlib.contextmanager
    def _watched(self, scope: Scope) -> Iterator[Callable[[int, float], None]]:
        """Around a request; what it yields is told status and seconds at the end."""
        yield lambda status, seconds: None

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not even looked at."""
        return None

    def _write(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        line: dict[str, Any] = {
            "id": request_id,
            "method": scope["method"],
            "route": scope["path"] if scope["path"] in self._paths else _route_of(scope),
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        line |= {shown: scope["state"][name] for name, shown in _NOTED.items() if scope["state"].get(name)}
        access_log.info("%s", log_line("request", **line))


class Envelope(RequestLog):
    """Around every request to the API: beside its log its metrics and traces, and who may call from where."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(app, settings.folder)
        self._settings = settings

    @contextlib.contextmanager
    def _watched(self, scope: Scope) -> Iterator[Callable[[int, float], None]]:
        services = _services_of(scope)
        tracing = Tracing() if services is None else services.tracing
        with tracing.request(_method_of(scope), Headers(scope=scope)) as span:

            def ended(status: int, seconds: float) -> None:
                tracing.responded(span, _method_of(scope), _route_of(scope), status)
                if services is not None:
                    services.metrics.responded(_route_of(scope), _method_of(scope), status, seconds)

            yield ended

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Who calls by a name that is not ours, or from a foreign page in somebody's browser, is turned away.

        So is a request whose length is told in two ways: a proxy may believe the other one (RFC 9112, 6.1).
        """
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            message = "a request has either Content-Length or Transfer-Encoding, not both"
            return ApiError(400, message, "invalid_http", headers={"connection": "close"})
        host = headers.get("host", "")
        allowed = self._settings.allowed_hosts
        if allowed and _host_name(host) not in allowed:
            return ApiError(421, "this server does not answer to this host name; --allowed-host adds one", "wrong_host")
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE_METHODS or self._settings.keys:
            return None  # with keys, a page that has none can do nothing
        if origin in self._settings.cors_origins or "*" in self._settings.cors_origins:
            return None
        if origin.partition("://")[2] != host:
            return ApiError(403, "pages of other origins may not call this server", "origin_not_allowed")
        return None


def _services_of(scope: Scope) -> Services | None:
    """The server's services; None: it has not opened them yet."""
    return getattr(scope["app"].state, "services", None) if "app" in scope else None


def _route_of(scope: Scope) -> str:
    """The pattern of the route that was taken; nothing of what stands in its place."""
    return getattr(scope.get("route"), "path", None) or "(none)"


def _method_of(scope: Scope) -> str:
    """The method, as a label: of those there must be few."""
    return scope["method"] if scope["method"] in KNOWN_METHODS else "other"


def _host_name(host: str) -> str:
    """The host of a ``Host`` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # an address that is none
        return ""
