"""darkpearl cells views: one query over all cells, by postgres_fdw.

The embedded server has no such extension. Where there is one, as in Debian's PostgreSQL
(DARKPEARL_TEST_BINARIES=/usr/lib/postgresql/15/bin), all of it is tried.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from moving import new_warehouse
from places import Place
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from shop import APPROVED, Shop
from terminal import Run

from darkpearl import cells
from darkpearl.cells.views import LEFT_OUT

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
PASSWORD = "of the reader"
AVAILABLE = "select count(*) from pg_available_extensions where name = 'postgres_fdw'"
OF_THE_CELL = {
    *("action_log", "audit", "audit_rules", "audit_runs", "batch_items", "batch_overview"),
    *("batches", "engine_health", "gateway_events", "listener_activity", "listeners"),
    *("queue_health", "retention", "retention_exports", "saga_steps", "step_minutes"),
    *("step_settings", "stock_in_transit", "stuck_by_cause", "webhook_endpoints", "webhook_health"),
    *("webhook_overview", "webhook_retries"),
}
"""What has no warehouse because it is a cell's own, or leaves old copies out by itself; whatever
else has none would be told twice."""


@pytest.fixture
async def fdw(pair: Pair) -> Pair:
    """Two cells in which the reader has a password, on servers with postgres_fdw."""
    here, _ = pair
    if not await here.value(AVAILABLE):
        pytest.skip("this server has no postgres_fdw: DARKPEARL_TEST_BINARIES names one that has")
    for shop in pair:
        await shop.run(f"alter role darkpearl_reader password '{PASSWORD}'")
    return pair


def know_the_reader(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """The reader's password is where libpq looks, beside those of superusers."""
    passwords = tmp_path / "pgpass"
    others = Path(os.environ["PGPASSFILE"]).read_text()
    passwords.touch(0o600)
    passwords.write_text(f"*:*:*:darkpearl_reader:{PASSWORD}\n{others}")
    patch.setenv("PGPASSFILE", str(passwords))


@pytest.fixture
async def reader(
    places: Places,
    fdw: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shop]:
    """A login at home that may do what darkpearl_reader may."""
    here, _ = fdw
    know_the_reader(tmp_path, monkeypatch)
    await here.run(f"create role ada login password '{PASSWORD}' in role darkpearl_reader")
    async with await AsyncConnection.connect(
        make_conninfo(places[0].url, user="ada", password=PASSWORD),
        autocommit=True,
        row_factory=dict_row,
        options="-c search_path=darkpearl_cells",
    ) as connection:
        yield Shop(connection)
    await here.run("drop role ada")


async def ordered(shop: Shop, product: UUID, warehouse: UUID) -> UUID:
    """An order of a warehouse that is paid and sent."""
    await shop.receive(product, 5, warehouse)
    order = await shop.order((product, 1), warehouse=warehouse)
    await shop.settle(await shop.advance(), APPROVED)
    return order


async def test_without_the_extension_one_line_says_so(pair: Pair, run: Run) -> None:
    """A server that has no postgres_fdw is told what to install, and nothing is made."""
    here, _ = pair
    if await here.value(AVAILABLE):
        pytest.skip("this server has postgres_fdw")
    refused = await run("cells", "views")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "install PostgreSQL's contrib modules" in refused.errors
    assert await here.value("select to_regnamespace('darkpearl_cells')") is None


@pytest.mark.usefixtures("reader")
async def test_the_schema_is_called_as_it_is_asked_for(pair: Pair, run: Run) -> None:
    """Capitals and spaces too, and again; nobody else's views in it are dropped with ours."""
    here, _ = pair
    name = 'All "cells"'
    views = "select count(*) from pg_views where schemaname = %s"
    for _ in range(2):
        made = await run("cells", "views", "--schema", name)
        assert made.code == 0, made
    assert await here.value(views, name) > 20
    await here.run('create view "All ""cells""".mine as select 1')
    assert (await run("cells", "views", "--schema", name)).code == 0
    refused = await run("cells", "views", "--schema", name, "--drop")
    assert (refused.code, refused.errors.count("in use")) == (2, 1)
    assert (await run("cells", "views", "--schema", "darkpearl", "--drop")).code == 2
    assert await here.value(views, "darkpearl") > 20
    await here.run('drop view "All ""cells""".mine')
    assert (await run("cells", "views", "--schema", name, "--drop")).code == 0
    assert await here.value("select to_regnamespace(quote_ident(%s))", name) is None


