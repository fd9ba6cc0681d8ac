"""tracing.py: what becomes a span, where spans go, and that nobody pays for what nobody wants."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import anyio
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from stand_in import StandIn

from darkpearl import serving
from darkpearl.config import ConfigError, traces_exporter
from darkpearl.gateways import Answer, Call, Operation
from darkpearl.listener.breaker import Breaker
from darkpearl.listener.calls import Calls, Request
from darkpearl.telemetry import tracing
from darkpearl.telemetry.tracing import Tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that have ended."""
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> Tracing:
    """Makes spans of a service."""
    return Tracing("darkpearl-test", SimpleSpanProcessor(spans))


def told(span: ReadableSpan) -> tuple[str, StatusCode, dict[str, Any]]:
    """Name, status and attributes."""
    return span.name, span.status.status_code, dict(span.attributes or {})


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, None),
    ],
)
def test_opentelemetrys_variables_decide(variables: dict[str, str], exporter: str | None) -> None:
    """An endpoint or an exporter turns traces on; either way of saying no turns them off."""
    assert traces_exporter(variables) == exporter


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin' is not allowed; give one of otlp, console"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "'grpc' is not allowed; give http/protobuf",
        ),
    ],
)
def test_what_cant_be_had_is_said(variables: dict[str, str], message: str) -> None:
    """Traces that would go nowhere are an error with its remedy."""
    with pytest.raises(ConfigError, match=message):
        traces_exporter(variables)


@pytest.mark.parametrize(
    ("wanted", "prelude", "said"),
    [
        ("", "", ""),
        ("console", "sys.modules['opentelemetry'] = None", "pip install 'darkpearl[otel]'"),
    ],
    ids=["not wanted", "not installed"],
)
def test_without_traces_nothing_of_it_is_loaded(wanted: str, prelude: str, said: str) -> None:
    """Not wanted, or wanted without the extra: the command loads, and services have no traces."""
    program = (
        f"import sys\n{prelude}\n"
        "from darkpearl import serving\nfrom darkpearl.cli import main\n"
        "assert serving.traces_of('darkpearl-api') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.')]"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "OTEL_TRACES_EXPORTER": wanted},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (said in run.stderr) if said else run.stderr == ""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The address of something that takes OTLP over HTTP, and what it was sent."""
    sent: list[ExportTraceServiceRequest] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            sent.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "seen"), [("", "darkpearl-api"), ("shop-7", "shop-7")])
async def test_a_collector_gets_the_last_spans(
    collector: tuple[str, list[ExportTraceServiceRequest]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    seen: str,
) -> None:
    """Spans that wait for a batch are sent when the service ends, under its name or the one set."""
    address, sent = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    traces = serving.traces_of("darkpearl-api")
    assert traces
    traces.request("GET", "http", "/orders", "").end("/orders", 200)
    await traces.close()
    (each,) = [each for request in sent for each in request.resource_spans]
    attributes = {a.key: a.value.string_value for a in each.resource.attributes}
    assert attributes["service.name"] == seen
    assert [span.name for scope in each.scope_spans for span in scope.spans] == ["GET /orders"]


async def test_a_collector_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a service waits so long and no longer, and says what it left."""
    never = threading.Event()

    class Stuck(SpanProcessor):
        def shutdown(self) -> None:
            never.wait()

    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING):
        await Tracing("darkpearl-test", Stuck()).close()
    assert "the last spans weren't taken within 0.01 s" in caplog.text
    never.set()


@pytest.mark.parametrize(
    ("method", "route", "status", "name", "error"),
    [
        ("GET", "/orders/{order_id}", 200, "GET /orders/{order_id}", None),
        ("GET", "/orders/{order_id}", 404, "GET /orders/{order_id}", None),
        ("GET", None, 404, "GET", None),
        ("BREW", None, 405, "HTTP", None),
        ("POST", "/orders", 503, "POST /orders", "503"),
        ("POST", "/orders", 0, "POST /orders", "no_answer"),
    ],
)
def test_a_request_is_a_span(
    traced: Tracing,
    spans: InMemorySpanExporter,
    method: str,
    route: str | None,
    status: int,
    name: str,
    error: str | None,
) -> None:
    """Named by its template; what went wrong here is an error, what the client did isn't."""
    traced.request(method, "http", "/asked", "").end(route, status)
    (span,) = spans.get_finished_spans()
    shown, code, attributes = told(span)
    assert shown == name
    assert attributes.get("error.type") == error
    assert code == (StatusCode.ERROR if error else StatusCode.UNSET)
    assert attributes.get("http.route") == route
    assert attributes.get("http.response.status_code") == (status or None)
    assert attributes["http.request.method"] == (method if method != "BREW" else "_OTHER")


