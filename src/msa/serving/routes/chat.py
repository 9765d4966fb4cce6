"""``/v1/chat/completions``, ``/v1/models``, and what of OpenAI's API is not offered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from msa.bank import ByteCounter
from msa.errors import ContextLengthError, NoDocumentsError
from msa.generation.decoding import Decoding
from msa.generation.types import Answer, Done, Event, TextPiece
from msa.serving.chat_request import ChatRequest, Wanted, split_model, wanted
from msa.serving.conversation import Composed, compose
from msa.serving.errors import ApiError, code_of, invalid, memory_not_found
from msa.serving.http import KeyOf, ServicesOf, deadline_of, read_model, result_of
from msa.serving.job import Job
from msa.serving.keys import ApiKey
from msa.serving.openapi import described
from msa.serving.replies import Reply
from msa.serving.schemas import ChatCompletion, ModelInfo, ModelList
from msa.serving.services import Services
from msa.serving.streaming import Events, EventStream, cancel_for, first_event, reply_events
from msa.serving.tracing import WorkTrace

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/chat/completions",
    **described({200: ChatCompletion}, body=ChatRequest, errors=(404, 409, 429, 504), stream=True),
)
async def chat_completions(request: Request, key: KeyOf, services: ServicesOf) -> Response:
    """Answer the last message from a memory."""
    services.scheduler.check_room()
    deadline = deadline_of(services)
    body = await read_model(request, ChatRequest, services)
    with services.scheduler.place() as place:
        settings = services.settings
        asked = wanted(body, default_tokens=settings.default_new_tokens, max_tokens=settings.max_new_tokens)
        await asyncio.to_thread(check_target, asked.model, asked.memory, key, services)
        composed = await asyncio.to_thread(_composed, asked, services)
        base_url = settings.public_url or str(request.base_url)
        reply = Reply(
            model=body.model,
            memory=asked.memory,
            base_url=base_url,
            include_usage=asked.include_usage,
            notes=[*composed.notes],
        )
        events = Events()
        trace = services.tracing.work(**{"gen_ai.request.model": asked.model, "msa.memory": asked.memory})
        job = services.scheduler.submit(
            lambda job: _answer(job, asked, composed, services, reply),
            deadline=deadline,
            on_event=_observed(events if asked.stream else None, trace, services),
            place=place,
        )
    job.future.add_done_callback(lambda _: _finished(job, trace, services, request.scope["state"]))
    if not asked.stream:
        answer: Answer = await result_of(job, request, services)
        return JSONResponse(reply.whole(answer))
    job.future.add_done_callback(lambda _: events.put(None))
    cancel = cancel_for(job, services)

    def gone() -> None:
        request.scope["state"]["failure"] = "cancelled"  # before the line of log, which does not wait for the job
        cancel()

    try:
        await first_event(events, job, request)
    except BaseException:
        cancel()
        raise
    stream = reply_events(events, job, reply, services, stream_events=asked.stream_events)
    return EventStream(stream, gone, settings.body_timeout_s)


def _composed(asked: Wanted, services: Services) -> Composed:
    """The question as it is put to the memory, with what stood before it."""
    count, settings = services.model.protocol.plain_ids, services.settings
    return compose(asked.turns, settings.history_tokens, lambda text: len(count(text)), settings.routed_history_tokens)


def _observed(events: Events | None, trace: WorkTrace, services: Services) -> Callable[[Event], None]:
    """What is done with each event of an answer, in the worker thread; ``events``: where it is streamed from."""
    last_piece: float | None = None

    def on_event(event: Event) -> None:
        nonlocal last_piece
        trace.note(event)
        if isinstance(event, TextPiece):
            now = time.monotonic()
            if last_piece is not None:
                services.metrics.went_on(now - last_piece)
            last_piece = now
        if events is not None:
            events.put(event)

    return on_event


def check_target(model: str, memory: str, key: ApiKey, services: Services) -> None:
    """Make sure that the model is served and the memory there.

    Raises:
        ApiError: one is not: 404. No memory is named: 400.
    """
    if model != services.model_id:
        raise ApiError(
            404,
            f"the model {model[:120]!r} is not served here, {services.model_id!r} is; write '{services.model_id}@"
            f"{memory[:64] or '<memory>'}'; GET /v1/models lists what there is",
            "model_not_found",
            param="model",
        )
    if not memory:
        raise invalid(
            f"which memory? Write model as '{model}@<memory>', or add the field 'memory'; GET /v1/models lists them",
            param="model",
            code="memory_required",
        )
    if not key.opens(memory) or not services.memories.exists(memory):
        raise memory_not_found(memory)


def _answer(
    job: Job, asked: Wanted, composed: Composed, services: Services, reply: Reply
) -> Generator[Decoding, None, Answer]:
    """In the worker thread: answer, event by event; what is yielded waits for a pass, made for all that run."""
    with services.memories.lease(asked.memory) as memory:
        if not len(memory):
            raise invalid(f"memory {asked.memory!r} holds no documents; add some first", "memory", "memory_empty")
        try:
            options = {**asked.options, **composed.options}
            steps = memory.steps(composed.question, cancelled=job.should_stop, **options)
            answer = yield from _last(_counted(steps, memory.bank.fetched, reply.fetched), job)
            selected = (number for found in answer.rounds for layer in found.votes.values() for number in layer)
            reply.names.update(memory.bank.state().ids_of(selected))
            return answer
        except NoDocumentsError as error:
            raise invalid(str(error), "where", "no_documents") from error
        except ContextLengthError as error:
            raise invalid(str(error), "messages", "context_length_exceeded") from error
        except ValueError as error:
            raise invalid(str(error), "messages") from error


def _counted(
    steps: Generator[Event | Decoding, None, None], of_all: ByteCounter, mine: ByteCounter
) -> Generator[Event | Decoding, None, None]:
    """The same steps; what is fetched in one of them is the answer's own, because no two are made at the same time."""
    with contextlib.closing(steps):
        while True:
            before = of_all.total
            try:
                step = next(steps, None)
            finally:
                mine.add(of_all.total - before)
            if step is None:
                return
            yield step


