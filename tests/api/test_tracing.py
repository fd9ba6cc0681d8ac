"""One trace from a caller through the API and the saga to the listener's call of the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import psycopg
import pytest
from litestar import Litestar, get
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from server import SECRET
from shop import Shop
from stand_in import StandIn

from darkpearl import database
from darkpearl.api.app import create_app
from darkpearl.config import Settings
from darkpearl.gateways import Answer, Call
from darkpearl.listener import Listener
from darkpearl.serving import limits_of
from darkpearl.telemetry.tracing import Tracing

Json = dict[str, Any]
Api = httpx.AsyncClient
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Charging(StandIn):
    """Approves, and lets know that it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.charged = asyncio.Event()

    async def authorize(self, call: Call) -> Answer:
        self.charged.set()
        return self.approve(call)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that have ended, in every service."""
    return InMemorySpanExporter()


@pytest.fixture
async def app(database_url: str, spans: InMemorySpanExporter) -> AsyncIterator[Litestar]:
    """The application, started and traced."""
    tracing = Tracing("darkpearl-api", SimpleSpanProcessor(spans))
    app = create_app(Settings(pool_size=2, jwt_secret=SECRET), database_url, tracing)
    async with app.lifespan():
        yield app


@pytest.fixture
def listen(database_url: str, spans: InMemorySpanExporter) -> Callable[..., Any]:
    """Runs a traced listener until its gateway has been asked, and that is settled."""

    async def run() -> None:
        gateway = Charging()
        url = database.as_role(database_url, "darkpearl_listener")
        tracing = Tracing("darkpearl-listener", SimpleSpanProcessor(spans))
        listener = Listener(url, gateway, limits_of(Settings(poll_seconds=0.1)), tracing=tracing)
        task = asyncio.create_task(listener.run())
        async with asyncio.timeout(20):
            await gateway.charged.wait()
            listener.stop()
            await task

    return run


def context(span: ReadableSpan, *, parent: bool = False) -> str:
    """A span's trace and id, or its parent's, as a traceparent has them."""
    told = span.parent if parent else span.context
    return f"{told.trace_id:032x}-{told.span_id:016x}" if told else ""


async def test_one_trace_from_the_caller_to_the_gateway(
    api: Api,
    shop: Shop,
    order_body: Callable[..., Json],
    spans: InMemorySpanExporter,
    listen: Callable[..., Any],
) -> None:
    """The request's span continues the caller's, the saga keeps it, the charge continues that."""
    made = await api.post("/orders", json=order_body((0, 1)), headers={"traceparent": PARENT})
    order = made.json()["id"]
    (request,) = spans.get_finished_spans()
    assert (request.name, request.kind) == ("POST /orders", SpanKind.SERVER)
    assert context(request, parent=True) == PARENT[3:-3]
    kept = await shop.value("select traceparent from sagas where id = %s", order)
    assert kept == f"00-{context(request)}-01"
    spans.clear()
    await listen()
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert by_name.keys() == {"listener advance", "gateway authorize", "listener settle"}
    charge = by_name["gateway authorize"]
    assert charge.kind == SpanKind.CLIENT
    assert context(charge, parent=True) == context(request)
    assert (charge.attributes or {})["darkpearl.saga_id"] == order
    assert await shop.statuses() == {"fulfilled": 1}


async def test_an_order_without_a_trace_begins_one(
    shop: Shop, spans: InMemorySpanExporter, listen: Callable[..., Any]
) -> None:
    """An order that came by SQL is charged all the same, in a trace of its own."""
    await shop.order((shop.products[0], 1))
    await listen()
    (charge,) = [each for each in spans.get_finished_spans() if each.name == "gateway authorize"]
    assert charge.parent is None
    assert await shop.statuses() == {"fulfilled": 1}


async def test_a_lost_trace_loses_no_charge(
    api: Api,
    shop: Shop,
    order_body: Callable[..., Json],
    spans: InMemorySpanExporter,
    listen: Callable[..., Any],
) -> None:
    """When the database won't say which trace it was, the order goes on without."""
    await api.post("/orders", json=order_body((0, 1)))
    await shop.run("drop function trace_contexts(uuid[])")
    spans.clear()
    await listen()
    (charge,) = [each for each in spans.get_finished_spans() if each.name == "gateway authorize"]
    assert charge.parent is None
    assert await shop.statuses() == {"fulfilled": 1}


async def test_spans_say_what_was_asked_and_keep_its_secrets(
    api: Api, order_body: Callable[..., Json], spans: InMemorySpanExporter
) -> None:
    """No query, token, header or body is in a span; the path, route, method and status are."""
    await api.get("/products?search=hunter2")
    body = order_body((0, 1), notes="hunter2", payment_token="hunter2")
    await api.post("/orders", json=body, headers={"idempotency-key": "hunter2"})
    listed, placed = spans.get_finished_spans()
    assert dict(listed.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/products",
        "http.response.status_code": 200,
        "url.path": "/products",
        "url.scheme": "http",
    }
    token = api.headers["authorization"].removeprefix("Bearer ")
    for span in (listed, placed):
        assert (span.attributes or {})["http.response.status_code"] in {200, 201}
        assert "hunter2" not in span.to_json()
        assert token not in span.to_json()


async def test_a_failure_of_ours_is_an_error(
    app: Litestar, api: Api, spans: InMemorySpanExporter
) -> None:
    """A 5xx marks its span, whatever raised it; a 404 doesn't."""

    @get("/broken")
    async def broken() -> None:
        raise psycopg.errors.InternalError_("a secret")

    app.register(broken)
    for path, status in (("/broken", 500), ("/nowhere", 404)):
        assert (await api.get(path)).status_code == status
    failed, missing = spans.get_finished_spans()
    assert failed.name == "GET /broken"
    assert failed.status.status_code == StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "500"
    assert "a secret" not in failed.to_json()
    assert missing.name == "GET"
    assert missing.status.status_code == StatusCode.UNSET
