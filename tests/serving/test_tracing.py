"""OpenTelemetry spans: what they tell, what they must not, and that nobody needs them."""

import http.server
import itertools
import sys
import threading
import time

import httpx
import pytest
from serving_helpers import ENDLESS, NEEDLE, QUESTION, until

from msa.serving.tracing import Tracing, tracing_from_environment

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
VARIABLES = (
    "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
)  # fmt: skip


@pytest.fixture
def spans(server):
    """What the server tells; those that have ended, by name."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before, server.services.tracing = server.services.tracing, Tracing(provider)

    def ended(*names):
        found = {}

        def complete():
            found.clear()
            for span in exporter.get_finished_spans():
                found.setdefault(span.name, []).append(span)
            return set(names) <= set(found)

        until(complete, seconds=10)
        return found

    yield ended
    server.services.tracing = before


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_s_spans(http, spans, stream):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = http.post("/v1/chat/completions", json={**ASK, "stream": stream}, headers={"traceparent": parent})
    assert response.status_code == 200
    found = spans("POST /v1/chat/completions", "msa.wait", "msa.route", "msa.round", "msa.generate")
    (request,), (wait,), (route,), (generate,) = (
        found[name] for name in ("POST /v1/chat/completions", "msa.wait", "msa.route", "msa.generate")
    )
    assert request.parent.span_id == int("b7ad6b7169203331", 16)
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert request.kind is trace.SpanKind.SERVER
    assert dict(request.attributes) == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
    }  # fmt: skip
    assert {span.parent.span_id for span in (wait, route, generate)} == {request.context.span_id}
    rounds = found["msa.round"]
    assert {span.parent.span_id for span in rounds} == {route.context.span_id}
    assert [(span.attributes["msa.round"], span.attributes["msa.documents"]) for span in rounds] == [(1, 1), (2, 0)]
    assert route.attributes["msa.rounds"] == 2
    assert generate.attributes["gen_ai.usage.output_tokens"] > 0
    assert generate.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    moments = [request.start_time, wait.start_time, wait.end_time, rounds[0].start_time, rounds[0].end_time,
               rounds[1].start_time, rounds[1].end_time, generate.start_time, generate.end_time]  # fmt: skip
    # stages are measured by another clock than requests
    assert all(later > earlier - 5_000_000 for earlier, later in itertools.pairwise(moments))
    assert (route.start_time, route.end_time) == (wait.end_time, generate.start_time)


def test_no_span_holds_a_text_a_document_or_a_path(http, spans, memory):
    secret = "a very secret thing"
    http.post(f"{memory}/documents", json={"documents": [{"id": "secret-id", "text": f"{secret} {NEEDLE}"}]})
    http.get(f"{memory}/documents/secret-id", params={"q": secret})
    http.post(f"{memory}/search", json={"query": secret})
    http.get(f"/{secret}")
    name = memory.rsplit("/", 1)[1]
    asked = [{"role": "system", "content": secret}, {"role": "user", "content": f"{secret}?"}]
    http.post("/v1/chat/completions", json={"model": f"msa-tiny@{name}", "messages": asked, "max_tokens": 4})
    http.post("/v1/chat/completions", json={"model": f"msa-tiny@{name}", "messages": asked, "max_tokens": -1})
    found = spans("POST /v1/chat/completions", "msa.generate", "POST /v1/memories/{name}/search", "GET (none)")
    told = "".join(span.to_json() for group in found.values() for span in group)
    assert "secret" not in told
    assert NEEDLE not in told
    assert len(found["msa.route"]) == 2, "the search and the answer"


def test_what_fails_says_its_kind_only(http, spans, monkeypatch):
    from msa.memory import Memory

    def fail(*_, **__):
        raise KeyError("a very secret thing")

    monkeypatch.setattr(Memory, "search", fail)
    assert http.post("/v1/memories/known/search", json={"query": "x"}).status_code == 500
    found = spans("POST /v1/memories/{name}/search", "msa.route")
    (request,), (route,) = found["POST /v1/memories/{name}/search"], found["msa.route"]
    assert (request.status.is_ok, request.attributes["error.type"]) == (False, "500")
    assert (route.status.is_ok, route.attributes["error.type"]) == (False, "KeyError")
    assert "secret" not in request.to_json() + route.to_json()
    assert not request.events


def test_a_client_that_goes_away_ends_its_spans(http, spans):
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json={"model": "msa-tiny@known", **ENDLESS}, timeout=0.5)
    found = spans("POST /v1/chat/completions", "msa.route")
    last = found["msa.generate" if "msa.generate" in found else "msa.route"][0]
    assert (last.attributes["error.type"], last.status.is_ok) == ("CancelledJobError", False)
    assert found["POST /v1/chat/completions"][0].attributes["http.response.status_code"] == 499


@pytest.fixture
def clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_METRICS_EXPORTER": "otlp"},
    ],
)
def test_it_is_off_unless_traces_are_asked_for(clean, caplog, variables):
    tracing = tracing_from_environment(variables)
    with tracing.request("GET", {}) as span:
        assert span is None
        assert not trace.get_current_span().is_recording()
    tracing.close()
    assert caplog.text == ""


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk.trace"])
def test_without_the_packages_the_server_says_so_and_goes_on(clean, caplog, missing):
    clean.setitem(sys.modules, missing, None)
    tracing = tracing_from_environment({"OTEL_TRACES_EXPORTER": "otlp"})
    with tracing.request("GET", {}) as span:
        tracing.responded(span, "GET", "/", 200)
    assert "memory-sparse-attention[otel]" in caplog.text


def test_an_exporter_that_nobody_has(clean, caplog):
    tracing_from_environment({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}).close()
    assert "no exporter 'carrier-pigeon'" in caplog.text


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, bytes]]

    def do_POST(self):
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_collector_gets_them(clean, start, tmp_path):
    handler = type("Handler", (Collector,), {"received": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        clean.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        clean.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with start(tmp_path / "root") as server, server.http() as client:
            client.put("/v1/memories/known", json={})
            client.post("/v1/memories/known/documents", json={"text": NEEDLE})
            assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        collector.shutdown()
    told = b"".join(body for _, body in handler.received)
    assert {path for path, _ in handler.received} == {"/v1/traces"}
    for name in (b"msa.generate", b"msa.route", b"POST /v1/chat/completions", b"service.name"):
        assert name in told, "what is left is sent when the server ends"
    assert QUESTION.encode() not in told


def test_a_collector_that_is_not_there_does_not_hold_the_server_up(clean, start, tmp_path):
    clean.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with start(tmp_path / "root") as server, server.http() as client:
        assert client.put("/v1/memories/known", json={}).status_code == 201
    assert time.monotonic() - started < 30
