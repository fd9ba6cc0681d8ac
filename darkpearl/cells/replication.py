"""Slots and subscriptions: what a cell reads another by, for its catalogue or a warehouse."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo

from darkpearl import database, schema
from darkpearl.cells.queries import QUIETLY, one, value

COPY_SECONDS = 600.0
"""How long the first copy may take; it goes on in the server all the same."""
FAILURES = 10
"""A copy is given up after so many errors, since the server tries again for ever."""
FAILING_SECONDS = 20.0
"""How long no table has come to its end, when a copy is given up."""
SLOT_SECONDS = 60
"""How long a slot waits for the transactions that are under way when it is made."""
CATCH_UP_SECONDS = 60.0
"""How long changes may take to arrive; those of a warehouse, while nobody can write."""
DROP_SECONDS = 20.0
LOOK_SECONDS = 0.05
LOST = "lost"
"""What a slot is whose server has thrown away what it was to keep."""
SLOT = (
    "select active_pid, wal_status from pg_replication_slots where slot_name = %s"
    " and database = current_database()"
)
_HERE = "(select oid from pg_database where datname = current_database())"
SUBSCRIPTION = (
    "select subconninfo, subenabled, (select count(*) from pg_subscription_rel where srsubid = oid)"  # noqa: S608
    f" from pg_subscription where subname = %s and subdbid = {_HERE}"
)
_ANOTHERS = (
    "select database is distinct from current_database() from pg_replication_slots"
    " where slot_name = %s"
)
_SLOTS_LEFT = (
    "select count(*) < current_setting('max_replication_slots')::int from pg_replication_slots"
)
_TO_COPY = (
    "select count(*) filter (where srsubstate <> 'r') + (count(*) = 0)::int from"
    " pg_subscription_rel join pg_subscription as s on s.oid = srsubid where subname = %s"
)
_ERRORS = (
    "select apply_error_count + sync_error_count from pg_stat_subscription_stats where subid ="  # noqa: S608
    f" (select oid from pg_subscription where subname = %s and subdbid = {_HERE})"
)


class CellError(schema.SchemaError):
    """What was asked for can't be; one line that says why."""


async def subscribe(
    there: AsyncConnection[Any], name: str, slot: str, url: str, clearing: Sequence[str] = ()
) -> bool:
    """Subscribe to a publication of the same name, after statements that make room for its copy.

    The slot is there already, so that both may be on one server. One that was there goes on, by the
    address that is given now.

    Returns:
        Whether one that was there has another address now.
    """
    if (had := await one(there, SUBSCRIPTION, name)) is None:
        async with there.transaction():
            await there.execute("set local session_replication_role = replica")
            for each in clearing:
                await there.execute(each.encode())
            await create_subscription(there, name, slot, url)
        return False
    address, is_enabled, _ = had
    async with there.transaction():
        if is_changed := bool(address != make_conninfo(url)):
            await _quietly(there)
            change = sql.SQL("alter subscription {} connection {}")
            await there.execute(change.format(sql.Identifier(name), make_conninfo(url)))
        if not is_enabled:
            await there.execute(f"alter subscription {name} enable".encode())
    return is_changed


async def create_subscription(
    there: AsyncConnection[Any], name: str, slot: str, url: str, *more: LiteralString
) -> None:
    """A subscription, in the caller's transaction, to a slot that is there."""
    knows = there.info.server_version >= database.RUN_AS_OWNER
    as_owner: list[LiteralString] = ["run_as_owner = true"] if knows else []
    options = ", ".join(["create_slot = false", "slot_name = {}", *as_owner, *more])
    await _quietly(there)
    await there.execute(
        sql.SQL(
            "create subscription {} connection {} publication {} with (" + options + ")"
        ).format(
            sql.Identifier(name), make_conninfo(url), sql.Identifier(name), sql.Identifier(slot)
        )
    )


async def _quietly(there: AsyncConnection[Any]) -> None:
    """Have log and statistics of the server say nothing of a password, to the transaction's end."""
    for each in QUIETLY:
        await there.execute(each)


async def make_slot(connection: AsyncConnection[Any], slot: str) -> None:
    """A slot, if it isn't there; it waits for the transactions that are under way.

    Raises:
        CellError: there is none left, or one of those goes on and on.
    """
    if await one(connection, SLOT, slot) is not None:
        return
    await refuse_slot(connection, slot)
    await connection.execute(f"set statement_timeout = '{SLOT_SECONDS}s'")
    with _refusing_to_wait():
        await connection.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot]
        )
    await connection.execute("reset statement_timeout")


@asynccontextmanager
async def exported_slot(url: str, slot: str) -> AsyncIterator[str]:
    """A new slot; for a block the name of a snapshot of all that is committed and not in it.

    Args:
        url: of the database, for a session of its own, which has the snapshot.
        slot: what it is called.

    Raises:
        CellError: as make_slot().
    """
    made = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')")
    async with schema.connect(make_conninfo(url, replication="database")) as replicating:
        await replicating.execute(f"set lock_timeout = '{SLOT_SECONDS}s'")
        with _refusing_to_wait():
            found = await replicating.execute(made.format(sql.Identifier(slot)))
            _, _, snapshot, _ = await found.fetchone() or ("", "", "", "")
        yield snapshot


async def refuse_slot(connection: AsyncConnection[Any], slot: str) -> None:
    """Refuse a slot that can't be made, before anybody loses what it has.

    Raises:
        CellError: there is none left, or another database of the server has it.
    """
    is_anothers = await value(connection, _ANOTHERS, slot)
    if is_anothers:
        raise CellError(
            f"another database of that server has a slot {slot}: two homes of cells can't be on one"
            " server"
        )
    if is_anothers is None and not await value(connection, _SLOTS_LEFT):
        raise CellError("there is no replication slot left: raise max_replication_slots")


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Say in our words why a slot isn't made in time.

    Raises:
        CellError: somebody goes on and on.
    """
    try:
        yield
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        raise CellError(
            "a transaction that has begun before doesn't end: pg_stat_activity and"
            " pg_prepared_xacts have it; then run it again"
        ) from None


async def wait_for_copy(there: AsyncConnection[Any], name: str) -> None:
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


async def until(is_so: Callable[[], Awaitable[bool]], complaint: str) -> None:
    """Wait until something is so.

    Raises:
        CellError: it isn't in time; with the complaint.
    """
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while not await is_so():
        if time.monotonic() > deadline:
            raise CellError(complaint)
        await asyncio.sleep(LOOK_SECONDS)


async def unsubscribe(there: AsyncConnection[Any], name: str) -> None:
    """Drop a subscription, if there is one; without a word to where the slot is, which stays."""
    if await one(there, SUBSCRIPTION, name) is None:
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
