"""What a stranger can make the API do: each phase of a request has its bound, one test for each."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from litestar import Litestar, get
from litestar.di import NamedDependency
from server import SECRET, Process, answering, free_port
from shop import Shop

from darkpearl import connections
from darkpearl.api import listing, tokens
from darkpearl.api.access import Caller, Statement
from darkpearl.api.admission import VISITORS
from darkpearl.api.app import create_app
from darkpearl.api.description import ANYBODY
from darkpearl.config import VISITOR_RATE_LIMIT, Settings

Api = httpx.AsyncClient
Json = dict[str, Any]
Problem = Callable[..., Json]
Client = Callable[..., Api]

JSON = {"content-type": "application/json"}
DESCRIPTORS = 300
CLOSED_SECONDS = 15.0
LARGEST_ANSWER = 20_000
MEGABYTE = 1_000_000
LIMIT = 990_000
TOKEN = tokens.mint(Settings(jwt_secret=SECRET), "authenticated", str(uuid4()), 3600)
BEARER = {"authorization": f"Bearer {TOKEN}"}
HOSTILE = {
    "empty lines": b'{"items": [' + b",".join([b"{}"] * 330_000) + b"]}",
    "numbers": b'{"items": [' + b",".join([b"1"] * 490_000) + b"]}",
    "unknown fields": b"{" + b",".join(b'"%x":1' % n for n in range(90_000)) + b"}",
    "a long name": b'{"' + b"x" * LIMIT + b'":1}',
    "a long value": b'{"items": "' + b"x" * LIMIT + b'"}',
    "good lines and a bad one": b'{"items": ['
    + (b'{"product_id":"%s","quantity":1},' % str(uuid4()).encode()) * 14_000
    + b"{}]}",
}


class Served:
    """An API in a process of its own, and sockets to it."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    def client(self, **options: Any) -> Api:
        """A client of it."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=20, **options)

    async def open(self, *said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which something was said."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.writelines(said)
        return reader, writer

    async def said(self, *said: bytes) -> bytes:
        """All that is answered before the connection is closed."""
        reader, writer = await self.open(*said)
        answer = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(CLOSED_SECONDS):
                while piece := await reader.read(65536):
                    answer += piece
        writer.close()
        return answer


@pytest.fixture
async def api_process(database_url: str) -> AsyncIterator[Served]:
    """An API that may open 300 files."""
    port = free_port()
    settings = {
        "DARKPEARL_DATABASE_URL": database_url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_LOG_LEVEL": "warning",
    }
    with Process("api", descriptors=DESCRIPTORS, **settings) as process:
        served = Served(process, port)
        async with served.client() as client:
            await answering(client)
        yield served
        assert process.runs()
        assert "Traceback" not in process.printed()


def head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")


async def quickest(ask: Callable[[], Awaitable[httpx.Response]]) -> tuple[httpx.Response, float]:
    """The answer, and the shortest time of three: the machine may be busy with others."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        told = await ask()
        times.append(time.perf_counter() - began)
    return told, min(times)


# Who calls, before what is sent


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_body_is_refused_at_once(
    api_process: Served, problem: Problem, body: bytes
) -> None:
    """Without a token nothing of it is looked at; with one no more than is shown of its errors."""
    assert len(body) <= MEGABYTE
    async with api_process.client(headers=JSON) as client:
        told, seconds = await quickest(lambda: client.post("/orders", content=body))
        problem(told, 401, "DP030")
        assert seconds < 0.2
        ask = client.post
        told, seconds = await quickest(lambda: ask("/orders", content=body, headers=BEARER))
        assert len(problem(told, 400)["errors"]) <= 50
        assert len(told.content) < LARGEST_ANSWER
        assert seconds < 0.5


