"""darkpearl cells add for a cell that there is: what a failover, a restore and an admin leave."""

import asyncio

import pytest
from joined import added, row, value
from places import Place
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from terminal import Run

from darkpearl import cells, schema
from darkpearl.cells import replication

Places = tuple[Place, Place]


async def forget_products(home: Place) -> None:
    """None is left, for the tests that come after."""
    async with schema.connect(home.url) as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute("delete from darkpearl.products")


async def test_the_catalogue_begins_anew_where_it_was_lost(
    places: Places, north: Place, run: Run
) -> None:
    """A slot that is gone, rows that differ: added again, a cell has what home has."""
    home, _ = places
    await added(home, north, "anew")
    number = await value(home, "select number from darkpearl.cells where name = 'anew'")
    slot = f"darkpearl_cell_{number}"
    names = "select array_agg(sku order by sku) from darkpearl.products"
    made = "insert into darkpearl.products (sku, name) values ('{0}', '{0}') returning id"
    await value(home, made.format("first"))
    await added(home, north, "anew")
    assert await value(north, names) == await value(home, names) == ["first"]
    async with schema.connect(home.url) as connection:
        await replication.drop_slot(connection, slot)  # as a failover of home does
    await value(home, made.format("second"))
    await added(home, north, "anew")
    assert await value(north, names) == await value(home, names) == ["first", "second"]
    for change in (  # as a restore of the cell does, or somebody who knew better
        "delete from darkpearl.products where sku = 'first'",
        "update darkpearl.products set unit_price = 9, version = 9",
        made.format("third"),
    ):
        async with schema.connect(north.url) as there:
            await there.execute("set session_replication_role = replica")
            await there.execute(change.encode())
        await added(home, north, "anew")
        prices = "select array_agg((sku, unit_price, version)::text order by sku) from"
        query = f"{prices} darkpearl.products"
        assert await value(north, query) == await value(home, query)
    assert [each["trouble"] for each in (await run("cells", "status", "--json")).rows] == ["", ""]
    await cells.remove(home.url, "anew", is_gone=True)
    await forget_products(home)


async def test_a_cell_that_begins_anew_is_at_no_time_without_a_catalogue(
    places: Places, north: Place
) -> None:
    """While its copy waits for somebody at home, what it had stays."""
    home, _ = places
    await added(home, north, "always")
    made = "insert into darkpearl.products (sku, name) values ('kept', 'kept') returning id"
    await value(home, made)
    await added(home, north, "always")
    number = await value(home, "select number from darkpearl.cells where name = 'always'")
    async with schema.connect(home.url) as connection:
        await replication.drop_slot(connection, f"darkpearl_cell_{number}")
    async with await AsyncConnection.connect(home.url) as long:
        await long.execute("select pg_current_xact_id()")
        again = asyncio.create_task(added(home, north, "always"))
        waits = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            " and backend_type = 'walsender'"
        )
        async with asyncio.timeout(30):
            while not await value(home, waits):
                assert not again.done(), again
        assert await value(north, "select count(*) from darkpearl.products") == 1
        await long.rollback()
    await again
    assert await value(north, "select count(*) from darkpearl.products") == 1
    await cells.remove(home.url, "always")
    await forget_products(home)


async def test_a_cell_goes_to_another_address(places: Places, north: Place, run: Run) -> None:
    """Added again by its name, where it is now; another database under that name is refused."""
    home, _ = places
    await added(home, north, "goes")
    elsewhere = make_conninfo(north.url, host="localhost")
    done = await run("cells", "add", elsewhere, "--name", "goes")
    assert done.code == 0, done
    assert await value(
        home, "select url like '%localhost%' from darkpearl.cells where name = 'goes'"
    )
    empty = Place(home.server, "empty")
    await empty.anew()
    refused = await run("cells", "add", empty.url, "--name", "goes")
    assert (refused.code, refused.errors.count("choose another name")) == (2, 1)
    await cells.remove(home.url, "goes", url=north.url)


async def test_the_address_of_another_cell_is_refused(
    places: Places, north: Place, run: Run
) -> None:
    """Whoever removes a cell by the address of another takes nothing from that one."""
    home, _ = places
    beside = Place(home.server, "beside")
    await beside.anew()
    await added(home, north, "right")
    await added(home, beside, "wrong")
    try:
        refused = await run("cells", "remove", "right", "--url", beside.url, "--yes")
        assert (refused.code, refused.errors.count("is another: it is cell")) == (1, 1)
        states = (await run("cells", "status", "--json")).rows
        assert [each["trouble"] for each in states] == ["", "", ""]
    finally:
        await cells.remove(home.url, "right")
        await cells.remove(home.url, "wrong")


