"""Every route: problems, health, the description of the API."""

import asyncio
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Litestar, get
from litestar.di import NamedDependency
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl import __version__, database
from darkpearl.api import tokens
from darkpearl.api.access import Caller
from darkpearl.api.app import create_app
from darkpearl.api.tokens import ANONYMOUS
from darkpearl.config import Settings

from .conftest import SECRET

Api = httpx.AsyncClient
Problem = Callable[..., dict[str, Any]]


async def test_unknown_routes_and_methods_are_problems(api: Api, problem: Problem) -> None:
    """404 and 405 come as problem documents; 405 says what is allowed."""
    problem(await api.get("/nowhere"), 404)
    told = await api.patch("/orders")
    problem(told, 405)
    assert set(told.headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_a_body_has_to_be_json_and_say_so(api: Api, problem: Problem) -> None:
    """No other media type, none at all, nothing unreadable and nothing huge."""
    problem(await api.post("/orders", content="{}", headers={"content-type": "text/plain"}), 415)
    json = {"content-type": "application/json"}
    for body in ("", "{", "\x00", "[[[["):
        problem(await api.post("/orders", content=body, headers=json), 400)
    problem(await api.post("/orders", content="[" * 500_000, headers=json), 400)
    problem(await api.post("/orders", content="1" * 1_000_001, headers=json), 413)
    said = {"content-type": "application/json; charset=utf-8"}
    told = problem(await api.post("/orders", content="{}", headers=said), 400)
    assert {each["field"] for each in told["errors"]} == {"items"}


async def test_a_text_that_cannot_be_stored_is_refused(api: Api, problem: Problem) -> None:
    """A NUL in a body or a query is the client's mistake, not a bug."""
    body = {"sku": "A\0", "name": "A", "unit_price": 1}
    problem(await api.post("/products", json=body), 400, "22021")
    problem(await api.get("/products?search=%00"), 400, "22021")


async def test_a_bug_says_nothing_and_is_logged(
    app: Litestar, api: Api, problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    """500 as a problem document without a word of the exception; the log has it."""

    @get("/bug")
    async def bug() -> None:
        raise RuntimeError("password=hunter2")

    @get("/sql-bug")
    async def sql_bug(caller: NamedDependency[Caller]) -> None:
        await caller.run(("select secret_column from orders", {}))

    app.register(bug)
    app.register(sql_bug)
    assert "hunter2" not in str(problem(await api.get("/bug"), 500))
    assert "hunter2" in caplog.text
    told = await api.get("/sql-bug")
    assert told.status_code == 500
    assert "secret_column" not in told.text
    assert "secret_column" in caplog.text


async def test_requests_act_as_the_role_of_their_token(api: Api, app: Litestar) -> None:
    """The API's login does nothing by itself; role and claims last for a transaction."""
    who = (
        "select session_user::text as login, current_user::text as role,"
        " coalesce(current_setting('request.jwt.claims', true), '') <> '' as claims"
    )
    roles = []

    @get("/whoami")
    async def whoami(caller: NamedDependency[Caller]) -> dict[str, str]:
        row = await caller.run((who, {}))
        return row or {}

    app.register(whoami)
    roles.append((await api.get("/whoami")).json())
    async with app.state.pool.connection() as connection:
        cursor = await connection.execute(who)
        roles.append(await cursor.fetchone())
    assert roles == [
        {"login": "darkpearl_api", "role": "service_role", "claims": True},
        {"login": "darkpearl_api", "role": "darkpearl_api", "claims": False},
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that is started now waits for no statement."""
    monkeypatch.setattr("darkpearl.api.app.STATEMENT_TIMEOUT", "200ms")


@pytest.mark.usefixtures("impatient")
async def test_a_statement_has_a_time_limit(app: Litestar, api: Api, problem: Problem) -> None:
    """A query that takes too long is given up with 503 and Retry-After."""

    @get("/slow")
    async def slow(caller: NamedDependency[Caller]) -> None:
        await caller.run(("select pg_sleep(30)", {}))

    app.register(slow)
    told = await api.get("/slow")
    problem(told, 503, "57014")
    assert told.headers["retry-after"] == "1"


@pytest.mark.parametrize("sqlstate", ["25006", "53100", "53300", "57P03", "08006"])
async def test_a_server_in_trouble_is_503(
    sqlstate: str, api: Api, shop: Any, order_body: Any, problem: Problem
) -> None:
    """Not to be written to, full, crowded, starting up, cut off: come again, nothing was done."""
    await shop.run(
        "create function be_in_trouble() returns trigger language plpgsql as"
        f" $$ begin raise 'secret' using errcode = '{sqlstate}'; end $$;"
        " create trigger trouble before insert on orders"
        " for each row execute function be_in_trouble()"
    )
    told = await api.post("/orders", json=order_body((0, 1)))
    document = problem(told, 503, sqlstate)
    assert told.headers["retry-after"] == "1"
    assert "secret" not in str(document)
    assert (await api.get("/orders")).json()["count"] == 0


async def test_health_of_a_whole_service(api: Api) -> None:
    """Alive and ready."""
    live, ready = await api.get("/health/live"), await api.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")


async def test_ready_says_whether_a_listener_is_alive(api: Api, connect: Any) -> None:
    """Without one it serves all the same, and says so; so it does when nobody can tell."""

    async def seen() -> object:
        told = await api.get("/health/ready")
        assert told.status_code == 200
        return told.json()["listener_seen"]

    assert await seen() is False
    database = await connect()
    await database.execute(
        "select report_listener(new_id(), 'box', 1, '1', 'mock', 'closed', 'idle', 0)"
    )
    assert await seen() is True
    await database.execute("drop function has_listener()")
    assert await seen() is None


@pytest.mark.parametrize("lost", ["server", "schema", "role"])
async def test_without_its_database_it_lives_and_is_not_ready(
    lost: str, server_url: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts all the same; ready says 503 soon, whether server, schema or role is missing."""
    monkeypatch.setattr("darkpearl.api.health.READY_SECONDS", 0.3 if lost == "server" else 5)
    address = {
        "server": "postgresql://nobody@127.0.0.1:1/nothing",
        "schema": server_url,
        "role": database.with_options(server_url, "-c search_path=pg_temp"),
    }[lost]
    if lost == "role":
        nobody = msgspec.structs.replace(ANONYMOUS, role="nobody")
        monkeypatch.setattr("darkpearl.api.health.ANONYMOUS", nobody)
    app = create_app(Settings(pool_size=1), address)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        assert (await client.get("/health/live")).status_code == 200
        told = await client.get("/health/ready")
        problem(told, 503)
        assert told.headers["retry-after"] == "1"


async def test_no_login_but_its_own_will_do(
    connect: Any, problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    """A login that can't be darkpearl_api serves nothing, since no claims of it are believed."""
    await (await connect()).execute("alter role darkpearl_app password 'swordfish'")
    parts = (await connect()).info.get_parameters()
    login = {**parts, "user": "darkpearl_app", "password": "swordfish", "options": ""}
    app = create_app(Settings(pool_size=1), make_conninfo(**login))
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        problem(await client.get("/health/ready"), 503)
    assert 'permission denied to set session authorization "darkpearl_api"' in caplog.text
    assert "swordfish" not in caplog.text


async def test_an_outage_in_the_middle_is_503_and_passes(
    app: Litestar, api: Api, shop: Any
) -> None:
    """A connection that dies under a request is told as such; the next request gets another."""
    kill = (
        "select pg_terminate_backend(pid, 20000) from pg_stat_activity"
        " where application_name like 'darkpearl api%%' and {} pg_backend_pid()"
    )

    @get("/killed")
    async def killed(caller: NamedDependency[Caller]) -> None:
        superuser = "set session authorization default"
        await caller.run((superuser, {}), (kill.format("pid ="), {}))

    app.register(killed)
    told = await api.get("/killed")
    assert told.status_code == 503
    assert told.headers["content-type"] == "application/problem+json"
    assert told.headers["retry-after"] == "1"
    async with AsyncExitStack() as stack:
        for _ in range(app.state.pool.max_size):
            await stack.enter_async_context(app.state.pool.connection())
    await shop.run(kill.format("pid <>"))
    began = time.monotonic()
    assert (await api.get("/orders")).status_code == 200, "a checkout notices dead connections"
    assert time.monotonic() - began < 2.5, "all of them at once"


@pytest.mark.skipif(sys.platform != "linux", reason="counts segments as Linux does")
async def test_a_request_goes_to_the_database_in_one_piece(
    database_url: str, order_body: Callable[..., dict[str, Any]]
) -> None:
    """The server wakes up once for it, under an idempotency key twice; which cell it is, once."""
    if str(conninfo_to_dict(database_url).get("host") or "/").startswith("/"):
        pytest.skip("a Unix socket has no segments to count")
    app = create_app(Settings(pool_size=1, jwt_secret=SECRET), database_url)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 60)
    headers = {"authorization": f"Bearer {token}"}

    async def segments_sent() -> int:
        async with app.state.pool.connection() as connection:
            with socket.socket(fileno=os.dup(connection.fileno())) as its:
                tcp_info = its.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        sent: int = struct.unpack_from("I", tcp_info, 156)[0]  # tcpi_data_segs_out
        return sent

    async with app.lifespan(), Api(transport=transport, base_url="http://api") as client:
        for asked_before, key in enumerate((None, None, "a", "b")):
            before = await segments_sent() + (not asked_before)
            asked = headers | ({"idempotency-key": key} if key else {})
            told = await client.post("/orders", json=order_body((0, 1)), headers=asked)
            assert told.status_code == 201
            assert await segments_sent() - before == (2 if key else 1)


async def test_a_request_may_be_more_than_a_socket_takes(app: Litestar) -> None:
    """A statement that doesn't go at once goes when there is room, while answers come back."""
    text = "x" * 5_000_000
    query = "select %(text)s::text as text"
    async with asyncio.timeout(20):
        row = await Caller(app.state.pool, ANONYMOUS).run(*[(query, {"text": text})] * 3)
    assert row == {"text": text}


async def test_every_problem_type_is_explained(api: Api, problem: Problem) -> None:
    """The type of a problem document leads to what it stands for."""
    every = (await api.get("/problems")).json()
    assert {"code": "DP006", "title": "Not enough stock", "status": 409} in every
    assert (await api.get("/problems/DP006")).json() in every
    problem(await api.get("/problems/DP999"), 404)


async def test_the_api_describes_itself(api: Api) -> None:
    """OpenAPI 3.1 of this version: each operation with summary, tag, description and refusals."""
    told = (await api.get("/schema/openapi.json")).json()
    assert told["openapi"].startswith("3.1")
    assert told["info"]["version"] == __version__
    known = {tag["name"] for tag in told["tags"]}
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert set(operation["tags"]) <= known, where
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert "application/problem+json" in response["content"], where
    amount = told["components"]["schemas"]["Product"]["properties"]["unit_price"]
    assert amount["type"] == "number"
    page = await api.get("/schema")
    assert "swagger" in page.text.lower()


async def test_logs_tell_no_secrets(
    database_url: str, caplog: pytest.LogCaptureFixture, shop: Any
) -> None:
    """At the finest level a request is its method, path and status: no query, body or header."""
    del shop
    caplog.set_level(logging.WARNING, logger="httpx")  # the caller, who may say what it asks
    caplog.set_level(logging.DEBUG, logger="darkpearl")
    settings = Settings(pool_size=1, jwt_secret=SECRET)
    app = create_app(settings, database_url)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        await client.get("/products?search=secret1", headers={"authorization": "Bearer secret2"})
        token = tokens.mint(settings, "service_role", "secret4", 60)
        headers = {"authorization": f"Bearer {token}"}
        await client.post("/products", json={"sku": "secret3"}, headers=headers)
    ours = [each.getMessage() for each in caplog.records if each.name.startswith("darkpearl")]
    assert [each.split(" in ")[0] for each in ours] == ["GET /products 401", "POST /products 400"]
    assert "secret" not in caplog.text
    assert token not in caplog.text
