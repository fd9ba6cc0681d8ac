"""How a database becomes a cell.

Every step looks first whether it was done, so a run that was killed is simply run again. The row
of the cell comes first, since it gives the number.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl import database, schema
from darkpearl.cells.plans import take_plans
from darkpearl.cells.queries import one, value

CATALOGUE = "darkpearl_catalogue"
SHARED = ("cells", "products", "warehouses", "adjustment_reasons")
COPY_SECONDS = 600.0
"""How long the first copy of the catalogue may take; it goes on in the server all the same."""
FAILURES = 10
"""A copy is given up after so many errors, since the server tries again for ever."""
FAILING_SECONDS = 20.0
"""How long no table has come to its end, when a copy is given up."""
SLOT_SECONDS = 60
"""How long a slot waits for the transactions that are under way at home when it is made."""
DROP_SECONDS = 20.0
LOOK_SECONDS = 0.05
_LOCK = "select pg_advisory_lock(hashtextextended('darkpearl cells', 0))"
_SECRETS = ("password", "passfile", "sslpassword")
_SERVER = (
    "select current_setting('wal_level'), (select rolsuper from pg_roles where"
    " rolname = current_user), to_regproc('darkpearl.this_cell')"
)
SLOTS_LEFT = (
    "select current_setting('max_replication_slots')::int > (select count(*) from"
    " pg_replication_slots)"
)
_HOLDS = (
    "select exists (select from darkpearl.warehouses) or exists (select from darkpearl.products)"
    " or exists (select from darkpearl.orders)"
)
_HAS_OTHERS = "select exists (select from darkpearl.cells where number <> 1 and removed_at is null)"
KNOWN = "select number, url, removed_at from darkpearl.cells where name = %s"
_GIVE = (
    "insert into darkpearl.cells (number, name, url)"
    " select max(number) + 1, %s, %s from darkpearl.cells returning number"
)
_FOUND_AT = "update darkpearl.cells set url = %s where number = 1 and url is null"
SLOT = "select active_pid from pg_replication_slots where slot_name = %s"
SUBSCRIBED = (
    "select from pg_subscription where subname = %s and subdbid ="
    " (select oid from pg_database where datname = current_database())"
)
_TO_COPY = (
    "select count(*) filter (where srsubstate <> 'r') + (count(*) = 0)::int from"
    " pg_subscription_rel join pg_subscription as s on s.oid = srsubid where subname = %s"
)
_ERRORS = (
    "select apply_error_count + sync_error_count from pg_stat_subscription_stats where subname = %s"
)


class CellError(schema.SchemaError):
    """What was asked for can't be; one line that says why."""


async def add(home: str, url: str, name: str, *, home_url: str = "") -> AsyncIterator[str]:
    """Make an empty database a cell of home; says what it does, in a line each, as it goes.

    Args:
        home: home, as a superuser.
        url: the database, as a superuser. Kept without its password, for the others.
        name: what the cell is called.
        home_url: where the cell's server reaches home, with a login that may replicate; if not
            given, `home`. Only superusers of the cell can read it there.

    Raises:
        CellError: a server isn't fit for it, or the database isn't.
        schema.SchemaError: one of them can't be reached, or fails.
    """
    async with schema.connect(home) as at_home, schema.connect(url) as there:
        await _check_home(at_home, home)
        await _check_cell(there, at_home)
        await lock(at_home)
        number = await _number(at_home, there, name, url)
        yield f"{name} is cell {number}"
        applied = await schema.migrate(url)
        yield f"migrations there: {', '.join(applied) or 'nothing new'}"
        async with there.transaction():
            await there.execute("set local role darkpearl_owner")
            await there.execute("select darkpearl.become_cell(%s)", [number])
        yield f"its ids end in {number:02x}, its order numbers begin with {number}"
        if await take_plans(at_home, there):
            await schema.migrate(url)
            yield "its plans have the numbers that they have at home"
        await at_home.execute(_FOUND_AT, [without_secrets(home_url or home)])
        await _publish(at_home, number)
        yield f"home publishes {', '.join(SHARED)}"
        await _subscribe(there, number, home_url or home)
        await wait_for_copy(there)
        yield "the catalogue is there"