async def test_two_cells_on_a_server_have_each_their_own_state(places: Places, run: Run) -> None:
    """A subscription that is disabled, or fails, is told of its own cell alone."""
    home, _ = places
    both = [Place(home.server, "one"), Place(home.server, "two")]
    for each in both:
        await each.anew()
        await added(home, each, each.name)
    try:
        for each in both:
            async with schema.connect(each.url) as there:
                await there.execute("alter subscription darkpearl_catalogue disable")
            states = (await run("cells", "status", "--json")).rows
            told = [row["name"] for row in states if "is disabled" in row["trouble"]]
            assert told == [each.name]
            async with schema.connect(each.url) as there:
                await there.execute("alter subscription darkpearl_catalogue enable")
    finally:
        for each in both:
            await cells.remove(home.url, each.name)


async def test_two_homes_on_a_server_leave_each_other_alone(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of home beside it takes neither its slots nor its cells."""
    home, _ = places
    await added(home, north, "only")
    number, url = await row(home, "select number, url from darkpearl.cells where name = 'only'")
    copy = Place(home.server, "copy")
    await copy.anew()
    await schema.migrate(copy.url)
    async with schema.connect(copy.url) as connection:
        await connection.execute(
            "insert into darkpearl.cells (number, name, url) values (%s, 'only', %s)", [number, url]
        )
    with monkeypatch.context() as patch:
        patch.setenv("DARKPEARL_DATABASE_URL", copy.url)
        refused = await run("cells", "add", north.url, "--name", "only")
        assert (refused.code, refused.errors.count("two homes of cells")) == (2, 1)
        assert (await run("cells", "remove", "only", "--gone", "--yes")).code == 0
    assert [each["trouble"] for each in (await run("cells", "status", "--json")).rows] == ["", ""]
    await cells.remove(home.url, "only")


async def test_no_log_has_the_password_of_home(places: Places, north: Place, run: Run) -> None:
    """Neither where a server logs all statements, nor where it logs one that fails."""
    home, _ = places
    secret = "known to home alone"
    async with schema.connect(home.url) as connection:
        await connection.execute("create role replicator login replication password 'another'")
    async with schema.connect(north.url) as connection:
        await connection.execute("alter database north set log_statement = 'all'")
        await connection.execute("alter database north set log_min_duration_statement = 0")
    log = north.server.home / "postgresql.log"
    as_replicator = make_conninfo(home.url, user="replicator", password=secret)
    add = ("cells", "add", north.url, "--name", "quiet", "--home-url", as_replicator)
    try:
        assert (await run(*add)).code == 1
        async with schema.connect(home.url) as connection:
            await connection.execute(f"alter role replicator password '{secret}'".encode())
        assert (await run(*add)).code == 0
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "darkpearl.this_cell()" in text
        assert secret not in text
    finally:
        await cells.remove(home.url, "quiet")
        async with schema.connect(home.url) as connection:
            await connection.execute("drop role replicator")
        async with schema.connect(north.url) as connection:
            await connection.execute("alter database north reset all")


async def test_status_is_asked_at_home(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another cell it is one line that says so."""
    home, _ = places
    await added(home, north, "asked")
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", north.url)
    refused = await run("cells", "status")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "give the address of home" in refused.errors
    await cells.remove(home.url, "asked")


async def test_a_restored_cell_is_told_that_its_catalogue_is_of_then(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that what home sends it is meant to be; home is told of the cells that it has."""
    home, _ = places
    await added(home, north, "restored")
    checks = ("--only", "cells", "--only", "subscriptions", "--json")
    (_, *at_home) = (await run("restore-check", *checks)).rows
    assert [(each["state"], each["says"]) for each in at_home] == [
        ("ok", "none"), ("warn", "it is home of restored"),
    ]  # fmt: skip
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", north.url)
    (_, *there) = (await run("restore-check", *checks)).rows
    number = await value(north, "select darkpearl.this_cell()")
    assert [(each["state"], each["says"]) for each in there] == [
        ("ok", "none"),
        ("warn", f"this is cell {number}: of home's catalogue it has what it had then"),
    ]
    await cells.remove(home.url, "restored")
