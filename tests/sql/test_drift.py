"""Migrations, routines, and what a migrate does to them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.rows import dict_row
from releases import CHECK_FILE, Releases, insert
from shop import APPROVED, DECLINED, Shop

from darkpearl import schema
from darkpearl.cli.where import find_pg_dump
from darkpearl.embedded import wheel

Connect = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
async def empty(server_url: str) -> AsyncIterator[str]:
    """An empty database."""
    async with schema.scratch_database(server_url) as url:
        yield url


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of sql/, with one table and one function."""
    for part in ("schema", "routines", "migrations"):
        (tmp_path / part).mkdir()
    table = "create schema darkpearl; create table products (id int); -- 100% $$ ';"
    (tmp_path / "schema/10.sql").write_text(table)
    (tmp_path / "migrations/0001.baseline.sql").write_text(table)
    (tmp_path / "routines/10.sql").write_text(function("one"))
    monkeypatch.setattr(schema, "folder", lambda: tmp_path)
    return tmp_path


def function(name: str, arguments: str = "") -> str:
    """SQL that makes a function."""
    return (
        f"create or replace function {name}({arguments}) returns int"
        " language plpgsql as $$ begin return 7 % 4; end $$;\n"
    )


async def functions(url: str) -> set[str]:
    """Signatures of the functions in schema darkpearl."""
    async with schema.connect(url) as connection:
        found = await connection.execute(
            "select oid::regprocedure::text from pg_proc"
            " where pronamespace = to_regnamespace('darkpearl')"
        )
        return {name.removeprefix("darkpearl.") for (name,) in await found.fetchall()}


async def test_migrations_add_up_to_the_schema(server_url: str) -> None:
    """What sql/schema says is what sql/migrations build, down to the last grant."""
    assert await schema.drift(server_url, find_pg_dump()) == ""


async def test_migrating_again_changes_nothing(database_url: str) -> None:
    """Routines can be applied over themselves, and nothing is pending afterwards."""
    before = await asyncio.to_thread(schema._dump, database_url, find_pg_dump())
    assert await schema.migrate(database_url) == []
    assert await asyncio.to_thread(schema._dump, database_url, find_pg_dump()) == before
    assert (await schema.status(database_url)).pending == []


