"""``/openapi.json``, the API's description: what FastAPI cannot see, since bodies are parsed and errors made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from msa.serving.schemas import Error

_SCHEMAS = "#/components/schemas/{model}"
_OPEN_PATHS = frozenset({"/health", "/ready"})
_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    401: "An API key is needed, or this one is not known.",
    403: "The server or the key is read-only, or the key does not open the memory, or a foreign page called.",
    404: "There is no such thing, or not for this key.",
    408: "The body took too long to arrive.",
    409: "The state of the memory does not allow it; `code` says why.",
    413: "The body, or a document in it, is too large.",
    415: "The content type is not one that is read here.",
    421: "The server does not answer to this host name.",
    422: "The idempotency key was used for another request.",
    429: "Too many wait already; `Retry-After` says when to try again.",
    500: "An unexpected error, or a damaged memory.",
    503: "The server is shutting down, or its disk or memory refused.",
    504: "It took longer than a request may.",
    507: "The memory has reached the size that it may have.",
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request with the same key is done once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def described(
    answers: Mapping[int, Any],
    *,
    body: type[BaseModel] | Mapping[str, Any] | None = None,
    errors: tuple[int, ...] = (),
    idempotent: bool = False,
    stream: bool = False,
) -> dict[str, Any]:
    """Arguments for a route's decorator that describe it.

    Args:
        answers: per status the model of the answer, a union of models, or OpenAPI ``content``.
        body: the model of a JSON body, or OpenAPI's ``requestBody``; None: a body is not read.
        errors: statuses of errors beyond those that :class:`Application` adds to every route of a kind.
        idempotent: whether the route heeds ``Idempotency-Key``.
        stream: whether answers may be streams of server-sent events.
    """
    responses: dict[int | str, dict[str, Any]] = {status: _error(status) for status in errors}
    for status, shape in answers.items():
        about: dict[str, Any] = {"description": "The answer."}
        about |= {"content": dict(shape)} if isinstance(shape, Mapping) else {"model": shape}
        if stream:
            about["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
        if status == 202:
            location = {"description": "where to look", "schema": {"type": "string"}}
            about |= {"description": "Accepted; look at the operation.", "headers": {"Location": location}}
        responses[status] = about
    extra: dict[str, Any] = {}
    if idempotent:
        responses |= {status: _error(status) for status in (409, 422)}
        extra["parameters"] = [_IDEMPOTENCY]
    if isinstance(body, Mapping):
        extra["requestBody"] = dict(body)
    elif body is not None:
        schema = body.model_json_schema(ref_template=_SCHEMAS)
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"response_model": None, "responses": responses, "openapi_extra": extra}


def _error(status: int) -> dict[str, Any]:
    about: dict[str, Any] = {"description": _MEANINGS[status], "model": Error}
    return about | ({"headers": _RETRY_AFTER} if status == 429 else {})


class Application(FastAPI):
    """FastAPI, describing what really comes.

    Args:
        needs_key: whether requests must carry an API key.
        settings: as FastAPI's.
    """

    def __init__(self, *, needs_key: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._needs_key = needs_key
        self._description: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        """The description, made when first asked for."""
        if self._description is None:
            self._description = self._completed(super().openapi())
        return self._description

    def _completed(self, description: dict[str, Any]) -> dict[str, Any]:
        components = description.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own error, which is never sent
            schemas.pop(name, None)
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                _hoist(operation, schemas)
                self._complete_errors(path, method, operation)
        if self._needs_key:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return description

    def _complete_errors(self, path: str, method: str, operation: dict[str, Any]) -> None:
        """Add the errors that every route of a kind has."""
        responses = operation["responses"]
        if "HTTPValidationError" in str(responses.get("422")):
            del responses["422"]
        found = {421, 500, 503}
        if self._needs_key and path not in _OPEN_PATHS:
            operation["security"] = [{"key": []}]
            found.add(401)
        if operation.get("parameters") or "requestBody" in operation:
            found.add(400)
        if "{" in path:
            found.add(404)
        if "{name}" in path:
            found.add(409)
        if method not in ("get", "head"):
            found.add(403)
        if "requestBody" in operation:
            found |= {408, 413, 415}
        for status in sorted(found):
            content = {"application/json": {"schema": {"$ref": _SCHEMAS.format(model="Error")}}}
            responses.setdefault(str(status), {"description": _MEANINGS[status], "content": content})


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move the schemas of bodies to the components, where their references point."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        schemas.update(schema.pop("$defs", {}))
        if "title" in schema and schema.get("type") == "object":
            schemas[schema["title"]] = schema
            content["schema"] = {"$ref": _SCHEMAS.format(model=schema["title"])}
