"""Every request: its id, its log line, its limits, and the headers of its answer."""

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from litestar import Litestar, get
from litestar.di import NamedDependency
from shop import Shop

from darkpearl.api import limits, tokens
from darkpearl.api.access import Caller
from darkpearl.api.app import create_app
from darkpearl.api.limits import Limiter, address_key
from darkpearl.config import Settings
from darkpearl.errors import RateLimitError
from darkpearl.telemetry.logs import JsonLines

Json = dict[str, Any]
Api = httpx.AsyncClient
Problem = Callable[..., Json]
SECRET = "a secret of these tests, and of nothing else"
LINE = {
    *("time", "level", "logger", "message", "request_id"),
    *("method", "path", "status", "duration_ms", "role"),
}
"""The members of a request's line in the log."""


@asynccontextmanager
async def served(
    database_url: str, address: str = "127.0.0.1", **settings: Any
) -> AsyncIterator[Api]:
    """A client at an address of an API with these settings."""
    app = create_app(Settings(pool_size=2, jwt_secret=SECRET, **settings), database_url)
    transport = httpx.ASGITransport(app, client=(address, 1))  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield client


def bearer(role: tokens.Role, subject: str) -> dict[str, str]:
    """The header of a caller."""
    token = tokens.mint(Settings(jwt_secret=SECRET), role, subject, 60)
    return {"authorization": f"Bearer {token}"}


async def test_a_request_keeps_a_sane_id_and_gets_one_else(api: Api, problem: Problem) -> None:
    """Short and plain ids come back as they were; anything else is replaced by a UUID."""
    told = await api.get("/products", headers={"x-request-id": "cart-42"})
    assert told.headers["x-request-id"] == "cart-42"
    ids = set()
    for bad in ("", "x" * 65, "a b", 'a"b', "a\tb", "<script>"):
        told = await api.get("/nowhere", headers={"x-request-id": bad})
        ids.add(UUID(told.headers["x-request-id"]))
        assert problem(told, 404)["request_id"] == told.headers["x-request-id"]
    assert len(ids) == 6


async def test_the_id_goes_down_to_the_history(
    app: Litestar, api: Api, shop: Shop, order_body: Callable[..., Json]
) -> None:
    """Sessions show it while they work, and events that the request caused keep it."""

    @get("/session")
    async def session(caller: NamedDependency[Caller]) -> Json:
        query = "select current_setting('application_name') as name"
        return await caller.run((query, {})) or {}

    app.register(session)
    told = await api.get("/session", headers={"x-request-id": "cart-42"})
    assert told.json() == {"name": "darkpearl api cart-42"}
    name = "x-request-id"
    order = (await api.post("/orders", json=order_body((0, 1)), headers={name: "cart-1"})).json()
    await api.delete(f"/orders/{order['id']}", headers={name: "cart-2"})
    await shop.advance()
    events = await shop.rows("select event_type::text, request_id from saga_events order by id")
    assert [tuple(each.values()) for each in events] == [
        ("saga_started", "cart-1"),
        ("cancelled", "cart-2"),
        ("compensation_started", None),
        ("saga_compensated", None),
    ]