def test_what_isnt_sampled_stays_so(traced: Tracing, spans: InMemorySpanExporter) -> None:
    """A caller that doesn't sample its trace gets no spans here, and hands that on."""
    span = traced.request("GET", "http", "/", PARENT[:-2] + "00")
    span.end("/", 200)
    assert span.traceparent.startswith(PARENT[:36])
    assert span.traceparent.endswith("-00")
    assert spans.get_finished_spans() == ()


def test_a_pass_that_did_something_is_a_span(traced: Tracing, spans: InMemorySpanExporter) -> None:
    """With its counts; one that found nothing leaves none, and one that failed says with what."""
    for claimed in (0, 3):
        counts: dict[str, int] = {}
        with traced.engine_pass("advance", counts):
            counts["claimed"] = claimed
    with pytest.raises(ConnectionError), traced.engine_pass("settle", {"answers": 1}):
        raise ConnectionError
    assert [told(span) for span in spans.get_finished_spans()] == [
        ("listener advance", StatusCode.UNSET, {"darkpearl.claimed": 3}),
        (
            "listener settle",
            StatusCode.ERROR,
            {"darkpearl.answers": 1, "error.type": "ConnectionError"},
        ),
    ]


class Moody(StandIn):
    """Never answers an authorisation, breaks at a capture, says nothing clear of a refund."""

    async def authorize(self, call: Call) -> Answer:
        await anyio.sleep_forever()
        raise AssertionError(call)

    async def capture(self, call: Call) -> Answer:
        raise ConnectionResetError(call.idempotency_key)

    async def refund(self, call: Call) -> Answer:
        return Answer("unknown", message=call.idempotency_key)


@pytest.mark.parametrize(
    ("operation", "attempt", "outcomes"),
    [
        ("void", 1, ["gateway void approved"]),
        ("void", 2, ["gateway lookup none", "gateway void approved"]),
        ("authorize", 1, ["gateway authorize timeout"]),
        ("capture", 1, ["gateway capture error"]),
        ("refund", 1, ["gateway refund unknown"]),
    ],
)
async def test_a_gateway_call_is_a_span(
    traced: Tracing,
    spans: InMemorySpanExporter,
    operation: str,
    attempt: int,
    outcomes: list[str],
) -> None:
    """Each in the trace of its saga, with its outcome; no answer is an error; no key is told."""
    calls = Calls(Moody(), Breaker(9), concurrency=1, timeout_seconds=0.05, tracing=traced)
    call = Call(
        operation=cast(Operation, operation),
        idempotency_key="secret-key",
        payment_key="secret-payment",
        amount=Decimal(10),
        currency="EUR",
        token="secret-token",
    )
    asked = msgspec.Raw(msgspec.json.encode(call))
    await calls._settlement(Request("saga-1", 1, attempt, 60, asked, PARENT), 60)
    ended = spans.get_finished_spans()
    assert [f"{each.name} {(each.attributes or {})['darkpearl.outcome']}" for each in ended] == (
        outcomes
    )
    for each in ended:
        assert each.parent
        assert f"{each.parent.trace_id:032x}-{each.parent.span_id:016x}" == PARENT[3:-3]
        name, code, attributes = told(each)
        assert attributes["darkpearl.saga_id"] == "saga-1"
        assert attributes["darkpearl.attempt"] == attempt
        failed = name == f"gateway {operation}" and operation != "void"
        assert code == (StatusCode.ERROR if failed else StatusCode.UNSET)
        assert "secret" not in each.to_json()
