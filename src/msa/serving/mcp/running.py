"""Running the MCP server: over standard input and output, and over HTTP with API keys."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from msa.model.bundle import MSAModel
from msa.serving.errors import ApiError
from msa.serving.heap import keep_trimming
from msa.serving.job import Lane
from msa.serving.keys import VARIABLE, find_key
from msa.serving.mcp.server import make_server
from msa.serving.mcp.settings import McpSettings
from msa.serving.mcp.tools import MemoryTools
from msa.serving.middleware import RequestLog, error_response
from msa.serving.server import PatientProtocol, Server, address_of, allow_open_files, http_config, listen
from msa.serving.settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

PATH, HEALTH = "/mcp", "/health"
_KEEP_ALIVE_S = 30
_AFTER_STOP_S = 5  # for calls that were failed to be answered


def run_stdio(settings: McpSettings, model: MSAModel | None = None) -> None:
    """Talk to one client; see :func:`msa.serving.mcp.serve_stdio`."""
    tools = MemoryTools(settings, model)
    loading = tools.scheduler.submit(tools.ready, Lane.WRITE)
    loading.future.add_done_callback(lambda done: _tell_failure(done.exception()))
    try:
        with _ended_by_signals():
            anyio.run(make_server(tools, writing=not settings.read_only).run_stdio_async)
    finally:
        tools.close()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C end the process as SIGTERM does: at once.

    The SDK's thread that waits for standard input cannot be woken, so an orderly end would wait for the client. What
    was acknowledged is safe at any moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_failure(error: BaseException | None) -> None:
    if error is not None:
        logger.error("the memory cannot be asked: %s", error)


def run_http(settings: McpSettings, model: MSAModel | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; see :func:`msa.serving.mcp.serve_http`."""
    if not settings.keys and settings.host not in LOOPBACK:
        logger.warning(
            "no API keys: whoever reaches port %d can read and change the memory; set %s or --keys",
            settings.port,
            VARIABLE,
        )
    where = ServerSettings(root=settings.folder.parent, host=settings.host, port=settings.port)
    allow_open_files()
    with listen(where) as listening:
        server = make_http_server(settings, model)
        logger.info("serving the memory %s on http://%s%s", settings.name, address_of(listening), PATH)
        server.run(sockets=[listening])


def make_http_server(settings: McpSettings, model: MSAModel | None = None) -> Server:
    """A server that has not been started; it closes the memory when it ends."""
    tools = MemoryTools(settings, model)
    try:
        tools.scheduler.submit(tools.ready, Lane.WRITE).future.result()
    except BaseException:
        tools.close()
        raise
    app = make_app(tools)
    config = http_config(app, PatientProtocol, keep_alive_s=_KEEP_ALIVE_S, stop_s=_AFTER_STOP_S)
    return Server(config, app, drain_s=0.0)


def make_app(tools: MemoryTools) -> Starlette:
    """The HTTP application over one memory; closes it when it ends."""
    settings = tools.settings
    reading = make_server(tools, writing=False)
    full = reading if settings.read_only else make_server(tools, writing=True)
    gate = Gate(tools, _app_of(full, settings), _app_of(reading, settings) if full is not reading else None)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        trimming = asyncio.create_task(keep_trimming())
        try:
            async with contextlib.AsyncExitStack() as running:
                for server in {id(server): server for server in (full, reading)}.values():
                    await running.enter_async_context(server.session_manager.run())
                yield
        finally:
            trimming.cancel()
            await anyio.to_thread.run_sync(tools.close)

    logged = Middleware(RequestLog, folder=settings.folder, paths=frozenset({HEALTH, PATH}))
    app = Starlette(lifespan=lifespan, routes=[Route(HEALTH, _health), Mount("/", app=gate)], middleware=[logged])
    app.state.services = tools
    return app


def _app_of(server: MCPServer[Any], settings: McpSettings) -> ASGIApp:
    # without keys, a foreign page whose name leads to this machine must not get in: the SDK's own rule for loopback
    open_to_names = settings.keys or settings.host not in LOOPBACK
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False) if open_to_names else None
    return server.streamable_http_app(
        streamable_http_path=PATH,
        host=settings.host,
        transport_security=security,
        max_request_body_size=settings.max_request_bytes,
    )


async def _health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


class Gate:
    """Lets requests with a known API key through: to all tools, or to those that change nothing.

    Args:
        tools: over the memory.
        full: the application for keys that may change the memory.
        reading: the one for keys that may not; None: ``full`` changes nothing either.
    """

    def __init__(self, tools: MemoryTools, full: ASGIApp, reading: ASGIApp | None) -> None:
        self._keys = tools.settings.keys
        self._memory = tools.name
        self._full = full
        self._reading = reading or full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        try:
            app = self._app_for(Request(scope))
        except ApiError as refusal:
            await error_response(refusal)(scope, receive, send)
            return
        await app(scope, receive, send)

    def _app_for(self, request: Request) -> ASGIApp:
        """The application that a request's key opens.

        Raises:
            ApiError: no key or an unknown one: 401; one that does not open this memory: 403.
        """
        if not self._keys:
            return self._full
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        key = find_key(self._keys, secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            what = "this API key is not known" if secret else "an API key is needed: 'Authorization: Bearer KEY'"
            raise ApiError(401, what, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        request.state.key_name = key.name
        if not key.opens(self._memory):
            raise ApiError(403, "this API key does not open the memory that is served here", "memory_not_allowed")
        return self._reading if key.read_only else self._full
