"""The application: routes, errors and the services' life put together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from msa.errors import MSAError
from msa.model.bundle import MSAModel
from msa.serving.errors import ApiError, invalid, to_api_error
from msa.serving.heap import keep_trimming
from msa.serving.middleware import KNOWN_METHODS, REQUEST_ID, Envelope, error_response
from msa.serving.openapi import Application
from msa.serving.routes import chat, documents, memories, operations, system
from msa.serving.services import Services
from msa.serving.settings import ServerSettings

_SHOWN_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "location", "idempotency-replayed")
_DISK_THREADS = 32  # what waits for a slow disk must not keep questions from being begun
_DESCRIPTION = "OpenAI-compatible chat completions over memories, and the memories' own API."


def create_app(settings: ServerSettings, opened: Services | MSAModel | None = None) -> FastAPI:
    """Make the application; see :func:`msa.serving.create_app`.

    Args:
        settings: what to serve and how.
        opened: services that are open already, or the model to open them with; closed when the application ends.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_DISK_THREADS, "msa-disk"))
        services = opened if isinstance(opened, Services) else await asyncio.to_thread(Services, settings, opened)
        app.state.services = services
        trimming = asyncio.create_task(keep_trimming())
        try:
            yield
        finally:
            trimming.cancel()
            await asyncio.to_thread(services.close)

    middleware = [Middleware(Envelope, settings=settings)]
    if settings.cors_origins:
        origins = [*settings.cors_origins]
        # outermost, so that pages can read also what the envelope answers: failures that no route expected
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=[REQUEST_ID, *_SHOWN_HEADERS],
            ),
        )
    app = Application(
        needs_key=bool(settings.keys),
        title="Memory Sparse Attention",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        middleware=middleware,
        redirect_slashes=False,
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
    )
    for routes in (system, chat, memories, documents, operations):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(HTTPException, _no_such_route)
    for kind in (MSAError, OSError, MemoryError, sqlite3.Error):  # all others: see Envelope
        app.add_exception_handler(kind, _failure)
    return app


async def _failure(request: Request, error: Exception) -> JSONResponse:
    return error_response(to_api_error(error, request.app.state.services.root))


async def _wrong_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return error_response(invalid(f"{name}: {first['msg'].lower()}", param=name))


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"no such address: {request.method} {request.url.path[:200]}"
    else:
        message = str(error.detail).lower()
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(sorted(_methods(request)))  # FastAPI names those of one route alone
    return error_response(ApiError(error.status_code, message, "no_such_route", headers=headers))


def _methods(request: Request) -> set[str]:
    """The methods that the path of a request has, whichever routes they belong to."""
    tried = {**request.scope}
    found = set()
    for method in KNOWN_METHODS:
        tried["method"] = method
        if any(route.matches(tried)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return found
