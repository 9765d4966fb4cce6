"""OpenTelemetry: spans of requests and of what the model does for them; nothing unless ``OTEL_…`` variables ask for it.

A request has one span; below it what an answer waited (``msa.wait``), how its documents were found (``msa.route``, and
below that each ``msa.round``), and how it was written (``msa.generate``). Spans hold counts, kinds and times: no text,
no id of a document, no path that a client chose.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import Any

from msa.generation.types import Answer, DocumentRetrieved, Event, RoundStarted, TextPiece
from msa.serving.job import Job

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = "OTEL_TRACES_EXPORTER"
_LAST_EXPORT_S = 5.0
_SERVER_ERROR = 500


class Tracing:
    """Makes spans; without a provider it does nothing.

    Args:
        provider: an OpenTelemetry ``TracerProvider``; None: no spans.
        own: whether :meth:`close` ends it.
    """

    def __init__(self, provider: Any = None, *, own: bool = True) -> None:
        self._provider, self._own = provider, own
        self._tracer = None if provider is None else provider.get_tracer("msa.serving")

    def request(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """The span of a request, current inside the ``with``; belongs to the caller's trace if its headers name one."""
        if self._tracer is None:
            return nullcontext()
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carried = {name: headers[name] for name in ("traceparent", "tracestate", "baggage") if name in headers}
        return self._tracer.start_as_current_span(
            method,
            context=extract(carried),
            kind=SpanKind.SERVER,
            record_exception=False,  # its message may quote a text
            set_status_on_exception=False,
        )

    @staticmethod
    def responded(span: Any, method: str, route: str, status: int) -> None:
        """Say what a request was and what came of it."""
        if span is None:
            return
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= _SERVER_ERROR:
            _failed(span, str(status))

    def work(self, **attributes: str) -> WorkTrace:
        """The spans of one answer or search, below the request that is current now."""
        if self._tracer is None:
            return WorkTrace(None, None, attributes)
        from opentelemetry.context import get_current

        return WorkTrace(self._tracer, get_current(), attributes)

    def close(self) -> None:
        """Send what is left, but do not wait long for a collector that does not answer."""
        if self._provider is not None and self._own:
            closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            closing.join(_LAST_EXPORT_S)


class WorkTrace:
    """Notes when an answer's stages begin; its spans are made at its end, since only then they are known.

    Args:
        tracer: OpenTelemetry's; None: nothing is made.
        context: of the request.
        attributes: of every span.
    """

    def __init__(self, tracer: Any, context: Any, attributes: Mapping[str, str]) -> None:
        self._tracer, self._context, self._attributes = tracer, context, attributes
        self._rounds: list[list[int]] = []  # moment of the beginning, documents
        self._last_found = self._first_text = 0

    def note(self, event: Event) -> None:
        """In the worker thread: something has happened."""
        if self._tracer is None:
            return
        if isinstance(event, RoundStarted):
            self._rounds.append([time.time_ns(), 0])
        elif isinstance(event, DocumentRetrieved):
            self._last_found = time.time_ns()
            self._rounds[-1][1] += 1
        elif isinstance(event, TextPiece):
            self._first_text = self._first_text or time.time_ns()

    def ended(self, job: Job) -> None:
        """Make the spans of a job that has ended."""
        if self._tracer is None:
            return
        now, clock = time.time_ns(), time.monotonic()

        def wall_ns(moment: float | None) -> int:
            return now if moment is None else now - int(1e9 * (clock - moment))

        started, ended = wall_ns(job.started), wall_ns(job.ended)
        self._span("msa.wait", wall_ns(job.submitted), self._context).end(started)
        if job.started is None:
            return
        error = job.future.exception()
        result = None if error is not None else job.future.result()
        routed = self._routed_until(result, started, ended)
        route = last = self._span("msa.route", started, self._context)
        route.set_attributes({"msa.rounds": len(self._rounds)})
        self._end_rounds(route, routed)
        if isinstance(result, Answer) or self._first_text:
            last = self._span("msa.generate", routed, self._context)
        if isinstance(result, Answer):
            last.set_attributes(
                {
                    "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": result.usage.completion_tokens,
                    "gen_ai.response.finish_reasons": (result.finish_reason,),
                }
            )
        if error is not None:
            _failed(last, type(error).__name__)
        if last is not route:
            last.end(ended)
        route.end(routed)

    def _routed_until(self, result: Any, started: int, ended: int) -> int:
        """When the last round was over; where no text and no answer came, at the very end."""
        latest = min(ended, self._first_text or ended)
        if not isinstance(result, Answer):
            return latest
        last_begun = self._rounds[-1][0] if self._rounds else started
        told = started + int(1e9 * result.timings["route"])
        return min(latest, max(last_begun, self._last_found, told))

    def _end_rounds(self, route: Any, routed: int) -> None:
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(route, self._context)
        ends = [began for began, _ in self._rounds[1:]] + [routed]
        for number, ((began, documents), end) in enumerate(zip(self._rounds, ends, strict=False), start=1):
            span = self._span("msa.round", began, below)
            span.set_attributes({"msa.round": number, "msa.documents": documents})
            span.end(end)

    def _span(self, name: str, start: int, context: Any) -> Any:
        return self._tracer.start_span(name, context=context, start_time=start, attributes=self._attributes)


def _failed(span: Any, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", kind)


def tracing_from_environment(environment: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as OpenTelemetry's own variables say; what they ask for and cannot have is logged, and there is none."""
    names = _exporters(environment)
    if not names:
        return Tracing()
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            "OTEL_ variables ask for traces, but %s is not installed. Run: pip install 'memory-sparse-attention[otel]'",
            error.name,
        )
        return Tracing()
    if isinstance(trace.get_tracer_provider(), TracerProvider):  # whoever started this process has made one
        return Tracing(trace.get_tracer_provider(), own=False)
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "msa"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in names:
        found = [*entry_points(group="opentelemetry_traces_exporter", name=name)]
        if not found:
            logger.warning("there is no exporter %r of traces; install OpenTelemetry's package for it", name)
            continue
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return Tracing(provider)


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """Names of the exporters that are asked for, as packages register them."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environment.get(_EXPORTERS, "").strip()
    if not asked:
        asked = "otlp" if any(environment.get(name) for name in _ENDPOINTS) else "none"
    names = [name.strip() for name in asked.split(",") if name.strip() not in ("", "none")]
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    otlp = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names]
