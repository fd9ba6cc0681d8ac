"""One server for the session, one template database, and a fresh clone of it for every test.

The server is the embedded one, with its data in memory where there is room and without fsync.
DARKPEARL_TEST_BINARIES names the programs of another PostgreSQL to start in its place, and
DARKPEARL_TEST_DATABASE_URL a server that runs already, as a superuser of it. With
DARKPEARL_TEST_CELL=2 every database is cell 2, whose catalogue the tests write as if it came from
home.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bouncer import pooled  # noqa: F401 - a fixture
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from releases import Releases
from shop import CELL, Shop

from darkpearl import embedded, schema

PATIENCE_SECONDS = 20.0

Connect = Callable[..., Awaitable[AsyncConnection[Any]]]


@dataclass(frozen=True)
class Address:
    """A server as pytest-postgresql wants it."""

    host: str
    port: int
    user: str
    password: str | None
    maintenance_dbname: str
    options: str = ""
    template_dbname: str | None = None


def pytest_configure() -> None:
    """SIGTERM ends the run as Ctrl-C does: in order, and the server with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server with a superuser; what its own database holds is of no interest."""
    if url := os.environ.get("DARKPEARL_TEST_DATABASE_URL"):
        yield url
        return
    other = os.environ.get("DARKPEARL_TEST_BINARIES")
    with embedded.temporary(Path(other) if other else None) as server:
        yield server.url


@pytest.fixture(scope="session")
def server_address(server_url: str) -> Address:
    """The same server for pytest-postgresql."""
    parts = conninfo_to_dict(server_url)
    return Address(
        host=str(parts.get("host", "")),
        port=int(parts.get("port") or 5432),
        user=str(parts["user"]),
        password=parts.get("password"),
        maintenance_dbname=str(parts.get("dbname", "postgres")),
    )


AS_CELL = """
    do $$ declare v_table text; begin
        if to_regprocedure('darkpearl.become_cell(integer)') is null then
            return;
        end if;
        perform darkpearl.become_cell({cell});
        foreach v_table in array array['cells', 'products', 'warehouses', 'adjustment_reasons'] loop
            execute format(
                'alter table darkpearl.%1$s disable trigger %1$s_are_written_at_home', v_table
            );
        end loop;
        foreach v_table in array array['products', 'warehouses', 'adjustment_reasons'] loop
            execute format(
                'alter table darkpearl.%1$s disable trigger %1$s_are_kept_for_other_cells', v_table
            );
        end loop;
        insert into darkpearl.cells (number, name) values ({cell}, 'here') on conflict do nothing;
    end $$
"""


@pytest.fixture(scope="session", autouse=True)
def cell() -> Iterator[None]:
    """Whoever migrates makes the cell that the environment says."""
    apply = schema._apply_routines

    async def as_cell(connection: AsyncConnection[Any]) -> None:
        await apply(connection)
        if CELL > 1:
            await connection.execute(AS_CELL.format(cell=CELL).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_apply_routines", as_cell)
        yield


def load_schema(*, autocommit: bool, **connection: Any) -> None:
    """Fill the template database."""
    assert not autocommit
    migrate(make_conninfo(**connection))


def migrate(url: str) -> None:
    """Fill a database, with the partitions of this month and those ahead."""
    asyncio.run(schema.migrate(url))


def month() -> str:
    """The month that it is: a session may begin in one and end in the next."""
    return f"{datetime.now(UTC):%Y_%m}"


template = factories.postgresql_noproc(
    depends_on="server_address", dbname="darkpearl_test", load=[load_schema]
)


@pytest.fixture(scope="session")
def clone(server_url: str, template: NoopExecutor) -> Iterator[Callable[[], str]]:
    """Clones the template, and only then drops the clone before, whose sessions have now ended.

    DROP DATABASE sleeps for 100 ms when it meets a session, even one that is just ending.
    """
    new, old = f"{template.dbname}_a", f"{template.dbname}_b"
    made_in = month()
    source = template.template_dbname
    drop = "drop database if exists {} with (force)"
    with psycopg.connect(server_url, autocommit=True) as connection:

        def make() -> str:
            nonlocal new, old, made_in, source
            if made_in != month():
                made_in, source = month(), f"{template.template_dbname}_{month()}"
                connection.execute(drop.format(source).encode())
                connection.execute(f"create database {source}".encode())
                with ThreadPoolExecutor() as thread:  # this one has a loop
                    thread.submit(migrate, make_conninfo(server_url, dbname=source)).result()
            create = f"create database {new} template {source} strategy file_copy"
            connection.execute(create.encode())
            connection.execute(drop.format(old).encode())
            new, old = old, new
            return make_conninfo(server_url, dbname=old)

        yield make
        for name in {new, old, source} - {template.template_dbname}:
            connection.execute(drop.format(name).encode())


@pytest.fixture
def database_url(clone: Callable[[], str]) -> str:
    """A migrated, empty database of this test alone, as its superuser."""
    return clone()


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens connections in autocommit that see schema darkpearl; closes them at the end.

    `await connect()` is the superuser, `await connect("darkpearl_app")` has that role; named
    arguments go to psycopg.
    """
    async with AsyncExitStack() as stack:

        async def connect_as(role: str | None = None, **options: Any) -> AsyncConnection[Any]:
            session = "-c search_path=darkpearl -c statement_timeout=20s" + (
                f" -c role={role}" if role else ""
            )
            options = {"autocommit": True, "options": session, **options}
            connection = await AsyncConnection.connect(database_url, **options)
            return await stack.enter_async_context(connection)

        yield connect_as


@pytest.fixture
async def shop(connect: Connect) -> AsyncIterator[Shop]:
    """Two warehouses and nothing in them. What the test leaves behind must pass the audit."""
    shop = Shop(await connect(row_factory=dict_row))
    await shop.run(
        "insert into warehouses (id, code, name) values (%s, 'LIS', 'Lisbon'), (%s, 'RTM', 'R')",
        shop.lisbon,
        shop.rotterdam,
    )
    yield shop
    if shop.audited:
        assert await shop.audit() == []


@pytest.fixture
def releases(
    tmp_path: Path, database_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> Releases:
    """Makes releases of other plans, and migrates the shop's database to them."""
    return Releases(tmp_path, database_url, shop, monkeypatch)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits for a condition by looking again and again, never by guessing how long it takes."""

    async def condition_holds(condition: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.005)

    return condition_holds