async def test_a_saga_keeps_the_trace_that_started_it(
    api: Api, shop: Shop, order_body: Callable[..., Json]
) -> None:
    """A W3C trace context reaches the saga; what is none, or none at all, leaves nothing."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for brought, kept in ((trace, trace), (f"00-{'0' * 32}-{'0' * 16}-01", None), ("x", None)):
        made = await api.post("/orders", json=order_body((0, 1)), headers={"traceparent": brought})
        query = "select traceparent from sagas where id = %s"
        assert await shop.value(query, made.json()["id"]) == kept


async def test_every_answer_keeps_browsers_from_guessing_and_caches_from_keeping(api: Api) -> None:
    """Problems and the description included; HSTS where it is https, and only there."""
    for path in ("/products", "/nowhere", "/health/live", "/schema/openapi.json"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "strict-transport-security" not in headers
    secure = await api.get("https://api/products")
    assert secure.headers["strict-transport-security"].startswith("max-age=")


async def test_the_page_of_the_description_needs_nothing_from_elsewhere(api: Api) -> None:
    """Every script, style and picture of /schema is served here, and its policy allows no other."""
    page = await api.get("/schema")
    assert page.status_code == 200
    assert "'unsafe-inline'" not in page.headers["content-security-policy"].split("style-src")[0]
    assert "http" not in page.text
    files = [
        part.split('"')[0] for part in page.text.replace('src="', 'href="').split('href="')[1:]
    ]
    assert len(files) == 4
    for file in files:
        assert (await api.get(file)).status_code == 200, file


async def test_large_answers_are_compressed(api: Api, shop: Shop) -> None:
    """JSON above a kilobyte is gzipped for those who take it."""
    for _ in range(20):
        await shop.product()
    told = await api.get("/products", headers={"accept-encoding": "gzip"})
    assert told.headers["content-encoding"] == "gzip"
    assert len(told.json()["data"]) == 22
    plain = await api.get("/products", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json()["data"] == told.json()["data"]


async def test_streams_are_not_compressed(
    api: Api,
    order_body: Callable[..., Json],
    run_sagas: Callable[..., Awaitable[None]],
) -> None:
    """A compressor would keep events back until it has enough of them."""
    order = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await run_sagas()
    told = await api.get(f"/orders/{order}/events", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in told.headers
    assert "event: saga_completed" in told.text


async def test_other_origins_are_let_in_by_name(database_url: str, shop: Shop) -> None:
    """A preflight of a named origin is answered; without the setting no origin is."""
    del shop
    asks = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with served(database_url, cors_origins="https://shop.example,https://b.example") as api:
        told = await api.options("/orders", headers=asks)
        assert told.status_code == 204
        assert told.headers["access-control-allow-origin"] == "https://shop.example"
        told = await api.get("/products", headers={"origin": "https://shop.example"})
        assert told.headers["access-control-allow-origin"] == "https://shop.example"
        assert "x-request-id" in told.headers["access-control-expose-headers"].lower()
        told = await api.get("/products", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in told.headers
    async with served(database_url) as api:
        told = await api.get("/products", headers={"origin": "https://shop.example"})
        assert "access-control-allow-origin" not in told.headers


async def test_who_asks_too_often_is_told_when_to_come_back(
    database_url: str, shop: Shop, problem: Problem
) -> None:
    """Each subject has a limit of its own, whatever the address; probes have none."""
    del shop
    alice, bob = (
        bearer("authenticated", f"00000000-0000-7000-8000-00000000000{n}") for n in (1, 2)
    )
    async with served(database_url, rate_limit_per_minute=3) as api:
        for left in (2, 1, 0):
            told = await api.get("/products", headers=alice)
            assert told.status_code == 200
            assert told.headers["ratelimit-policy"] == '"default";q=3;w=60'
            assert f";r={left};" in told.headers["ratelimit"]
        told = await api.get("/products", headers=alice)
        problem(told, 429, "DP039")
        assert 1 <= int(told.headers["retry-after"]) <= 20
        assert (await api.get("/products", headers=bob)).status_code == 200
        assert (await api.get("/products")).status_code == 200
        for _ in range(5):
            assert (await api.get("/health/ready")).status_code == 200


async def test_guessing_tokens_is_limited_by_address(
    database_url: str, shop: Shop, problem: Problem
) -> None:
    """Tokens that aren't valid are counted for the address that sends them."""
    del shop
    async with served(database_url, rate_limit_per_minute=2) as api:
        for number in range(3):
            headers = {"authorization": f"Bearer {number}"}
            told = await api.get("/products", headers=headers)
        problem(told, 429, "DP039")


def test_a_bucket_fills_with_time() -> None:
    """A minute's worth at once, then as time passes; rest refills it, no further than full."""
    now = 0.0
    limiter = Limiter(60, clock=lambda: now)
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(RateLimitError) as told:
        limiter.take("a")
    assert told.value.retry_after_seconds == 1
    now = 1.0
    limiter.take("a")
    with pytest.raises(RateLimitError):
        limiter.take("a")
    now = 10_000.0
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(RateLimitError):
        limiter.take("a")


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers come, the one that rested longest is forgotten for the next."""
    monkeypatch.setattr(limits, "MAX_BUCKETS", 3)
    limiter = Limiter(1, clock=lambda: 0.0)
    for caller in "abcd":
        limiter.take(caller)
    assert len(limiter._full_at) == 3
    limiter.take("a")
    with pytest.raises(RateLimitError):
        limiter.take("d")


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("/run/api.sock", "nowhere"),
        ("2001:db8::1%" + "x" * 50_000, "nowhere"),
        ("x" * 50_000, "nowhere"),
    ],
)
def test_a_client_is_its_address(host: str, key: str) -> None:
    """The owner of a whole IPv6 network is one client all the same."""
    assert address_key(host) == key


def test_the_docs_show_such_a_line() -> None:
    """The example in docs/operations.md has the members that the next test finds, and no other."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (shown,) = re.findall(r"^```json\n(.+)\n```$", page, re.MULTILINE)
    assert json.loads(shown).keys() == LINE


async def test_a_request_is_one_line_of_json(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Method, path, status, duration, role and id as members; no query, no header."""
    caplog.set_level(logging.INFO, logger="darkpearl.api")
    headers = {"x-request-id": "cart-42", "x-secret": "secret2"}
    await api.get("/products?search=secret1", headers=headers)
    (record,) = [each for each in caplog.records if each.name == "darkpearl.api"]
    line = json.loads(JsonLines().format(record))
    assert line.keys() == LINE
    assert line.pop("duration_ms") > 0
    assert line.pop("time").endswith("Z")
    assert "secret" not in line.pop("message")
    assert line == {
        "level": "info",
        "logger": "darkpearl.api",
        "request_id": "cart-42",
        "method": "GET",
        "path": "/products",
        "status": 200,
        "role": "service_role",
    }


def test_a_traceback_is_a_member_of_its_line() -> None:
    """However many lines an error has, its log line is one."""
    try:
        int("two\nlines")
    except ValueError as error:
        found = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "%s\nfailed", ("it",), found)
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "it\nfailed"
    assert "ValueError: invalid literal" in line["exception"]


async def test_a_path_cant_forge_a_log_line(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """The path is logged as it was sent, escapes and all."""
    caplog.set_level(logging.INFO, logger="darkpearl.api")
    await api.get("/x%0AERROR%20forged")
    assert "\n" not in caplog.messages[-1]
    assert "/x%0AERROR%20forged" in caplog.messages[-1]