async def refuse_reset(url: str) -> None:
    """Refuse to throw a database away that others depend on, or that would forget which one it is.

    Raises:
        CellError: it is a cell beside home, or home that has some.
        schema.SchemaError: it can't be reached.
    """
    async with schema.connect(url) as connection:
        if await value(connection, "select to_regproc('darkpearl.this_cell')") is None:
            return
        number = await value(connection, "select darkpearl.this_cell()")
        if number != 1 or await value(connection, _HAS_OTHERS):
            raise CellError(
                f"this is cell {number} of several: remove the others first, or drop the database"
            )


def slot_of(number: int) -> str:
    """The slot at home of a cell."""
    return f"darkpearl_cell_{number}"


def without_secrets(url: str) -> str:
    """The address, for everybody to see."""
    parts = conninfo_to_dict(url)
    return make_conninfo("", **{name: parts[name] for name in parts if name not in _SECRETS})


def asked_at(home: str, number: int, url: str) -> str:
    """Where a cell is asked, given what `cells` says.

    Home's address there is for the others, by the login that reads the catalogue; it is asked at
    the one that is in use.
    """
    return home if number == 1 else url


async def lock(at_home: AsyncConnection[Any]) -> None:
    """One change of the cells at a time, as long as the session lasts.

    Raises:
        CellError: another one goes on.
    """
    await at_home.execute(f"set lock_timeout = '{schema.LOCK_SECONDS}s'")
    try:
        await at_home.execute(_LOCK)
    except psycopg.errors.LockNotAvailable:
        raise CellError("another command changes cells: wait for its end") from None


async def refuse_away_from_home(connection: AsyncConnection[Any]) -> None:
    """Refuse what is done at home alone.

    Raises:
        CellError: the database is another cell, or has no schema of this release.
    """
    if await value(connection, "select to_regproc('darkpearl.become_cell')") is None:
        raise CellError("home has no schema of this release: darkpearl db migrate first")
    if (number := await value(connection, "select darkpearl.this_cell()")) != 1:
        raise CellError(f"this is cell {number}: cells are added and removed at home, cell 1")


async def _check_home(connection: AsyncConnection[Any], home: str) -> None:
    wal_level, is_superuser, _ = await one(connection, _SERVER)
    if not is_superuser:
        raise CellError("home's login is no superuser: it makes a slot and a publication")
    if wal_level != "logical":
        raise CellError(f"home's wal_level is {wal_level}: set it to logical, and restart")
    await refuse_away_from_home(connection)
    if pending := (await schema.status(home)).pending:
        raise CellError(f"home wants a migrate first: {', '.join(pending)}")


async def _check_cell(there: AsyncConnection[Any], at_home: AsyncConnection[Any]) -> None:
    _, is_superuser, has_schema = await one(there, _SERVER)
    if not is_superuser:
        raise CellError("the cell's login is no superuser: a subscription writes past row security")
    is_there = await identity(there)
    if is_there == await identity(at_home):
        raise CellError("that is home itself")
    if has_schema is None:
        if await value(there, "select to_regnamespace('darkpearl')"):
            raise CellError("the database is of another release: take an empty one")
    elif await value(there, "select darkpearl.this_cell()") == 1 and await value(there, _HOLDS):
        raise CellError("the database has data already: take an empty one")


async def identity(connection: AsyncConnection[Any]) -> Any:
    """What tells a database from every other, by whatever address it is reached."""
    return await one(
        connection,
        "select system_identifier, (select oid from pg_database where datname = current_database())"
        " from pg_control_system()",
    )


async def _number(
    at_home: AsyncConnection[Any], there: AsyncConnection[Any], name: str, url: str
) -> int:
    """The number of the cell, which it has from a run before, or gets now.

    Raises:
        CellError: the name stands for another, or the database is a cell under another number.
    """
    address = without_secrets(url)
    is_numbered = await value(there, "select to_regproc('darkpearl.this_cell')")
    has = await value(there, "select darkpearl.this_cell()") if is_numbered else 1
    known = await one(at_home, KNOWN, name)
    if known is not None and (known[1] != address or known[2] is not None):
        raise CellError(
            f"there is or was a cell {name}, at {known[1] or 'home'}: choose another name"
        )
    if has not in {1, known and known[0]}:
        raise CellError(f"the database is cell {has} already, and none that home calls {name}")
    return int(known[0] if known else await value(at_home, _GIVE, name, address))


