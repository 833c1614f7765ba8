"""Traces of requests as OpenTelemetry spans, for any collector that takes OTLP over HTTP. An optional extra.

A request is a span. The time in the queue, the prefill and the decoding are its children. Each step of the engine that
computed a part of it is a child of one of these, with the seconds of all layers of the step added up: the layers as a
whole, the kernels of the CPU expert service, the hop to it, the device, and copies. The engine's thread only keeps some
numbers for each step; spans are made when the request has ended, in a thread of their own.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer
from gpu_service.engine.request import Request
from gpu_service.errors import FlagError

HEADERS = ("traceparent", "tracestate")
"""What a caller's metadata may contain: the trace that the request belongs to, by W3C's Trace Context."""

_MOST_STEPS = 4096  # of a request; later ones are counted
_EXPORT_SECONDS = 5
_CLOSE_MILLISECONDS = 2000
_NANOSECONDS = 10**9
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of the engine: when it began on the clock of time.monotonic(), and what it took."""

    began_at: float
    seconds: float
    is_prompt: bool
    num_rows: int
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Times:
    """When a request reached its stages, on the clock of time.monotonic(); None if it did not."""

    submitted_at: float
    started_at: float | None
    first_token_at: float | None
    last_token_at: float | None
    ended_at: float


@dataclass(slots=True)
class _Trace:
    """What is kept of a request until it has ended."""

    headers: Mapping[str, str]
    steps: list[_Step] = field(default_factory=list)
    num_left_out: int = 0


class Tracing:
    """Makes the spans of requests. Any thread may call it, but `step`, which is the engine's thread's."""

    def __init__(self, provider: Any, model_name: str, take_parts: Callable[[], Mapping[str, float]]) -> None:
        """Makes no span yet.

        Args:
            provider: OpenTelemetry's tracer provider, which exports.
            model_name: An attribute of every request.
            take_parts: Seconds by part since the last call, summed over layers, at the end of a step.
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("fiddler.gpu_service")
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name
        self._take_parts = take_parts
        self._traces: dict[Request, _Trace] = {}
        self._thread = ThreadPoolExecutor(1, "tracing")

    def begin(self, request: Request, headers: Mapping[str, str]) -> None:
        """Keeps what the engine computes of a request from now on, until `end` or `discard`.

        Args:
            request: The request.
            headers: Those of HEADERS that its call has. Malformed ones begin a trace of their own.
        """
        self._traces[request] = _Trace(headers)

    def discard(self, request: Request) -> None:
        """Forgets a request that the engine did not accept."""
        self._traces.pop(request, None)

    def step(self, batch: Batch, began_at: float, seconds: float) -> None:
        """Keeps one step of the engine for the requests that it computed."""
        parts = self._take_parts()
        of_prompts = {part.generation.answer for part in batch.parts if part.is_prompt}
        for answer in batch.answers:
            step = _Step(began_at, seconds, answer in of_prompts, len(batch.parts), parts)
            if (trace := self._traces.get(answer.request)) is None:
                continue
            if len(trace.steps) < _MOST_STEPS:
                trace.steps.append(step)
            else:
                trace.num_left_out += 1

    def end(self, answer: Answer, reasons: Mapping[str, int], status: str, *, num_tokens: int) -> None:
        """Makes the spans of a request that has ended.

        Args:
            answer: How far it was computed.
            reasons: How many of its generations ended for each reason.
            status: Its call's gRPC status.
            num_tokens: What was generated, in all its generations together.
        """
        if (trace := self._traces.pop(answer.request, None)) is None:
            return
        last_token_at = max((each.last_token_at for each in answer.generations if each.last_token_at), default=None)
        facts = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": self._model_name,
            "gen_ai.request.max_tokens": answer.request.ending.max_tokens,
            "gen_ai.usage.input_tokens": len(answer.request.prompt),
            "gen_ai.usage.output_tokens": num_tokens,
            "gen_ai.response.id": answer.request.request_id,
            "gen_ai.response.finish_reasons": list(reasons),
            "rpc.grpc.status": status,
            "fiddler.cached_prompt_tokens": answer.cached_prompt_tokens,
            "fiddler.steps": len(trace.steps) + trace.num_left_out,
        }
        times = _Times(answer.submitted_at, answer.started_at, answer.first_token_at, last_token_at, time.monotonic())
        self._thread.submit(self._try, partial(self._make_spans, trace, facts, times, status))

    def close(self) -> None:
        """Exports what has ended, for two seconds at most."""
        self._thread.shutdown()
        self._provider.force_flush(_CLOSE_MILLISECONDS)

    def _try(self, make: Callable[[], None]) -> None:
        try:
            make()
        except Exception as error:
            _log.error("making spans failed", error=str(error), exc_info=error)

    def _make_spans(self, trace: _Trace, facts: dict[str, Any], times: _Times, status: str) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "generate",
            context=self._propagator.extract(dict(trace.headers)),
            kind=SpanKind.SERVER,
            attributes=facts,
            start_time=_epoch(times.submitted_at),
        )
        if status not in ("OK", "CANCELLED"):
            span.set_status(Status(StatusCode.ERROR, status))
        self._stage(span, "queue", times.submitted_at, times.started_at or times.ended_at, [])
        if times.started_at is not None:
            steps = [step for step in trace.steps if step.is_prompt]
            self._stage(span, "prefill", times.started_at, times.first_token_at or times.ended_at, steps)
        if times.first_token_at is not None and times.last_token_at is not None:
            steps = [step for step in trace.steps if not step.is_prompt]
            self._stage(span, "decode", times.first_token_at, times.last_token_at, steps)
        span.end(_epoch(times.ended_at))

    def _stage(self, parent: Any, name: str, began_at: float, ended_at: float, steps: list[_Step]) -> None:
        from opentelemetry.trace import set_span_in_context

        stage = self._tracer.start_span(name, context=set_span_in_context(parent), start_time=_epoch(began_at))
        for step in steps:
            facts = {f"fiddler.{part}_seconds": seconds for part, seconds in step.parts.items()}
            span = self._tracer.start_span(
                f"{name} step",
                context=set_span_in_context(stage),
                attributes={**facts, "fiddler.rows": step.num_rows},
                start_time=_epoch(step.began_at),
            )
            span.end(_epoch(step.began_at + step.seconds))
        stage.end(_epoch(ended_at))


def provider_for(endpoint: str) -> Any:
    """OpenTelemetry's tracer provider that exports to an OTLP endpoint; OTEL_* variables say the rest, e.g. sampling.

    Raises:
        FlagError: The extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise FlagError(
            f"--traces-endpoint: OpenTelemetry is not installed ({error.name} is missing): "
            "pip install 'fiddler-moe[tracing]'"
        ) from None
    resource = Resource.create({"service.name": "fiddler-gpu-service"})  # OTEL_SERVICE_NAME overrides it
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)))
    return provider


def _epoch(at: float) -> int:
    """Nanoseconds since the epoch, of a time on the clock of time.monotonic()."""
    return time.time_ns() - round((time.monotonic() - at) * _NANOSECONDS)