@pytest.mark.parametrize("kind", ["json", "yaml"])
async def test_the_description_is_made_once(api_process: Served, kind: str) -> None:
    """While it is made others are served, and from then on it costs no more than sending it."""
    path = f"/schema/openapi.{kind}"
    waits: list[float] = []

    async def ask_meanwhile(client: Api, first: asyncio.Task[httpx.Response]) -> None:
        while not first.done():
            began = time.perf_counter()
            await client.get("/health/live")
            waits.append(time.perf_counter() - began)

    async with api_process.client() as client:
        first = asyncio.create_task(client.get(path))
        await ask_meanwhile(client, first)
        told, seconds = await quickest(lambda: client.get(path))
    assert told.content == (await first).content
    assert len(waits) > 5
    assert sorted(waits)[len(waits) // 2] < 0.2
    assert seconds < 0.1


async def test_errors_stop_where_they_stop_being_shown(
    client: Client, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twenty thousand wrong lines only as many are looked at as an answer has room for."""
    looked, convert = 0, msgspec.convert

    def counted(*given: Any) -> Any:
        nonlocal looked
        looked += 1
        return convert(*given)

    monkeypatch.setattr(msgspec, "convert", counted)
    body = b'{"items": [' + b",".join([b"{}"] * 20_000) + b"]}"
    api = client("authenticated", uuid4())
    told = problem(await api.post("/orders", content=body, headers=JSON), 400)
    assert len(told["errors"]) == 50
    assert told["errors"][0] == {"field": "items[0].quantity", "message": "Missing"}
    assert looked < 100


@pytest.mark.parametrize("headers", [{}, BEARER], ids=["visitor", "customer"])
async def test_a_hostile_query_is_refused_at_once(
    api_process: Served, headers: dict[str, str]
) -> None:
    """Parameters have a number and a length; an answer names fifty of them."""
    async with api_process.client(headers=headers) as client:
        for query in (
            "&".join(f"a{n}=1" for n in range(8000)),
            "&".join(f"{n:x}" for n in range(1500)),
            "&".join(f"{n}=1" for n in range(99)),
            "x" * 8000 + "=1",
            "sort=" + "," * 8000,
        ):
            told, seconds = await quickest(lambda q=query: client.get(f"/products?{q}"))  # type: ignore[misc]
            assert told.status_code == 400
            assert len(told.content) < LARGEST_ANSWER
            assert seconds < 0.2


@pytest.mark.parametrize("role", [None, "anon"])
async def test_what_wants_a_token_asks_for_it_first(
    app: Litestar, client: Client, problem: Problem, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """A visitor's request to any operation that isn't open reads no body and asks no database."""

    async def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Caller, "run", never)
    monkeypatch.setattr(app.request_class, "body", never)
    wants = [
        (path, method)
        for path, operations in app.openapi_schema.to_schema()["paths"].items()
        for method, operation in operations.items()
        if {} not in operation.get("security", [])
    ]
    assert len(wants) > 20
    for path, method in wants:
        path = path.replace("{movement_id}", "1")  # noqa: PLW2901
        path = re.sub(r"\{\w+_id\}", str(uuid4()), path)  # noqa: PLW2901
        told = await client(role).request(method, path, content=b"[", headers=JSON)
        problem(told, *((403, "42501") if role else (401, "DP030")))


# Trailers


async def test_trailers_are_as_if_not_sent(api_process: Served) -> None:
    """A token in a trailer is none, and neither is an id."""
    trailers = f"Authorization: Bearer {TOKEN}\r\nX-Request-ID: from-a-trailer\r\n\r\n".encode()
    body = b"2\r\n{}\r\n0\r\n"
    close = "Connection: close"
    told = await api_process.said(head("POST", "/orders", close, *CHUNKED), body, trailers)
    assert told.startswith(b"HTTP/1.1 401 ")
    assert b"from-a-trailer" not in told
    with_token = head("POST", "/orders", close, f"Authorization: Bearer {TOKEN}", *CHUNKED)
    told = await api_process.said(with_token, body, trailers)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"Missing" in told
    assert b"from-a-trailer" not in told


@pytest.mark.parametrize("known", [True, False])
async def test_trailers_without_end_are_cut_off(api_process: Served, *, known: bool) -> None:
    """200 MB of them leave nothing in memory: the connection ends long before."""
    headers = [*CHUNKED, *([f"Authorization: Bearer {TOKEN}"] if known else [])]
    piece = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(1000))
    before = api_process.process.memory()
    reader, writer = await api_process.open(head("POST", "/orders", *headers), b"2\r\n{}\r\n0\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 200 * MEGABYTE:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
    writer.close()
    del reader
    assert sent < 20 * MEGABYTE
    assert api_process.process.memory() < before + 10 * MEGABYTE


# Pages


async def test_a_page_is_cut_before_it_is_looked_up(
    app: Litestar, api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that are left out, the names of their products are never read."""
    del app
    await shop.shelves(2000)
    read: list[int] = []

    async def run(caller: Caller, *statements: Statement) -> Json | None:
        async with caller.transaction() as execute:
            for statement in statements:
                answered = await execute(*statement)
            counted = await execute(
                "select seq_tup_read + idx_tup_fetch as read from pg_stat_xact_all_tables"
                " where schemaname = 'darkpearl' and relname = 'products'",
                {},
            )
        read.append((await counted.fetchone())["read"])
        found: Json | None = await answered.fetchone()
        return found

    monkeypatch.setattr(Caller, "run", run)
    page = (await api.get("/inventory?limit=1&offset=1999")).json()
    assert (len(page["data"]), page["count"]) == (1, 2002)
    assert max(read) <= 4


async def test_counts_stop_and_say_so(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number rows aren't counted any more; up to it the count is exact."""
    for most, count, relation in ((3, 3, None), (2, 2, None), (1, 1, "more_than")):
        monkeypatch.setattr(listing, "MOST_COUNTED", most)
        if most == 3:
            await shop.product()
        page = (await api.get("/products?limit=1")).json()
        assert (page["count"], page.get("count_relation")) == (count, relation)
        if most == 3:
            await shop.run("delete from products where id = %s", shop.products.pop())


async def test_only_staff_leave_out_as_many_rows_as_they_like(
    client: Client, shop: Shop, problem: Problem
) -> None:
    """Others are refused a deep offset at once, and told of the cursor."""
    del shop
    for role in (None, "authenticated"):
        api = client(role, uuid4())
        told = problem(await api.get("/inventory?limit=1&offset=399999"), 400)
        assert "cursor" in told["errors"][0]["message"]
        assert (await api.get("/inventory?limit=1&offset=10000")).status_code == 200
    assert (await client("service_role").get("/inventory?offset=399999")).status_code == 200


async def test_visitors_have_connections_and_time_of_their_own(
    app: Litestar, client: Client, shop: Shop, problem: Problem, order_body: Callable[..., Json]
) -> None:
    """When visitors hold all that is theirs a customer orders as ever, and they have to wait."""
    del shop

    @get("/limit", security=ANYBODY)
    async def limit(caller: NamedDependency[Caller]) -> Json:
        return await caller.run(("show statement_timeout", {})) or {}

    app.register(limit)
    customer, visitor = client("authenticated", uuid4()), client()
    assert (await customer.get("/limit")).json() == {"statement_timeout": "10s"}
    assert (await visitor.get("/limit")).json() == {"statement_timeout": "2s"}
    pool = app.state.reach.own[VISITORS]
    pool.timeout = 0.1
    async with contextlib.AsyncExitStack() as held:
        for _ in range(pool.max_size):
            await held.enter_async_context(pool.connection())
        assert (await customer.post("/orders", json=order_body((0, 1)))).status_code == 201
        assert (await client("service_role").get("/inventory")).status_code == 200
        problem(await visitor.get("/inventory"), 503)
        assert (await visitor.get("/health/ready")).status_code == 200
    assert (await visitor.get("/inventory")).status_code == 200


async def test_a_crowd_of_probes_asks_what_one_does(
    client: Client, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for readiness while it is being looked at gets that answer."""
    del shop
    looks, run = 0, Caller.run
    asked, crowd = asyncio.Event(), 10

    async def counted(caller: Caller, *statements: Statement) -> Json | None:
        nonlocal looks
        looks += 1
        await asked.wait()
        return await run(caller, *statements)

    monkeypatch.setattr(Caller, "run", counted)
    asking = [asyncio.create_task(client().get("/health/ready")) for _ in range(crowd)]
    for _ in range(100):  # turns of the loop: each of them has long come to its look by then
        await asyncio.sleep(0)
    asked.set()
    assert [each.status_code for each in await asyncio.gather(*asking)] == [200] * crowd
    assert looks == 2


# Silence


async def test_who_keeps_the_api_waiting_is_let_go(api_process: Served) -> None:
    """Silence, half a head, one in drops, half a body: each is closed within 15 seconds."""
    token = f"Authorization: Bearer {TOKEN}"
    half = head(
        "POST", "/orders", "Content-Type: application/json", "Content-Length: 900000", token
    )
    webhook = head("POST", "/payments/webhooks/mock", "Content-Length: 900000")
    began = time.monotonic()

    async def gone(said: bytes, drop: bytes = b"") -> float:
        reader, writer = await api_process.open(said)
        with contextlib.suppress(ConnectionError):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        if not await reader.read(65536):
                            break
                writer.write(drop)
                assert time.monotonic() < began + 2 * CLOSED_SECONDS
        writer.close()
        return time.monotonic() - began

    answered = head("GET", "/health/live")
    times = await asyncio.gather(
        gone(b""),
        gone(half[:20]),
        gone(half[:20], b"x"),
        gone(half + b"[" * 500_000),
        gone(half + b"[", b"1,"),
        gone(webhook + b"[", b"1,"),
        gone(answered),
        gone(answered + half[:20], b"x"),
    )
    assert max(times) < CLOSED_SECONDS, times


async def test_who_takes_no_answer_is_let_go(
    api_process: Served, shop: Shop, until: Callable[..., Awaitable[None]]
) -> None:
    """Answers that pile up because nobody reads them are dropped, with the connection."""
    await shop.run(  # more than the system takes off our hands by itself
        "insert into products (sku, name)"
        " select n, repeat('x', 250) from generate_series(1, 1000) as n"
    )
    page = head("GET", "/products?limit=1000&cursor=")
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        taker.connect(("127.0.0.1", api_process.port))
        taker.sendall(page * connections.MOST_PIPELINED)
        began = time.monotonic()

        async def is_there() -> bool:
            return taker.getsockname()[1] in api_process.process.remote_ports()

        async def is_gone() -> bool:
            return not await is_there()

        await until(is_there)
        await until(is_gone)
        assert connections.PATIENCE_SECONDS / 2 < time.monotonic() - began < CLOSED_SECONDS


async def test_idle_connections_are_no_siege(
    api_process: Served, shop: Shop, problem: Problem
) -> None:
    """320 silent sockets beside 300 descriptors: who asks something is served all the while."""
    del shop
    async with contextlib.AsyncExitStack() as stack:
        for number in range(320):
            said = () if number % 2 else (head("POST", "/orders", *CHUNKED)[:-4],)
            _, writer = await api_process.open(*said)
            stack.callback(writer.close)
        for _ in range(5):
            async with api_process.client(headers=BEARER) as client:
                began = time.monotonic()
                assert (await client.get("/products")).status_code == 200
                problem(await client.post("/orders", json={}), 400)
                assert time.monotonic() - began < 1


async def test_a_connection_that_has_served_outlives_those_that_are_silent(
    api_process: Served,
) -> None:
    """The room that a flood of new connections takes is that of its own silent ones."""
    async with api_process.client(headers=BEARER) as client:
        assert (await client.get("/products")).status_code == 200
        async with contextlib.AsyncExitStack() as stack:
            opened = await asyncio.gather(*(api_process.open() for _ in range(320)))
            for _, writer in opened:
                stack.callback(writer.close)
            (pooled,) = client._transport._pool.connections  # type: ignore[attr-defined]
            assert (await client.get("/products")).status_code == 200
            assert client._transport._pool.connections == [pooled]  # type: ignore[attr-defined]


async def test_a_connection_takes_so_much_and_no_more(api_process: Served) -> None:
    """A path too long, a row of requests too long, and a body that goes on after its answer."""
    told = await api_process.said(head("GET", "/" + "x" * connections.LARGEST_TARGET_BYTES))
    assert told.startswith(b"HTTP/1.1 400 ")
    told = await api_process.said(head("GET", "/health/live") * 1000)
    assert told.count(b"HTTP/1.1 200 ") <= connections.MOST_PIPELINED + 1
    length = 50 * connections.LARGEST_REST_BYTES
    reader, writer = await api_process.open(
        head("POST", "/orders", "Content-Type: application/json", f"Content-Length: {length}")
    )
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < length:
            writer.write(b"x" * MEGABYTE)
            await writer.drain()
            sent += MEGABYTE
    writer.close()
    assert sent < length


async def test_large_bodies_are_few_at_a_time(api_process: Served, problem: Problem) -> None:
    """A customer has four under way; one more is told to wait, and small ones go on."""
    token = f"Authorization: Bearer {TOKEN}"
    large = head(
        "POST", "/orders", "Content-Type: application/json", "Content-Length: 900000", token
    )
    async with contextlib.AsyncExitStack() as stack, api_process.client(headers=BEARER) as client:
        for _ in range(4):
            _, writer = await api_process.open(large, b"[")
            stack.callback(writer.close)

        async def refused() -> httpx.Response:
            return await client.post("/orders", content=b" " * 900_000, headers=JSON)

        async with asyncio.timeout(5):
            while (told := await refused()).status_code != 429:  # they arrive one by one
                pass
        problem(told, 429, "DP039")
        problem(await client.post("/orders", json={}), 400)


# Rates


REQUESTS: dict[str, tuple[str, str, bytes]] = {
    "bad bodies": ("POST", "/orders", b"["),
    "unknown parameters": ("GET", "/products?x=1", b""),
    "no such path": ("GET", "/nowhere", b""),
    "no such method": ("PUT", "/orders", b""),
    "bad webhooks": ("POST", "/payments/webhooks/mock", b"{}"),
    "webhooks of others": ("POST", "/payments/webhooks/other", b"{}"),
    "the description": ("GET", "/schema/openapi.json", b""),
    "problems": ("GET", "/problems", b""),
    "the page": ("GET", "/schema", b""),
}


@contextlib.asynccontextmanager
async def limited(database_url: str, **settings: Any) -> AsyncIterator[tuple[Litestar, Api]]:
    """An API with these settings, and a client of it."""
    app = create_app(Settings(pool_size=2, jwt_secret=SECRET, **settings), database_url)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield app, client


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("headers", [{}, BEARER], ids=["visitor", "customer"])
async def test_the_limit_sees_every_request(
    database_url: str,
    problem: Problem,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> None:
    """Whatever becomes of it, it counts; one too many is 429 and says when to come back."""
    async with limited(database_url, rate_limit_per_minute=2) as (_, api):
        for _ in range(2):
            told = await api.request(method, path, content=body, headers={**JSON, **headers})
            assert told.status_code < 429, told.text
        told = await api.request(method, path, content=body, headers={**JSON, **headers})
        problem(told, 429, "DP039")
        assert "retry-after" in told.headers
        assert told.headers["x-content-type-options"] == "nosniff"
        assert (await api.get("/health/live", headers=headers)).status_code == 200


async def test_a_page_of_another_origin_can_read_that_it_is_too_fast(database_url: str) -> None:
    """One request too many is told through CORS, as every other answer is."""
    origin = "https://shop.example"
    async with limited(database_url, rate_limit_per_minute=1, cors_origins=origin) as (_, api):
        for status in (404, 429):
            told = await api.get("/nowhere", headers={"origin": origin})
            assert told.status_code == status
            assert told.headers["access-control-allow-origin"] == origin


async def test_the_last_proxy_says_who_asks_and_nobody_else(
    database_url: str, problem: Problem
) -> None:
    """With TRUSTED_PROXIES=*, what a client writes escapes no limit, and isn't kept."""
    settings = {"visitor_rate_limit_per_minute": 2, "trusted_proxies": "*"}
    async with limited(database_url, **settings) as (app, api):
        for number in range(3):
            made_up = f"{number}" * 50_000
            told = await api.get(
                "/products", headers={"x-forwarded-for": f"{made_up}, 192.0.2.{number}, 192.0.2.77"}
            )
        problem(told, 429, "DP039")
        for number in range(3):
            told = await api.get("/products", headers={"x-forwarded-for": f"{number}" * 50_000})
        problem(told, 429, "DP039")
        await api.get("/products", headers={"x-forwarded-for": "192.0.2.78"})
        assert list(app.state.visitors_limiter._full_at) == ["192.0.2.77", "nowhere", "192.0.2.78"]


async def test_long_names_have_short_keys(database_url: str) -> None:
    """What is kept of a caller is short, however long the subject of its token is."""
    async with limited(database_url, rate_limit_per_minute=2) as (app, api):
        for end in "ab":
            name = "x" * 5000 + end
            token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", name, 60)
            await api.get("/products", headers={"authorization": f"Bearer {token}"})
        kept = list(app.state.limiter._full_at)
    assert len(kept) == 2
    assert max(map(len, kept)) < 100


def test_visitors_have_a_limit_in_production() -> None:
    """Where nothing is said, they have one; what is said counts, 0 too."""
    production = {"environment": "production", "jwt_secret": SECRET}
    assert Settings().visitors_rate_limit == 0
    assert Settings(**production).visitors_rate_limit == VISITOR_RATE_LIMIT  # type: ignore[arg-type]
    assert Settings(**production, rate_limit_per_minute=7).visitors_rate_limit == 7  # type: ignore[arg-type]
    said = Settings(**production, rate_limit_per_minute=7, visitor_rate_limit_per_minute=0)  # type: ignore[arg-type]
    assert said.visitors_rate_limit == 0


# Nonsense


@pytest.mark.parametrize(
    "host", ["a:99999", "a:b", "[", "[::1", "a b", "\xff", "", "a" * 5000, "%00"]
)
@pytest.mark.parametrize("path", ["/products", "/nowhere", "/schema", "/orders", "/problems/DP001"])
async def test_a_strange_host_is_no_error_of_ours(app: Litestar, host: str, path: str) -> None:
    """It gets its answer or a refusal, with the headers of every answer."""
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as api:
        told = await api.get(path, headers={"host": host.encode("latin-1")})  # type: ignore[dict-item]
    assert told.status_code < 500, told.text
    assert told.headers["x-content-type-options"] == "nosniff"
    if told.status_code >= 400:
        assert told.headers["content-type"] == "application/problem+json"


async def test_an_error_of_the_framework_itself_is_a_problem_document(
    app: Litestar, api: Api, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the error can be told, there is a document with the usual headers."""

    async def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(app.asgi_handler, "_app", broken)
    told = await api.get("/products")
    problem(told, 500)
    assert told.headers["x-content-type-options"] == "nosniff"
    assert told.headers["x-request-id"] == told.json()["request_id"]
    assert "broken" not in told.text
