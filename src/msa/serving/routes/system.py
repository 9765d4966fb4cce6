"""``/health``, ``/ready``, ``/metrics``, and the web page where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from msa.serving.errors import ApiError
from msa.serving.http import KeyOf, ServicesOf
from msa.serving.metrics import CONTENT_TYPE
from msa.serving.openapi import described
from msa.serving.schemas import Health, Ready

router = APIRouter(tags=["system"])

PAGE = Path(__file__).parent.parent / "page"
_LINKS = {"documentation": "/openapi.json", "models": "/v1/models", "memories": "/v1/memories", "health": "/health"}
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cache-control": "no-cache",  # the modules of two releases must not be mixed
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@router.head("/health", include_in_schema=False)
@router.get("/health", **described({200: Health}))
async def health() -> dict[str, str]:
    """The process is alive; needs no key."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", **described({200: Ready}))
async def ready(services: ServicesOf) -> dict[str, str]:
    """Questions are answered; 503 while the server is being stopped. Needs no key."""
    if not services.scheduler.accepts:
        raise ApiError(503, "the server is shutting down", "shutting_down")
    return {"status": "ready", "model": services.model_id}


@router.get(
    "/metrics",
    response_class=Response,
    **described({200: {"text/plain": {"schema": {"type": "string"}}}}, errors=(403,)),
)
def metrics(key: KeyOf, services: ServicesOf) -> Response:
    """Prometheus metrics; where there are keys, one that opens every memory is needed, since memories are named."""
    if not key.is_unrestricted:
        raise ApiError(403, "metrics need a key that opens every memory", "memory_not_allowed")
    return Response(services.metrics.text(), media_type=CONTENT_TYPE)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
def page() -> Any:
    """The web page; without one, where to go."""
    return _page_file("index.html") if PAGE.is_dir() else {"name": "msa", **_LINKS}


@router.get("/page/{file:path}", include_in_schema=False)
def page_file(file: str) -> Response:
    """A file of the web page."""
    return _page_file(file)


def _page_file(name: str) -> Response:
    files = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
    if name not in files:  # only what is installed there, whatever the path says
        raise ApiError(404, f"there is no page {name[:80]!r}", "not_found")
    return FileResponse(files[name], headers=_PAGE_HEADERS)