async def test_what_stands_in_each_cell_is_one_table(
    pair: Pair, run: Run, reader: Shop, until: Until
) -> None:
    """A reader's login sees the orders of both, each once, and by `cell` those of one."""
    here, there = pair
    _, warehouse, product = await new_warehouse(pair, until)
    orders = [
        await ordered(here, product, warehouse),
        await ordered(there, product, here.rotterdam),
    ]
    for _ in range(2):
        made = await run("cells", "views")
        assert made.code == 0, made
    query = "select cell, id, status::text from orders where id = any(%s) order by cell"
    assert await reader.rows(query, orders) == [
        {"cell": 1, "id": orders[0], "status": "fulfilled"},
        {"cell": 2, "id": orders[1], "status": "fulfilled"},
    ]
    for view in ("order_summaries", "payments", "saga_overview", "saga_events", "stock_movements"):
        assert await reader.values(f"select distinct cell from {view} order by 1") == [1, 2]
    assert await reader.values("select id from orders where cell = 2") == [orders[1]]
    plan = await reader.values(
        f"explain (verbose) select count(*) from orders where id = '{orders[1]}'"
        " and created_at > '2020-01-01Z' and cell in (2, 3)"
    )
    (sent,) = [each for each in plan if "Remote SQL" in each]
    assert all(each in sent for each in ("(id = '", "(created_at > '", "(warehouse_id = ANY ("))


MAY_READ = (
    "select c.relname::text from pg_class as c where relnamespace = 'darkpearl'::regnamespace and"
    " relkind in ('r', 'p', 'v') and not relispartition and"
    " has_any_column_privilege('darkpearl_reader', c.oid, 'select')"
)


async def test_nothing_is_told_twice(pair: Pair) -> None:
    """What is united has a warehouse to tell copies by, or is a cell's own and is never copied."""
    here, _ = pair
    has_none = (
        f"{MAY_READ} and not exists (select from pg_attribute where attrelid = c.oid and"
        " attname in ('warehouse_id', 'warehouse'))"
    )
    assert set(await here.values(has_none)) - LEFT_OUT == OF_THE_CELL


async def test_every_view_can_be_read_and_none_is_forgotten(
    pair: Pair, run: Run, reader: Shop
) -> None:
    """All that a reader may read is united or named as left out, and each can be read."""
    here, _ = pair
    assert (await run("cells", "views")).code == 0
    united = await here.values(
        "select relname::text from pg_class where relnamespace = 'darkpearl_cells'::regnamespace"
    )
    assert set(await here.values(MAY_READ)) - set(united) == LEFT_OUT
    for view in united:
        for only in ("", " where cell = 2"):
            found = await reader.connection.execute(f"select * from {view}{only} limit 100")
            await found.fetchall()
            assert next(each.name for each in found.description or ()) == "cell"


async def test_what_a_warehouse_left_behind_is_not_counted_twice(
    pair: Pair, places: Places, run: Run, reader: Shop, until: Until
) -> None:
    """Orders, events and stock of a warehouse that moved are the new cell's, but for the feed."""
    here, there = pair
    code, warehouse, product = await new_warehouse(pair, until)
    order = await ordered(here, product, warehouse)
    assert (await run("cells", "views")).code == 0
    queries = {
        "select cell from orders where id = %s": order,
        "select cell from saga_overview where id = %s": order,
        "select distinct cell from saga_events where saga_id = %s": order,
        "select cell from inventory where warehouse_id = %s": warehouse,
        "select cell from exported_inventory where warehouse = %s": code,
    }
    for cell in (1, 2):
        for query, key in queries.items():
            assert await reader.values(query, key) == [cell]
        if cell == 1:
            async for _ in cells.move(places[0].url, code, "north"):
                pass
    assert await there.order_status(order) == "fulfilled"
    await there.take_back(order)
    told = "select cell, topic::text from feed where order_id = %s order by created_at, id"
    assert [(each["cell"], each["topic"]) for each in await reader.rows(told, order)] == [
        *((1, "order.placed"), (1, "order.paid"), (1, "order.fulfilled")),
        (2, "order.returned"),
    ]


