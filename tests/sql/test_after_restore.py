"""`darkpearl db after-restore`: what a dump, a replica or a copy of a database doesn't carry."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from shop import Shop

from darkpearl import restored, schema
from darkpearl.embedded import binaries

PROGRAMS = Path(os.environ.get("DARKPEARL_TEST_BINARIES") or binaries())
"""Of the server that the suite runs on: a dump is restored by a program no newer than it."""


async def said(url: str) -> str:
    """All lines of one run."""
    return "\n".join([line async for line in restored.put_in_order(url)])


def run(program: str, *arguments: str, url: str) -> None:
    """Run a program of PostgreSQL on a database."""
    parts = conninfo_to_dict(url)
    done = subprocess.run(
        [PROGRAMS / program, *arguments, "--dbname", str(parts["dbname"])],
        capture_output=True, text=True, check=False, cwd="/",
        env={
            "PGHOST": str(parts["host"]), "PGPORT": str(parts["port"]),
            "PGUSER": str(parts["user"]), "PGPASSWORD": str(parts["password"]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
async def dumped(shop: Shop, database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The shop with a fulfilled order, dumped and restored: the address of that database."""
    await shop.fulfilled((await shop.product(on_hand=10), 2))
    dump = str(tmp_path / "dump")
    async with schema.scratch_database(database_url) as url:
        await asyncio.to_thread(run, "pg_dump", "-Fc", "-f", dump, url=database_url)
        await asyncio.to_thread(run, "pg_restore", "--exit-on-error", dump, url=url)
        yield url


async def test_a_restored_dump_works_on(dumped: str, shop: Shop) -> None:
    """Roles find their tables again, orders are placed and fulfilled, and the audit is empty."""
    assert await said(dumped)
    async with await AsyncConnection.connect(
        dumped, autocommit=True, options="-c search_path=darkpearl", row_factory=dict_row
    ) as connection:
        there = Shop(connection)
        there.lisbon = shop.lisbon
        paths = await there.values(
            "select r.rolname from pg_db_role_setting as s inner join pg_roles as r"
            " on r.oid = s.setrole inner join pg_database as d on d.oid = s.setdatabase"
            " where d.datname = current_database() and 'search_path=darkpearl' = any(s.setconfig)"
        )
        assert {"darkpearl_app", "darkpearl_api", "darkpearl_reader"} <= set(paths)
        await there.fulfilled((shop.products[0], 3))
        assert await there.audit() == []
        assert await there.values("select order_number from orders order by 1") == [1, 2]


async def test_numbers_go_on_after_those_that_rows_have(shop: Shop, database_url: str) -> None:
    """A replica gets the rows and not the counters: the next order would have an old number."""
    product = await shop.product(on_hand=10)
    await shop.fulfilled((product, 1))
    highest = {
        f"{table}.{column}": await shop.value(f"select max({column}) from {table}")
        for table, column in (
            ("orders", "order_number"),
            ("order_items", "id"),
            ("saga_events", "id"),
            ("stock_movements", "id"),
        )
    }
    for each in highest:
        table, column = each.split(".")
        await shop.run(f"alter table {table} alter {column} restart with 1")
    with shop.refused("23505"):
        await shop.order((product, 1))
    await shop.run("alter table orders alter order_number restart with 1")  # the try took 1

    lines = (await said(database_url)).splitlines()
    assert {f"{each}: counts on from {number}" for each, number in highest.items()} <= set(lines)
    await shop.order((product, 1))
    assert await shop.value("select max(order_number) from orders") == 2


async def test_a_second_run_changes_nothing(shop: Shop, database_url: str) -> None:
    """Who isn't sure whether it was done does it again: counters don't move, nothing is made."""
    await shop.fulfilled((await shop.product(on_hand=10), 1))
    counter = "select last_value, is_called from orders_order_number_seq"
    await said(database_url)
    before = await shop.row(counter)
    again = await said(database_url)
    assert await shop.row(counter) == before
    assert "counters: none is behind its table" in again
    assert "partitions of saga_events: none is missing" in again


async def test_a_newer_server_makes_the_ids(shop: Shop, database_url: str) -> None:
    """A schema from a server before 18 gets the ids of 18, which cost less; not on an older one."""
    await shop.run(
        "create or replace function new_id() returns uuid language sql volatile parallel safe"
        " return gen_random_uuid()"
    )
    newer = await shop.value("select current_setting('server_version_num')::int >= 180000")
    assert ("ids: PostgreSQL's own" in await said(database_url)) == newer
    assert "ids:" not in await said(database_url)
    is_version_7 = "select substring(new_id()::text from 15 for 1) = '7'"
    assert await shop.value(is_version_7) == newer


async def test_the_planner_knows_the_tables_again(shop: Shop, database_url: str) -> None:
    """Statistics are in no dump; without them each plan is a guess until autovacuum comes by."""
    await shop.shelves(20)
    known = (
        "select count(*) from pg_class where relname in ('products', 'inventory') and"
        " reltuples = 20"
    )
    assert await shop.value(known) == 0
    await said(database_url)
    assert await shop.value(known) == 2


async def test_history_is_in_its_months_again(shop: Shop, database_url: str) -> None:
    """Events that came while their month had no partition get one, and so do those to come."""
    product = await shop.product(on_hand=10)
    await shop.turn_clock(200 * 86_400)
    await shop.fulfilled((product, 1))
    assert await shop.value("select events_out_of_place()") > 0
    await shop.turn_clock(240 * 86_400)
    await said(database_url)
    assert await shop.value("select events_out_of_place()") == 0
    next_month = "to_regclass((event_month(clock() + interval '1 month')).name) is not null"
    assert await shop.value(f"select {next_month}")


async def test_tables_of_another_owner_are_refused(shop: Shop, database_url: str) -> None:
    """Restored without their owner, functions would meet tables that they may not touch."""
    await shop.run("alter table action_log owner to current_user")
    with pytest.raises(schema.SchemaError, match="not to darkpearl_owner: restore as a superuser"):
        await said(database_url)
