"""Prometheus metrics: names as vLLM's with the prefix ``msa:``, gauges of the memories beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from msa.errors import BankError
from msa.generation.types import Answer
from msa.serving.job import Job, Lane
from msa.serving.memories import Memories
from msa.serving.scheduler import Scheduler

if TYPE_CHECKING:
    from msa.serving.operations import Operations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_ROUNDS = (0, 1, 2, 3, 4, 6, 8, 16)
_MEMORY_GAUGES = {
    "documents": "documents",
    "parts": "parts, the documents of the method",
    "chunks": "chunks",
    "tokens": "tokens",
    "segments": "segments",
    "bytes_on_disk": "bytes of its folder",
    "deleted_parts": "parts that are deleted and still take space",
    "version": "number of its present state",
    "device_bytes": "bytes on the model's device that its routing keys take once it is asked",
    "host_bytes": "bytes of RAM that its content keys and values take once it is asked",
}


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        model_id: the label ``model_name``.
        scheduler: whose queues are shown.
        memories: whose open ones are shown.
        operations: gives the operations, None on a read-only server.
        cache_usage: share of what keys and values of running questions may take together.
    """

    def __init__(
        self,
        model_id: str,
        scheduler: Scheduler,
        memories: Memories,
        operations: Callable[[], Operations | None],
        cache_usage: Callable[[], float],
    ) -> None:
        self._registry = registry = CollectorRegistry()
        label = ("model_name",)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"msa:{name}", text, label, registry=registry).labels(model_id).set_function(value)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"msa:{name}", text, label, buckets=buckets, registry=registry).labels(model_id)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"msa:{name}", text, label, registry=registry).labels(model_id)

        gauge("num_requests_running", "questions that the model works on", lambda: scheduler.running(Lane.ASK))
        gauge("num_requests_waiting", "questions that wait for the model", lambda: scheduler.waiting(Lane.ASK))
        gauge("num_writes_running", "changes that the model works on", lambda: scheduler.running(Lane.WRITE))
        gauge("num_writes_waiting", "changes that wait for the model", lambda: scheduler.waiting(Lane.WRITE))
        gauge("num_operations", "operations that have not ended", lambda: _unfinished(operations()))
        gauge("kv_cache_usage_perc", "share that running questions' keys and values take of what they may", cache_usage)
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._generation_tokens = counter("generation_tokens", "tokens written, document ids included")
        self._encoded_tokens = counter("encoded_tokens", "tokens of documents that were encoded")
        self._success = Counter("msa:request_success", "answers", ("model_name", "finished_reason"), registry=registry)
        self._model_id = model_id
        self._first_token = histogram("time_to_first_token_seconds", "from arrival to the first token of the answer")
        self._failures = Counter(
            "msa:request_failures", "questions that got no whole answer", ("model_name", "code"), registry=registry
        )
        self._between = histogram(
            "inter_token_latency_seconds", "between two pieces of an answer's text, mostly tokens", _TOKEN_SECONDS
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "mean time between tokens of an answer", _TOKEN_SECONDS
        )
        self._whole = histogram("e2e_request_latency_seconds", "from arrival to the end of the answer")
        self._queue = histogram("request_queue_time_seconds", "waiting for the model")
        self._prefill = histogram("request_prefill_time_seconds", "from the model's start to the first token")
        self._decode = histogram("request_decode_time_seconds", "from the first token to the last")
        self._route = histogram("request_route_time_seconds", "routing and writing document ids, of an answer")
        self._prompt = histogram("request_prompt_tokens", "tokens of a prompt", _TOKENS)
        self._generated = histogram("request_generation_tokens", "tokens written for an answer", _TOKENS)
        self._rounds = histogram("request_rounds", "rounds of retrieval of an answer", _ROUNDS)
        names = ("route", "method", "status")
        self._responses = Counter("msa:http_responses", "responses", names, registry=registry)
        self._durations = Histogram(
            "msa:http_response_seconds", "time to the end of a response", names[:2], buckets=_SECONDS, registry=registry
        )
        registry.register(_MemoryGauges(memories))
        ProcessCollector(registry=registry)

    def answered(self, job: Job, answer: Answer) -> None:
        """Count one answer."""
        started, ended = job.started or job.submitted, job.ended or job.submitted
        first = answer.timings["first_token"]
        tokens = answer.usage.completion_tokens
        self._success.labels(self._model_id, answer.finish_reason).inc()
        self._prompt_tokens.inc(answer.usage.prompt_tokens)
        self._generation_tokens.inc(tokens)
        self._queue.observe(started - job.submitted)
        self._whole.observe(ended - job.submitted)
        self._prompt.observe(answer.usage.prompt_tokens)
        self._generated.observe(tokens)
        self._route.observe(answer.timings["route"])
        self._rounds.observe(len(answer.rounds))
        if first:
            decode = max(0.0, answer.timings["total"] - first)
            self._first_token.observe(started - job.submitted + first)
            self._prefill.observe(first)
            self._decode.observe(decode)
            if tokens > 1:
                self._per_token.observe(decode / (tokens - 1))

    def went_on(self, seconds: float) -> None:
        """Count one further piece of an answer's text, so long after the one before."""
        self._between.observe(seconds)

    def failed(self, code: str) -> None:
        """Count one question that got no whole answer, a stream that broke off among them; ``code``: of the error."""
        self._failures.labels(self._model_id, code).inc()

    def encoded(self, tokens: int) -> None:
        """Count tokens of documents."""
        self._encoded_tokens.inc(tokens)

    def responded(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one response."""
        self._responses.labels(route, method, str(status)).inc()
        self._durations.labels(route, method).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


def _unfinished(operations: Operations | None) -> int:
    return 0 if operations is None else operations.unfinished()


class _MemoryGauges(Collector):
    """Counts and sizes of the memories that are open, and what was read of them."""

    def __init__(self, memories: Memories) -> None:
        self._memories = memories

    def collect(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"msa:memory_{name}", f"of an open memory: {text}", labels=("memory",))
            for name, text in _MEMORY_GAUGES.items()
        }
        fetched = CounterMetricFamily(
            "msa:memory_fetched_bytes",
            "of an open memory: bytes of content keys and values read for selected documents since it was opened",
            labels=("memory",),
        )
        for memory_name, memory in self._memories.open_ones():
            try:
                stats = memory.stats()
            except (BankError, OSError):  # closed or deleted meanwhile
                continue
            on_device, in_ram = self._memories.tiers.needed_bytes(memory.bank.spec, stats["chunks"])
            stats |= {"device_bytes": on_device, "host_bytes": in_ram}
            for name, family in families.items():
                family.add_metric((memory_name,), stats[name])
            fetched.add_metric((memory_name,), memory.bank.fetched.total)
        yield from families.values()
        yield fetched
        yield GaugeMetricFamily("msa:memories", "memories in the served folder", len(self._memories.names()))
