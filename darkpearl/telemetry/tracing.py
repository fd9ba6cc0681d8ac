"""Traces by OpenTelemetry: how long requests, passes of the listener and gateway calls took.

Imported when the environment asks for traces, and by nobody else. A trace goes on across processes:
a request continues the context that it brought, its saga keeps the request's, and the listener's
calls of the gateway continue that. A span holds no query, body, header, token or message.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from darkpearl import __version__
from darkpearl.config import TracesExporter

FLUSH_SECONDS = 2.0
"""How long the end of a process may wait for a collector to take the last spans."""
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
"""Others are _OTHER: a client can't make up names of spans."""
NO_ANSWERS = {"error", "timeout", "unknown"}

_EXPORTERS = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
_log = logging.getLogger(__name__)
_w3c = TraceContextTextMapPropagator()


class RequestSpan:
    """The span of an HTTP request that is being answered.

    Attributes:
        traceparent: its W3C trace context, for what follows from the request.
    """

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method
        here = span.get_span_context()
        self.traceparent = f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"

    def end(self, route: str | None, status: int) -> None:
        """The answer has been sent, with this status; 0 is one that was never begun."""
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:  # noqa: PLR2004
            _fail(self._span, str(status) if status else "no_answer")
        self._span.end()


class GatewayCall:
    """A call of the gateway that is being made.

    Attributes:
        outcome: what it said, as far as it did.
    """

    outcome = "error"


class Tracing:
    """The spans of one service.

    Args:
        service: its name, unless OpenTelemetry's variables give another.
        processor: takes spans that have ended.
    """

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        ours = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("darkpearl", __version__)

    def request(self, method: str, scheme: str, path: str, traceparent: str) -> RequestSpan:
        """Begin the span of an HTTP request; traceparent is the context that it brought, if any."""
        known = method in METHODS
        span = self._tracer.start_span(
            method if known else "HTTP",
            _context(traceparent),
            SpanKind.SERVER,
            {
                "http.request.method": method if known else "_OTHER",
                "url.scheme": scheme,
                "url.path": path,
            },
        )
        return RequestSpan(span, method if known else "HTTP")

    @contextmanager
    def gateway_call(
        self, operation: str, saga_id: str, attempt: int, traceparent: str
    ) -> Iterator[GatewayCall]:
        """A span of one call, part of the trace that started the saga if that is known."""
        call = GatewayCall()
        span = self._tracer.start_span(
            f"gateway {operation}",
            _context(traceparent),
            SpanKind.CLIENT,
            {
                "darkpearl.operation": operation,
                "darkpearl.saga_id": saga_id,
                "darkpearl.attempt": attempt,
            },
        )
        try:
            yield call
        except asyncio.CancelledError:
            call.outcome = "timeout"
            raise
        finally:
            span.set_attribute("darkpearl.outcome", call.outcome)
            if call.outcome in NO_ANSWERS:
                _fail(span, call.outcome)
            span.end()

    @contextmanager
    def engine_pass(self, name: str, counts: dict[str, int]) -> Iterator[None]:
        """A span of one transaction of the listener, with what counts holds at its end.

        It is a trace of its own, because it is for many sagas. One that found nothing to do leaves
        none.
        """
        began, failure = time.time_ns(), ""
        try:
            yield
        except Exception as error:
            failure = type(error).__name__
            raise
        finally:
            if failure or any(counts.values()):
                span = self._tracer.start_span(
                    f"listener {name}",
                    Context(),
                    attributes={f"darkpearl.{each}": count for each, count in counts.items()},
                    start_time=began,
                )
                if failure:
                    _fail(span, failure)
                span.end()

    async def close(self) -> None:
        """Send what is left, in so many seconds; without a collector that takes it, it is lost."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)
        if flushing.is_alive():
            _log.warning("the last spans weren't taken within %g s", FLUSH_SECONDS)


def exporting(service: str, exporter: TracesExporter) -> Tracing:
    """The spans of a service, sent in batches in the background as OTEL_ variables want it."""
    return Tracing(service, BatchSpanProcessor(_EXPORTERS[exporter]()))


def _context(traceparent: str) -> Context:
    """The context that a span continues; without one it begins a trace."""
    return _w3c.extract({"traceparent": traceparent}, Context())


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