async def _publish(at_home: AsyncConnection[Any], number: int) -> None:
    """The publication, once for all cells, and the slot of this one."""
    if await value(at_home, "select oid from pg_publication where pubname = %s", CATALOGUE) is None:
        tables = ", ".join(f"darkpearl.{each}" for each in SHARED)
        await at_home.execute(f"create publication {CATALOGUE} for table {tables}".encode())
    await make_slot(at_home, slot_of(number))


async def _subscribe(there: AsyncConnection[Any], number: int, home_url: str) -> None:
    """The subscription; what the schema begins with comes from home as all the rest does."""
    clearing = [f"delete from darkpearl.{table}" for table in SHARED]  # noqa: S608
    await subscribe(there, CATALOGUE, slot_of(number), home_url, clearing)


async def subscribe(
    there: AsyncConnection[Any], name: str, slot: str, url: str, clearing: Sequence[str]
) -> None:
    """Subscribe to a publication of the same name, after statements that make room for its copy.

    The slot is there already, so that both may be on one server. One that was there goes on, by the
    address that is given now.
    """
    if await one(there, SUBSCRIBED, name) is not None:
        change = sql.SQL("alter subscription {} connection {}")
        await there.execute(change.format(sql.Identifier(name), sql.Literal(make_conninfo(url))))
        await there.execute(f"alter subscription {name} enable".encode())
        return
    knows = there.info.server_version >= database.RUN_AS_OWNER
    options: LiteralString = ", run_as_owner = true" if knows else ""
    statement = sql.SQL(
        "create subscription {} connection {} publication {}"
        " with (create_slot = false, slot_name = {}" + options + ")"
    ).format(
        sql.Identifier(name),
        sql.Literal(make_conninfo(url)),
        sql.Identifier(name),
        sql.Identifier(slot),
    )
    async with there.transaction():
        await there.execute("set local session_replication_role = replica")
        for each in clearing:
            await there.execute(each.encode())
        await there.execute(statement)


async def make_slot(connection: AsyncConnection[Any], slot: str) -> None:
    """A slot, if it isn't there; it waits for the transactions that are under way.

    Raises:
        CellError: there is none left, or one of those goes on and on.
    """
    if await one(connection, SLOT, slot) is not None:
        return
    if not await value(connection, SLOTS_LEFT):
        raise CellError("there is no replication slot left: raise max_replication_slots")
    await connection.execute(f"set statement_timeout = '{SLOT_SECONDS}s'")
    try:
        await connection.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot]
        )
    except psycopg.errors.QueryCanceled:
        raise CellError(
            "a transaction that has begun before doesn't end: pg_stat_activity and"
            " pg_prepared_xacts have it; then run it again"
        ) from None
    await connection.execute("reset statement_timeout")


async def wait_for_copy(there: AsyncConnection[Any], name: str = CATALOGUE) -> None:
    """Wait until all tables of a subscription are copied.

    Raises:
        CellError: they aren't in time, though it may go on in the server, or it keeps failing.
    """
    began = since = time.monotonic()
    left, had = None, 0
    while to_copy := await value(there, _TO_COPY, name):
        now, errors = time.monotonic(), await value(there, _ERRORS, name)
        if to_copy != left:
            left, had, since = to_copy, errors, now
        elif errors - had >= FAILURES and now - since > FAILING_SECONDS:
            raise CellError(
                "the copy fails: the log of the cell's server says why, as that the login of the"
                " address may not read, or no slot is left; then run it again"
            )
        if now - began > COPY_SECONDS:
            raise CellError(
                "not all is copied yet: the log of the cell's server says why; then run it again"
            )
        await asyncio.sleep(LOOK_SECONDS)


async def unsubscribe(there: AsyncConnection[Any], name: str = CATALOGUE) -> None:
    """Drop a subscription, if there is one; without a word to where the slot is, which stays."""
    if await one(there, SUBSCRIBED, name) is None:
        return
    async with there.transaction():
        for change in ("disable", "set (slot_name = none)"):
            await there.execute(f"alter subscription {name} {change}".encode())
        await there.execute(f"drop subscription {name}".encode())


async def drop_slot(at_home: AsyncConnection[Any], slot: str) -> None:
    """The slot, and whoever still reads it: it keeps WAL for ever otherwise."""
    deadline = time.monotonic() + DROP_SECONDS
    while (found := await one(at_home, SLOT, slot)) is not None:
        try:
            if found[0]:
                await at_home.execute("select pg_terminate_backend(%s)", [found[0]])
            await at_home.execute("select pg_drop_replication_slot(%s)", [slot])
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(LOOK_SECONDS)
