"""The tools as an MCP server: their schemas, waiting for the worker, progress, cancellation, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from msa.errors import MSAError
from msa.serving.futures import event_of
from msa.serving.job import DeadlineError, Job, Lane
from msa.serving.mcp.tools import MemoryTools

_HEARTBEAT_S = 5.0  # clients give up on a call that says nothing for long

Outcome = TypeVar("Outcome")
CallContext = Context[Any, Any]


class SearchResult(BaseModel):
    """One document that was found."""

    id: str
    title: str
    url: str
    text: str = Field(description="the beginning of the part that was found; fetch has the whole document")


class SearchResults(BaseModel):
    """Documents, best first."""

    results: list[SearchResult]


class FetchedDocument(BaseModel):
    """One document."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, Any]


class NewDocument(BaseModel):
    """A document to add."""

    text: str = Field(description="what is to be remembered")
    id: str | None = Field(None, description="of an existing document: replaces it; left out: made from the text")
    metadata: dict[str, Any] = Field(default_factory=dict, description="for instance title, url, date")


class Added(BaseModel):
    """What was added."""

    ids: list[str]
    encoded: int = Field(description="documents that were new or had a new text")
    updated: int
    unchanged: int
    tokens: int


class Source(BaseModel):
    """A document that an answer rests on."""

    id: str
    title: str
    url: str
    score: float
    read: bool = Field(description="whether the model was given its text")


class Answered(BaseModel):
    """An answer with its sources, those that were read first."""

    answer: str
    sources: list[Source]
    rounds: list[list[str]] = Field(description="ids that each round of retrieval found")
    finish_reason: str
    notes: list[str]


def make_server(tools: MemoryTools, *, writing: bool) -> MCPServer[Any]:
    """An MCP server over one memory.

    Args:
        tools: do the work.
        writing: whether there is a tool that changes the memory.
    """
    root = logging.getLogger()
    handlers = [*root.handlers]
    server: MCPServer[Any] = MCPServer(
        "msa",
        title=f"Memory {tools.name}",
        instructions=f"The memory {tools.name!r}: documents that a language model has read. ask answers a question "
        "from them; search finds documents, fetch reads one of them whole."
        + (" add remembers more." if writing else ""),
        version=version("memory-sparse-attention"),
        log_level="WARNING",
        subscriptions=False,
    )
    for added in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(added)  # the SDK's own, which would show every message of ours twice
    _add_reading(server, tools)
    if writing:
        _add_writing(server, tools)
    return server


def _add_reading(server: MCPServer[Any], tools: MemoryTools) -> None:
    reading = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    @server.tool(title="Search the memory", annotations=reading)
    async def search(query: Annotated[str, Field(description="what to look for")], ctx: CallContext) -> SearchResults:
        """Find the documents of the memory that fit a query best. Returns id, title, url and a passage of each."""
        found = await _call(tools, lambda job: tools.search(job, query), Lane.ASK, ctx)
        return SearchResults(results=[SearchResult(**result) for result in found])

    @server.tool(title="Read a document", annotations=reading)
    async def fetch(id: Annotated[str, Field(description="of a document, as search returned it")]) -> FetchedDocument:
        """Read one document of the memory as it was added."""
        return FetchedDocument(**await _told(tools, asyncio.to_thread(tools.fetch, id)))

    @server.tool(title="Ask the memory", annotations=reading)
    async def ask(
        question: Annotated[str, Field(description="one question, complete in itself")], ctx: CallContext
    ) -> Annotated[CallToolResult, Answered]:
        """Answer a question from the memory's documents. Returns the answer and the documents it rests on."""
        answered = await _call(tools, lambda job: tools.ask(job, question), Lane.ASK, ctx)
        text = TextContent(type="text", text=_as_text(answered))
        return CallToolResult(content=[text], structured_content=answered)


def _add_writing(server: MCPServer[Any], tools: MemoryTools) -> None:
    @server.tool(
        title="Add to the memory",
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def add(
        ctx: CallContext,
        # a plain str: the SDK parses JSON inside strings of any other type
        text: Annotated[str, Field(description="one text to remember")] = "",
        documents: Annotated[
            list[NewDocument] | None, Field(description="or several; one with an id that is there replaces it")
        ] = None,
    ) -> Added:
        """Put a text, or several documents, into the memory for good. Adding the same again changes nothing."""
        given = [document.model_dump(exclude_none=True) for document in documents or []]
        if text:
            given.append({"text": text})
        return Added(**await _call(tools, lambda job: tools.add(job, given), Lane.WRITE, ctx))


async def _told(tools: MemoryTools, work: Awaitable[Outcome]) -> Outcome:
    """Wait for something; what fails is told without a traceback and without paths.

    Raises:
        ToolError: it failed.
    """
    try:
        return await work
    # whatever it is, a client must hear no more about it than this
    except Exception as error:
        raise ToolError(tools.error_message(error)) from None


async def _call(tools: MemoryTools, work: Callable[[Job], Outcome], lane: Lane, ctx: CallContext) -> Outcome:
    """Run something in the worker thread; a client that cancels, or goes away, cancels it.

    Raises:
        ToolError: it failed, took too long, or too many wait.
    """
    return await _told(tools, _result(tools, work, lane, ctx))


async def _result(tools: MemoryTools, work: Callable[[Job], Outcome], lane: Lane, ctx: CallContext) -> Outcome:
    started = time.monotonic()
    latest: list[str] = []
    deadline = started + tools.settings.call_timeout_s
    job = tools.scheduler.submit(work, lane, deadline=deadline, on_event=latest.append)
    done = event_of(job.future)
    reason: MSAError | None = None
    try:
        while not job.future.done():
            left = deadline - time.monotonic()
            if left <= 0:
                reason = DeadlineError("the call took longer than it may; ask for less, or raise --timeout")
                raise reason
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), min(_HEARTBEAT_S, left))
            if not job.future.done():
                message = latest[-1] if latest else ("waiting" if job.started is None else "working")
                await ctx.report_progress(round(time.monotonic() - started, 1), message=message)
        outcome: Outcome = job.future.result()
        return outcome
    finally:
        if not job.future.done():
            tools.scheduler.cancel(job, reason)


def _as_text(answered: dict[str, Any]) -> str:
    """An answer as a person reads it, its sources below."""
    lines = [answered["answer"]]
    read = [source for source in answered["sources"] if source["read"]]
    if read:
        lines += ["", "Sources:"]
        lines += [f"- {_line(source['title'])} (id {json.dumps(source['id'], ensure_ascii=False)})" for source in read]
    lines += [f"Note: {note}" for note in answered["notes"]]
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
