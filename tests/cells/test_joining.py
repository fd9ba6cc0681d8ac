"""darkpearl cells add and remove: what is asked of a server, and what a kill leaves."""

import itertools
from typing import Any, LiteralString

import psycopg
import pytest
from joined import added, value
from places import Place
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo
from terminal import Run
from yoyo.migrations import default_migration_table

from darkpearl import cells, schema
from darkpearl.cells import replication
from darkpearl.cells.joining import without_secrets

Places = tuple[Place, Place]


class Killed(BaseException):
    """The end of the process, at some statement."""


async def test_a_kill_at_any_statement_is_mended_by_another_run(
    places: Places, north: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a run is cut off, the last one leaves one cell, one slot, one subscription."""
    home, _ = places
    await added(home, north, "always")  # the number of statements, and a schema for the next
    await cells.remove(home.url, "always")
    await north.anew()
    await schema.migrate(north.url)
    execute, left = AsyncConnection.execute, itertools.count()

    async def killed(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        done = await execute(self, query, *arguments, **options)
        if next(left) == 0:
            raise Killed
        return done

    async def nothing_new(_url: str) -> list[str]:
        return []

    monkeypatch.setattr(schema, "migrate", nothing_new)
    runs = 0
    for at in itertools.count(1):
        left = itertools.count(-at)
        monkeypatch.setattr(AsyncConnection, "execute", killed)
        try:
            await added(home, north, "often")
            break
        except Killed:
            runs += 1
        finally:
            monkeypatch.setattr(AsyncConnection, "execute", execute)
    assert runs > 15
    query = "select count(*) from darkpearl.cells where name = 'often'"
    assert await value(home, query) == 1
    number = await value(home, "select number from darkpearl.cells where name = 'often'")
    assert await value(north, "select darkpearl.this_cell()") == number
    slots = "select array_agg(slot_name::text) from pg_replication_slots"
    assert await value(home, slots) == [f"darkpearl_cell_{number}"]
    assert await value(north, "select count(*) from pg_subscription") == 1
    count = "select count(*) from darkpearl.adjustment_reasons"
    assert await value(north, count) == await value(home, count) > 0
    await cells.remove(home.url, "often")


async def test_a_number_is_given_once(places: Places, north: Place, run: Run) -> None:
    """A removed cell leaves no slot that would keep WAL, and its number and name to nobody."""
    home, _ = places
    assert (await run("cells", "add", north.url, "--name", "brief")).code == 0
    number = await value(home, "select number from darkpearl.cells where name = 'brief'")
    warehouse = f"('B', 'B', {number})"
    await value(
        home, f"insert into darkpearl.warehouses (code, name, cell) values {warehouse} returning id"
    )
    refused = await run("cells", "remove", "brief", "--yes")
    assert refused.code == 2
    assert "has warehouses that take orders: B" in refused.errors
    await value(home, "update darkpearl.warehouses set is_active = false returning id")
    for _ in range(2):
        done = await run("cells", "remove", "brief", "--yes")
        assert done.said == f"cell {number} is removed; its number is not given again\n", done
    assert await value(home, "select count(*) from pg_replication_slots") == 0
    assert await value(north, "select count(*) from pg_subscription") == 0
    await north.anew()
    refused = await run("cells", "add", north.url, "--name", "brief")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "choose another name" in refused.errors
    assert (await run("cells", "add", north.url, "--name", "next")).code == 0
    assert await value(north, "select darkpearl.this_cell()") == number + 1
    assert (await run("cells", "remove", "next", "--gone", "--yes")).code == 0
    assert await value(home, "select count(*) from pg_replication_slots") == 0


async def test_a_login_that_may_not_replicate_is_told_and_another_goes_on(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the docs make it, a login replicates; one that can't is told, and a wrong password too."""
    home, _ = places
    secret = "p@ss 'wörd\\"
    as_replicator = make_conninfo(without_secrets(home.url), user="replicator", password=secret)
    words: LiteralString = "create role replicator login password {}"
    async with schema.connect(home.url) as connection:
        await connection.execute(sql.SQL(words).format(secret))
    add = ("cells", "add", north.url, "--name", "reads", "--home-url", as_replicator)
    try:
        refused = await run(*add)
        assert (refused.code, "permission denied" in refused.errors.splitlines()[-1]) == (1, True)
        assert (await run(*add[:-1], home.url)).code == 0
        async with schema.connect(home.url) as connection:
            await connection.execute("alter role replicator replication")
        for _ in range(2):
            done = await run(*add)
            assert done.code == 0, done
        assert await value(north, "select subconninfo like '%replicator%' from pg_subscription")
        with monkeypatch.context() as patch:
            patch.setattr(replication, "CATCH_UP_SECONDS", 1.0)
            refused = await run(*add[:-1], make_conninfo(as_replicator, password="another"))
            assert (refused.code, refused.errors.count("doesn't hear from home")) == (2, 1)
        assert (await run(*add)).code == 0
        async with schema.connect(home.url) as connection:
            url = without_secrets(as_replicator)
            await connection.execute("update darkpearl.cells set url = %s where number = 1", [url])
        states = (await run("cells", "status", "--json")).rows
        assert [each["trouble"] for each in states if "answer" in each["trouble"]] == []
    finally:
        await cells.remove(home.url, "reads")
        async with schema.connect(home.url) as connection:
            await connection.execute("drop role replicator")


async def test_a_server_that_is_not_fit_is_told(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wal_level for it, a database with data, home itself: refused, and nothing is begun."""
    home, _ = places
    before = await value(home, "select count(*) from darkpearl.cells")
    odd = Place(home.server, "odd")
    await odd.anew()
    await schema.migrate(odd.url)
    await value(odd, "insert into darkpearl.products (sku, name) values ('a', 'a') returning id")
    for url, said in ((odd.url, "has data already"), (home.url, "that is home itself")):
        refused = await run("cells", "add", url, "--name", "unfit")
        assert (refused.code, refused.said) == (2, "")
        assert said in refused.errors
    low = make_conninfo(odd.url, options="-c role=darkpearl_reader")
    assert "is no superuser" in (await run("cells", "add", low, "--name", "unfit")).errors
    empty = Place(home.server, "empty")
    await empty.anew()
    refused = await run("cells", "add", empty.url, "--name", "Un fit")
    assert (refused.code, refused.errors.count("name is lower case letters")) == (2, 1)
    books = f"{schema.BOOKS}.{default_migration_table}"
    async with schema.connect(home.url) as connection:
        later = f"insert into {books} (migration_hash, migration_id) values ('x', 'later')"
        await connection.execute(later.encode())
        refused = await run("cells", "add", empty.url, "--name", "unfit")
        assert (refused.code, refused.errors.count("home is of another release")) == (2, 1)
        await connection.execute(f"delete from {books} where migration_hash = 'x'".encode())
    await value(home, "insert into darkpearl.cells (number, name) values (255, 'x') returning 1")
    refused = await run("cells", "add", empty.url, "--name", "unfit")
    assert (refused.code, refused.errors.count("there are no more")) == (2, 1)
    async with schema.connect(home.url) as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute("delete from darkpearl.cells where number = 255")
    assert (await run("cells", "remove", "home", "--yes")).code == 2
    assert await value(home, "select count(*) from darkpearl.cells") == before
    await schema.migrate(north.url)
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", north.url)
    refused = await run("cells", "add", odd.url, "--name", "unfit")
    assert refused.errors == (
        "darkpearl: home's wal_level is replica: set it to logical, and restart\n"
    )


async def test_a_kill_within_the_migrate_is_none_the_worse(places: Places, north: Place) -> None:
    """Tables without functions, as a migrate leaves them that is cut off, are finished."""
    home, _ = places
    async with schema.connect(north.url) as connection:
        await connection.execute(f"create schema {schema.BOOKS}".encode())
    schema._apply_pending(north.url)
    await added(home, north, "half")
    await cells.remove(home.url, "half")


async def test_plans_have_the_numbers_of_home(places: Places, north: Place) -> None:
    """A home that has seen releases has more versions of a plan: a new cell has the same ones."""
    home, _ = places
    older = (
        "set session_replication_role = replica",
        "update darkpearl.saga_steps set plan_version = 2 where saga_type = 'transfer'",
        (
            "insert into darkpearl.saga_steps select (jsonb_populate_record(s, jsonb_build_object("
            "'plan_version', 1, 'step_name', 'old_' || s.step_name))).*"
            " from darkpearl.saga_steps as s where s.saga_type = 'transfer'"
        ),
        (
            "insert into darkpearl.step_settings select saga_type, 'old_' || step_name, 1, 2, 3, 4,"
            " now() from darkpearl.step_settings where saga_type = 'transfer'"
        ),
    )
    newer = (
        "set session_replication_role = replica",
        "delete from darkpearl.saga_steps where saga_type = 'transfer' and plan_version = 1",
        "update darkpearl.saga_steps set plan_version = 1 where saga_type = 'transfer'",
        "delete from darkpearl.step_settings where step_name ^@ 'old_'",
    )
    plans = (
        "select jsonb_agg(s order by saga_type, plan_version, position)"
        " from darkpearl.saga_steps as s"
    )
    settings = (
        "select array_agg(backoff_seconds::text || coalesce(paused_until::text, '') order by 1)"
        " from darkpearl.step_settings where step_name ^@ 'old_'"
    )
    async with schema.connect(home.url) as connection:
        for each in older:
            await connection.execute(each.encode())
        try:
            for _ in range(2):
                await added(home, north, "same")
                assert await value(north, plans) == await value(home, plans)
                assert await value(north, settings) == ["3", "3"]
            assert not (await schema.status(north.url)).pending
        finally:
            for each in newer:
                await connection.execute(each.encode())
            await cells.remove(home.url, "same")


async def test_both_may_be_on_one_server(places: Places) -> None:
    """Two databases of a server are two cells, though a slot waits for all that is under way."""
    home, _ = places
    beside = Place(home.server, "beside")
    await beside.anew()
    try:
        await added(home, beside, "beside")
        assert (
            await value(beside, "select count(*) from darkpearl.cells where name = 'beside'") == 1
        )
    finally:
        await cells.remove(home.url, "beside")


async def test_a_transaction_that_goes_on_is_told(
    places: Places, north: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot waits for who has begun to write at home, for a minute: then it is said what it is."""
    home, _ = places
    monkeypatch.setattr(replication, "SLOT_SECONDS", 1)
    async with await AsyncConnection.connect(home.url) as long:
        await long.execute("select pg_current_xact_id()")
        refused = await run("cells", "add", north.url, "--name", "late")
        assert (refused.code, refused.errors.splitlines()[-1].count("doesn't end")) == (2, 1)
    assert (await run("cells", "add", north.url, "--name", "late")).code == 0
    await cells.remove(home.url, "late")


async def test_what_the_server_refuses_is_one_line(places: Places, run: Run) -> None:
    """A name that is none ends with the law, and a server that isn't there with its words."""
    home, _ = places
    done = await run("cells", "add", "host=127.0.0.1 port=1", "--name", "away")
    assert (done.code, done.errors.count("\n")) == (1, 1)
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect("host=127.0.0.1 port=1")
    assert await value(home, "select count(*) from darkpearl.cells where name = 'away'") == 0