async def test_a_migrate_with_nothing_to_do_touches_nothing(
    database_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever locks applications hold on tables and functions, it returns and waits for none."""
    await schema.migrate(database_url)
    monkeypatch.setattr(schema, "LOCK_SECONDS", 0.1)
    holder = await connect()
    async with holder.transaction():
        tables = await (
            await holder.execute(
                "select string_agg(oid::regclass::text, ', ') from pg_class where relkind in"
                " ('r', 'p') and relnamespace in ('darkpearl'::regnamespace,"
                " 'darkpearl_migrations'::regnamespace) and relname !~ '^_?yoyo'"
            )
        ).fetchone()
        await holder.execute(f"lock table {tables[0]} in row exclusive mode")
        assert await schema.migrate(database_url) == []
        assert await written_by(holder) == []
        await holder.execute("lock table darkpearl.orders in access exclusive mode")
        assert await schema.migrate(database_url) == []


async def written_by(connection: Any) -> list[Any]:
    """Functions of ours that were written after the transaction of a connection had begun."""
    found = await connection.execute(
        "select proname from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and age(xmin) < age(pg_current_xact_id()::xid)"
    )
    return [name for (name,) in await found.fetchall()]


@pytest.mark.parametrize(
    "change",
    [
        "create or replace function ring_bell() returns void language sql as 'select'",
        "drop trigger saga_events_refuse_change on saga_events",
        'drop policy "staff edit" on products',
        "grant delete on orders to darkpearl_app",
        "grant update (total_amount) on orders to darkpearl_app",
        "alter table payments no force row level security",
        "create or replace view stuck_sagas as select * from stuck_sagas_before",
        "select define_plan('order_fulfilment', step('nothing', p_on_deadline => 'go_on'))",
    ],
)
async def test_what_was_changed_by_hand_is_put_right(
    database_url: str, shop: Shop, change: str
) -> None:
    """A migrate that has nothing new still finds what differs from the way the last one left it."""
    await schema.migrate(database_url)
    before = await asyncio.to_thread(schema._dump, database_url, find_pg_dump())
    plan = "select jsonb_agg(to_jsonb(s) - 'plan_version' order by position) from saga_steps as s"
    plan += " where saga_type = 'order_fulfilment' and plan_version = newest_plan(saga_type)"
    steps = await shop.value(plan)
    if "stuck_sagas" in change:
        view = await shop.value("select pg_get_viewdef('stuck_sagas'::regclass)")
        change = f"create or replace view stuck_sagas as {view.rstrip(';')} limit 0"
    await shop.run(change)
    assert await schema.migrate(database_url) == []
    assert await shop.value(plan) == steps
    after = await asyncio.to_thread(schema._dump, database_url, find_pg_dump())
    assert after == before


async def test_a_file_that_differs_is_applied(empty: str, files: Path) -> None:
    """Another text under the same name is enough, and so is another name."""
    await schema.migrate(empty)
    (files / "routines/10.sql").write_text(function("two"))
    await schema.migrate(empty)
    assert await functions(empty) == {"two()"}
    (files / "routines/20.sql").write_text(function("three"))
    await schema.migrate(empty)
    assert await functions(empty) == {"three()", "two()"}


async def test_a_migrate_that_failed_is_done_by_the_next(empty: str, files: Path) -> None:
    """What one left undone the next one doesn't take for done, though its files are as before."""
    await schema.migrate(empty)
    one = (files / "routines/10.sql").read_text()
    (files / "routines/10.sql").write_text(function("two") + "select missing;")
    with pytest.raises(schema.SchemaError, match="missing"):
        await schema.migrate(empty)
    (files / "routines/10.sql").write_text(function("two"))
    await schema.migrate(empty)
    assert await functions(empty) == {"two()"}
    (files / "routines/10.sql").write_text(one)
    await schema.migrate(empty)
    assert await functions(empty) == {"one()"}


async def test_nothing_is_created_in_public(database_url: str) -> None:
    """Everything of ours is in schema darkpearl, yoyo's books in one beside it."""
    async with schema.connect(database_url) as connection:
        found = await connection.execute(
            """
            select distinct nspname from (
                select relnamespace from pg_class union all select pronamespace from pg_proc
                union all select typnamespace from pg_type
            ) as things (namespace) join pg_namespace n on n.oid = namespace
            where nspname !~ '^pg_' and nspname <> 'information_schema'
            """
        )
        assert {name for (name,) in await found.fetchall()} == {"darkpearl", "darkpearl_migrations"}


async def test_two_migrates_at_once_queue_up(empty: str, files: Path) -> None:
    """One applies, the other finds nothing left to do."""
    assert files
    done = await asyncio.gather(schema.migrate(empty), schema.migrate(empty))
    assert sorted(done) == [[], ["0001.baseline"]]


async def test_who_has_no_name_here_may_migrate(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container a user may be a number alone: that is what the books have of it."""

    def nobody(_: int) -> None:
        raise KeyError

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert await schema.migrate(empty)
    monkeypatch.delenv("LOGNAME")


async def test_a_migration_that_fails_leaves_nothing(empty: str, files: Path) -> None:
    """A file is applied and marked whole or not at all, so it can be corrected and run again."""
    await schema.migrate(empty)
    second = files / "migrations/0002.more.sql"
    second.write_text("-- depends: 0001.baseline\ncreate table more (id int);\nselect missing;")
    with pytest.raises(schema.SchemaError, match=r"sql/migrations/0002\.more\.sql:3: column"):
        await schema.migrate(empty)
    assert (await schema.status(empty)).pending == ["0002.more"]
    second.write_text("-- depends: 0001.baseline\ncreate table more (id int);")
    assert await schema.migrate(empty) == ["0002.more"]


async def test_a_killed_run_does_not_block_the_next(empty: str, files: Path) -> None:
    """The lock row that yoyo leaves behind when it is killed is cleared."""
    await schema.migrate(empty)
    async with schema.connect(empty) as connection:
        await connection.execute("insert into darkpearl_migrations.yoyo_lock values (1, now(), 1)")
    (files / "migrations/0002.more.sql").write_text("create table more (id int);")
    assert await schema.migrate(empty) == ["0002.more"]


async def test_a_function_that_left_the_files_leaves_the_database(empty: str, files: Path) -> None:
    """So does the old version of one whose arguments changed; grants on all don't save it."""
    routines = files / "routines/10.sql"
    routines.write_text(function("one") + function("two") + function("three"))
    (files / "routines/90.sql").write_text(
        "grant execute on all functions in schema darkpearl to public"
    )
    await schema.migrate(empty)
    routines.write_text(function("one") + function("two", "p_more int"))
    await schema.migrate(empty)
    assert await functions(empty) == {"one()", "two(integer)"}


async def test_a_function_still_in_use_is_not_dropped(empty: str, files: Path) -> None:
    """The migrate fails as a whole and says who uses it."""
    (files / "routines/80.sql").write_text("create or replace view v as select one();")
    await schema.migrate(empty)
    (files / "routines/10.sql").write_text(function("two"))
    (files / "routines/80.sql").write_text("")
    with pytest.raises(schema.SchemaError, match=r"one\(\) is in no file any more, but view v"):
        await schema.migrate(empty)
    assert await functions(empty) == {"one()"}


async def test_drift_shows_what_a_migration_forgot(empty: str, files: Path) -> None:
    """A table in sql/schema without its migration is a line with a plus."""
    (files / "schema/20.sql").write_text("create table forgotten (id int);")
    assert "+CREATE TABLE darkpearl.forgotten (" in await schema.drift(empty, find_pg_dump())


async def test_drift_shows_plans_that_the_files_do_not_have(
    shop: Shop, database_url: str, releases: Releases
) -> None:
    """Plans of another release, or of none, are lines with a minus; old versions are history."""
    await releases.migrate(releases.make(insert))
    await shop.run("select define_plan('parcel', step('pack', p_on_deadline => 'go_on'))")
    releases.use(releases.make())
    assert await only_here(database_url) == [*["check_goods"] * 4, "pack"]
    await releases.migrate(releases.make())
    assert await only_here(database_url) == ["pack"]
    assert await shop.value("select newest_plan('order_fulfilment')") == 3


async def only_here(url: str) -> list[str]:
    """The steps whose lines drift shows with a minus, where the plans are all it finds."""
    lines = (await schema.drift(url, find_pg_dump())).splitlines()
    assert lines[:2] == ["--- plans in the database", "+++ sql/routines"]
    steps = [json.loads(each[1:]) for each in lines[2:] if each.startswith("-")]
    there = [json.loads(each[1:])["step_name"] for each in lines[2:] if each.startswith("+")]
    return sorted(each["step_name"] for each in steps if each["step_name"] not in there)


@pytest.mark.parametrize("at", ["under way", "stuck"])
@pytest.mark.parametrize("without", ["no file", "a function of that name"])
async def test_a_function_that_sagas_need_is_not_removed(
    shop: Shop, database_url: str, releases: Releases, at: str, without: str
) -> None:
    """The migrate fails as a whole and says who needs it: stuck sagas too, until they have ended.

    A function of the same name with other arguments doesn't stand in for it.
    """
    await releases.migrate(releases.make(insert))
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    requests = await shop.advance()
    if at == "stuck":
        for order in orders:
            await shop.cancel(order)
        await shop.settle(await shop.settle(requests, APPROVED), DECLINED)

    release = releases.make()
    if without != "no file":
        (release / CHECK_FILE).write_text(
            "set local role darkpearl_owner;\n"
            + function("check_goods", "p_x int")
            + function("forget_check", "p_x int")
        )
    before = await asyncio.to_thread(schema._dump, database_url, find_pg_dump())
    needed = (
        r"check_goods\(uuid\[\],uuid\[\]\) is in no file any more, but 3 sagas of order_fulfilment"
        r" that have not ended follow version 2 of its plan"
    )
    with pytest.raises(schema.SchemaError, match=needed):
        await releases.migrate(release)
    assert await asyncio.to_thread(schema._dump, database_url, find_pg_dump()) == before

    if at == "stuck":
        for order in orders:
            await shop.run("select retry_saga(%s, 'mended')", order)
        requests = await shop.advance()
    await shop.settle(requests, APPROVED)
    await releases.migrate(release)
    assert "check_goods(uuid[],uuid[])" not in await functions(database_url)


async def test_sagas_that_begin_meanwhile_are_counted(
    shop: Shop, releases: Releases, connect: Connect, until: Until
) -> None:
    """An order that is being placed while a migrate runs keeps the functions of its plan."""
    await releases.migrate(releases.make(insert))
    product = await shop.product(on_hand=1)
    customer = Shop(await connect(row_factory=dict_row))
    customer.lisbon = shop.lisbon
    async with customer.connection.transaction():
        order = await customer.order((product, 1))
        migrating = asyncio.create_task(releases.migrate(releases.make()))
        await until(
            lambda: shop.value(
                "select exists (select from pg_stat_activity where wait_event_type = 'Lock'"
                " and application_name = 'darkpearl schema')"
            )
        )
    with pytest.raises(schema.SchemaError, match="1 sagas of order_fulfilment"):
        await migrating
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_a_database_of_a_later_release_is_left_alone(empty: str, files: Path) -> None:
    """Migrations that this release doesn't know are listed, and nothing is done to the database."""
    later = files / "migrations/0002.later.sql"
    later.write_text("-- depends: 0001.baseline\ncreate table later (id int);")
    await schema.migrate(empty)
    later.unlink()
    (files / "migrations/0003.other.sql").write_text("create table other (id int);")
    (files / "routines/10.sql").write_text(function("two"))
    before = await asyncio.to_thread(schema._dump, empty, find_pg_dump())
    with pytest.raises(schema.SchemaError, match=r"another release.*0002\.later"):
        await schema.migrate(empty)
    assert await asyncio.to_thread(schema._dump, empty, find_pg_dump()) == before
    status = await schema.status(empty)
    assert status.applied == ["0001.baseline", "0002.later"]
    assert (status.unknown, status.pending) == (["0002.later"], ["0003.other"])


async def test_a_busy_table_is_an_error_to_try_again(
    empty: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migrate doesn't queue behind a long transaction with everybody else behind it."""
    assert files
    monkeypatch.setattr(schema, "LOCK_SECONDS", 0.1)
    await schema.migrate(empty)
    async with schema.connect(empty) as connection, connection.transaction():
        await connection.execute("lock table darkpearl.products")
        with pytest.raises(schema.SchemaError, match="busy, try again"):
            await schema.reset(empty)


WAITS = (
    "select exists (select from pg_locks as l inner join pg_class as c on c.oid = l.relation"
    " where c.relname = 'listeners' and not l.granted)"
)


async def test_a_migrate_is_nobodys_deadlock(
    connect: Connect, database_url: str, until: Until, shop: Shop
) -> None:
    """Who has one table and wants another gets it: a migrate takes all of them at once or none."""
    one = await connect()
    async with one.transaction():
        await one.execute("lock table listeners in row exclusive mode")
        migrating = asyncio.create_task(schema.migrate(database_url))  # of a copy: does it all

        async def it_waits() -> bool:
            return bool(await shop.value(WAITS))

        await until(it_waits)
        await one.execute("lock table orders in row exclusive mode")
        assert not migrating.done()
    await migrating


async def test_a_migrate_gives_up_on_a_table_that_is_held(
    connect: Connect, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that never ends keeps it for half a minute, and then it says so."""
    monkeypatch.setattr("darkpearl.taking.TAKE_SECONDS", 0.3)
    one = await connect()
    async with one.transaction():
        await one.execute("select from orders limit 1")
        with pytest.raises(schema.SchemaError, match="busy, try again"):
            await schema.migrate(database_url)
    await schema.migrate(database_url)


async def test_an_unreachable_database_is_one_line() -> None:
    """The driver's paragraphs don't reach the user."""
    with pytest.raises(schema.SchemaError, match=r"^[^\n]+refused$"):
        await schema.status("postgresql://nobody@127.0.0.1:1/none")


def test_pg_dump_is_the_wheels_own() -> None:
    """The machine's may be older than the server."""
    assert find_pg_dump().parent == wheel.binaries()