def _last(events: Generator[Event | Decoding, None, None], job: Job) -> Generator[Decoding, None, Answer]:
    """Hand the events on; returns the answer, unless the job was told to end."""
    # closed at once: a reason to stop keeps this frame, which keeps the job, which keeps the reason, and the collector,
    # which alone finds such garbage, does not know how large the keys and values of an answer are
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Decoding):
                yield event
                continue
            if isinstance(event, Done):
                if event.answer.finish_reason == "cancelled" and job.stop_reason is not None:
                    raise job.stop_reason
                return event.answer
            job.emit(event)
            if job.stop_reason is not None:
                raise job.stop_reason
    raise RuntimeError("the engine ended an answer without its last event")


def _finished(job: Job, trace: WorkTrace, services: Services, state: dict[str, Any]) -> None:
    """The question is answered, or it failed: a stream's status line said nothing of that."""
    trace.ended(job)
    error = job.future.exception()
    if error is None:
        services.metrics.answered(job, job.future.result())
    else:
        state["failure"] = code = code_of(error)
        services.metrics.failed(code)


@router.get("/models", **described({200: ModelList}))
def models(key: KeyOf, services: ServicesOf) -> dict[str, Any]:
    """The model with every memory that it can be asked about."""
    memories = services.memories
    names = [name for name in memories.names() if key.opens(name) and memories.fits(name)]
    return {"object": "list", "data": [_model(name, services) for name in names]}


@router.get("/models/{model:path}", **described({200: ModelInfo}))
def model(model: str, key: KeyOf, services: ServicesOf) -> dict[str, Any]:
    """One of them."""
    name, memory = split_model(model)
    check_target(name, memory, key, services)
    return _model(memory, services)


def _model(memory: str, services: Services) -> dict[str, Any]:
    try:
        created = int((services.root / memory).stat().st_ctime)
    except OSError:  # deleted meanwhile
        created = 0
    return {
        "id": f"{services.model_id}@{memory}",
        "object": "model",
        "created": created,
        "owned_by": "msa",
        "memory": memory,
    }


@router.post("/embeddings", include_in_schema=False)
def embeddings(key: KeyOf) -> None:
    """Not offered."""
    raise ApiError(
        404,
        "embeddings are not offered: a memory has no vector of a text, its routers score documents in every layer. "
        "To find documents use POST /v1/memories/{name}/search",
        "not_offered",
    )


@router.post("/completions", include_in_schema=False)
def completions(key: KeyOf) -> None:
    """Not offered."""
    raise ApiError(404, "plain completions are not offered; use POST /v1/chat/completions", "not_offered")


@router.post("/responses", include_in_schema=False)
def responses(key: KeyOf) -> None:
    """Not offered."""
    raise ApiError(404, "responses are not offered; use POST /v1/chat/completions", "not_offered")
