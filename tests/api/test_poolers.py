"""What stands between us and PostgreSQL: PgBouncer, in transaction mode and others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from bouncer import IGNORES, SESSIONS, Pooled, needs_pgbouncer
from psycopg.conninfo import conninfo_to_dict
from server import SECRET, Process
from shop import Shop

from darkpearl import database
from darkpearl.api import tokens
from darkpearl.api.app import create_app
from darkpearl.config import Settings

pytestmark = needs_pgbouncer


def token(role: tokens.Role, subject: object = None) -> dict[str, str]:
    """The header of a caller."""
    name = str(subject) if subject else None
    minted = tokens.mint(Settings(jwt_secret=SECRET), role, name, 60)
    return {"Authorization": f"Bearer {minted}"}


@asynccontextmanager
async def api_at(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that runs on this address."""
    app = create_app(Settings(pool_size=6, jwt_secret=SECRET), url)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield client


@pytest.mark.parametrize("options", IGNORES.values(), ids=IGNORES)
async def test_the_api_works_through_a_pooler_in_transaction_mode(
    pooled: Pooled, shop: Shop, order_body: Callable[..., dict[str, Any]], options: str
) -> None:
    """Every request is done as its caller, on sessions that all of them share."""
    customers = [uuid4() for _ in range(30)]
    at_once = asyncio.Semaphore(8)

    async def visit(client: httpx.AsyncClient, customer: Any) -> tuple[int, int, list[str]]:
        mine = token("authenticated", customer)
        key = {"Idempotency-Key": str(customer)}
        async with at_once:
            placed = await client.post("/orders", json=order_body((0, 1)), headers=mine | key)
            looked = await client.get("/products")
            seen = await client.get("/orders", headers=mine)
        return (
            placed.status_code,
            looked.status_code,
            [each["customer_id"] for each in seen.json()["data"]],
        )

    async with pooled("transaction", options) as url, api_at(url) as client:
        visits = await asyncio.gather(*(visit(client, each) for each in customers))
        sessions = await shop.values(
            "select pid from pg_stat_activity where usename = 'darkpearl_api' and datname ="
            " current_database()"
        )
        assert (await client.get("/health/ready")).status_code == 200
    assert visits == [(201, 200, [str(customer)]) for customer in customers]
    assert 0 < len(sessions) <= SESSIONS


async def test_nothing_of_a_request_stays_in_a_shared_session(pooled: Pooled) -> None:
    """The next client of the pooler finds its own role, claims, time limit and no statement."""
    looks = (
        "select current_user, current_setting('request.jwt.claims', true),"
        " current_setting('statement_timeout'), (select count(*) from pg_prepared_statements)"
    )
    async with pooled("transaction") as url:
        async with api_at(url) as client:
            for _ in range(10):
                assert (await client.get("/products", headers=token("service_role"))).is_success
        async with await psycopg.AsyncConnection.connect(url, prepare_threshold=None) as next_one:
            found = await next_one.execute(looks.encode())
            assert await found.fetchone() == ("darkpearl_api", "", "0", 0)


async def test_another_login_through_a_pooler_is_refused(
    pooled: Pooled, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A superuser can't become darkpearl_api in a session that isn't its own: said in the log."""
    user = str(conninfo_to_dict(database_url)["user"])
    async with pooled("transaction", user=user) as url, api_at(url) as client:
        assert (await client.get("/health/ready")).status_code == 503
    assert "through a pooler the login has to be darkpearl_api" in caplog.text


async def test_a_listener_says_that_a_pooler_is_in_its_way(pooled: Pooled) -> None:
    """One line, exit code 2: what it listens to, locks and prepares would be lost."""
    async with pooled("transaction") as url:
        with Process("listener", DARKPEARL_DATABASE_URL=url) as listener:
            assert await asyncio.to_thread(listener._process.wait, 20) == 2
            (line,) = listener.printed().splitlines()
    assert "through a pooler" in line
    assert "DARKPEARL_LISTENER_DATABASE_URL" in line


async def test_a_pooler_that_drops_what_a_login_asks_for_is_found(pooled: Pooled) -> None:
    """It lets a listener in that it will let down: found by whose process a session is."""
    async with pooled("transaction", IGNORES["dropped"]) as url:
        with pytest.raises(database.PoolerError):
            async with database.connect(database.as_role(url, "darkpearl_listener"), "test"):
                pass


async def test_a_pooler_in_transaction_mode_is_found_under_load(pooled: Pooled) -> None:
    """Other clients that change which session is whose don't hide it."""
    async with (
        pooled("transaction") as url,
        await psycopg.AsyncConnection.connect(url, prepare_threshold=None) as busy,
    ):
        await busy.execute("select 1")  # stays in its transaction, on one of the sessions
        with pytest.raises(database.PoolerError):
            async with database.connect(url, "test"):
                pass


async def test_a_pooler_that_leaves_sessions_alone_is_no_obstacle(pooled: Pooled) -> None:
    """In session mode a client has a session of its own, and nobody is refused."""
    async with pooled("session") as url, database.connect(url, "test") as connection:
        (row,) = await database.fetch_all(connection, "select current_setting('jit') as jit")
        assert row["jit"] == "off"