async def test_a_cell_that_is_away_is_left_out_by_its_number(
    pair: Pair, run: Run, reader: Shop
) -> None:
    """A query over all fails and says which server; one for the other cells doesn't ask it."""
    here, _ = pair
    assert (await run("cells", "views")).code == 0
    await here.run("alter server darkpearl_cell_2 options (set port '1')")
    with pytest.raises(psycopg.OperationalError, match="darkpearl_cell_2"):
        await reader.rows("select id from orders")
    await reader.rows("select id from orders where cell in (1, 3)")
    await reader.rows("select cell, count(*) from saga_overview where cell <> 2 group by cell")
    assert (await run("cells", "views")).code == 0
    await reader.rows("select id from orders")


async def test_nobody_else_reads_through_them(pair: Pair, run: Run, reader: Shop) -> None:
    """Other roles may not look; a reader sees no password, and writes nothing in another cell."""
    here, _ = pair
    assert (await run("cells", "views")).code == 0
    for role in ("darkpearl_app", "service_role", "authenticated", "anon", "darkpearl_listener"):
        async with here.acting_as(role):
            with here.refused("42501"):
                await here.run("select id from darkpearl_cells.orders")
            with here.refused("42501"):
                await here.run("select id from darkpearl_cell_2.orders")
    options = "select umoptions::text from pg_user_mappings where srvname = 'darkpearl_cell_2'"
    assert await reader.values(options) == [None]
    async with here.acting_as("darkpearl_reader"):
        for statement in ("update", "delete from"):
            changes = " set notes = 'x'" if statement == "update" else ""
            with here.refused("42501"):
                await here.run(f"{statement} darkpearl_cell_2.orders{changes}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await reader.run("create server x foreign data wrapper postgres_fdw")


@pytest.mark.usefixtures("reader")
async def test_it_is_made_anew_around_what_others_built(pair: Pair, run: Run) -> None:
    """A view of one's own on a view stays through another release, and keeps --drop from it."""
    here, there = pair
    assert (await run("cells", "views")).code == 0
    await here.run("create schema reports")
    await here.run(
        "create view reports.mine as select cell, count(*) from darkpearl_cells.orders group by 1"
    )
    # Another release, as it is when cells go first: a table has a column more there, then here.
    for shop in (there, here):
        await shop.run("alter table orders add colour text")
        assert (await run("cells", "views")).code == 0
        seen = await here.values(
            "select attname::text from pg_attribute where attname = 'colour' and"
            " attrelid = 'darkpearl_cells.orders'::regclass"
        )
        assert seen == (["colour"] if shop is here else [])
    await here.run("select * from reports.mine")
    for shop in pair:  # no view is in a migration's way
        await shop.run("alter table orders drop colour")
    for arguments in ((), ("--drop",)):
        refused = await run("cells", "views", *arguments)
        assert (refused.code, refused.errors.count("\n")) == (2, 1)
        assert "view reports.mine depends on" in refused.errors
    await here.run("drop schema reports cascade")
    assert (await run("cells", "views")).code == 0
    for _ in range(2):
        assert (await run("cells", "views", "--drop")).code == 0
    left = "select count(*) from pg_foreign_server where srvname ^@ 'darkpearl'"
    assert await here.value(left) == 0
    assert (
        await here.values("select nspname from pg_namespace where nspname ^@ 'darkpearl_cell'")
        == []
    )


@pytest.mark.usefixtures("fdw")
async def test_what_keeps_it_from_being_made_is_one_line(
    pair: Pair, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that can't log in, a login that is no superuser: told, and nothing is left."""
    here, there = pair
    refused = await run("cells", "views")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "darkpearl_reader can't read cell home" in refused.errors
    know_the_reader(tmp_path, monkeypatch)
    await there.run("alter role darkpearl_reader nologin")
    refused = await run("cells", "views")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "darkpearl_reader can't read cell north" in refused.errors
    await there.run("alter role darkpearl_reader login")
    assert await here.value("select to_regnamespace('darkpearl_cells')") is None
