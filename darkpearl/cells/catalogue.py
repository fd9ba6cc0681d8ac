"""The catalogue of all cells: home publishes it, and each cell has it from a slot of its own."""

from typing import Any

from psycopg import AsyncConnection

from darkpearl.cells.queries import one, value
from darkpearl.cells.replication import (
    LOST,
    SLOT,
    SUBSCRIPTION,
    create_subscription,
    drop_slot,
    exported_slot,
    refuse_slot,
    subscribe,
    unsubscribe,
    until,
    wait_for_copy,
)

CATALOGUE = "darkpearl_catalogue"
SHARED = ("cells", "products", "warehouses", "adjustment_reasons")
TRIES = 5
"""How often the two are compared before it begins anew: home's may change meanwhile."""
_PLAINLY = "set datestyle = 'ISO'; set timezone = 'UTC'"
_HEARS = (
    "select active_pid, confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots"
    " where slot_name = %s"
)
_COLUMNS = (
    "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute"
    " where attrelid = %s::regclass and attnum > 0 and not attisdropped"
)
_DIGEST = (
    "select count(*), sum(('x' || left(md5(t::text), 16))::bit(64)::bigint)"
    " from (select {} from {}) as t"
)


def slot_of(number: int) -> str:
    """The slot at home of a cell."""
    return f"darkpearl_cell_{number}"


async def publish(at_home: AsyncConnection[Any]) -> None:
    """The publication, once for all cells."""
    if await value(at_home, "select oid from pg_publication where pubname = %s", CATALOGUE) is None:
        tables = ", ".join(f"darkpearl.{each}" for each in SHARED)
        await at_home.execute(f"create publication {CATALOGUE} for table {tables}".encode())


async def replicate(
    at_home: AsyncConnection[Any], there: AsyncConnection[Any], home: str, slot: str, url: str
) -> None:
    """Have a cell get the catalogue from its slot, and be sure that what it has is home's.

    It begins anew where the slot is gone or lost, as after a failover of home, and where the two
    differ all the same, as in a cell that was restored: such a one would go on, and lack in silence
    what was between.

    Args:
        at_home: home, as a superuser.
        there: the cell, as a superuser.
        home: home's address, of this process.
        slot: of the cell.
        url: home's address, of the cell's server.

    Raises:
        CellError: there can be no slot, or the cell doesn't hear from home.
    """
    for connection in (at_home, there):
        await connection.execute(_PLAINLY)
    kept, has = await one(at_home, SLOT, slot), await one(there, SUBSCRIPTION, CATALOGUE)
    if kept and kept[1] != LOST and has and has[2]:
        is_changed = await subscribe(there, CATALOGUE, slot, url)
        await wait_for_copy(there, CATALOGUE)
        await hears(at_home, slot, but=kept[0] if is_changed else None)
        for _ in range(TRIES):
            if await _is_same(at_home, there):
                return
            await hears(at_home, slot)
    await refuse_slot(at_home, slot)
    await unsubscribe(there, CATALOGUE)
    await drop_slot(at_home, slot)
    await _copy(at_home, there, home, slot, url)
    await hears(at_home, slot)


async def _copy(
    at_home: AsyncConnection[Any], there: AsyncConnection[Any], home: str, slot: str, url: str
) -> None:
    """The catalogue of one moment, and a subscription to what comes after it, in one transaction.

    So a cell that is at work is at no time without a catalogue.
    """
    async with exported_slot(home, slot) as snapshot, at_home.transaction():
        await at_home.execute("set transaction isolation level repeatable read")
        await at_home.execute(f"set transaction snapshot '{snapshot}'".encode())
        async with there.transaction():
            await there.execute("set local session_replication_role = replica")
            for each in SHARED:
                await _copy_table(at_home, there, f"darkpearl.{each}")
            await create_subscription(there, CATALOGUE, slot, url, "copy_data = false")


async def _copy_table(
    at_home: AsyncConnection[Any], there: AsyncConnection[Any], table: str
) -> None:
    """The columns that home has; the cell may have others already."""
    columns = await value(at_home, _COLUMNS, table)
    await there.execute(f"delete from {table}".encode())  # noqa: S608
    async with (
        at_home.cursor() as out,
        there.cursor() as into,
        out.copy(f"copy {table} ({columns}) to stdout".encode()) as sent,
        into.copy(f"copy {table} ({columns}) from stdin".encode()) as taken,
    ):
        async for block in sent:
            await taken.write(block)


async def hears(
    at_home: AsyncConnection[Any], slot: str, which: str = "the cell", *, but: int | None = None
) -> None:
    """Wait until a cell has all that is committed at home now.

    Args:
        at_home: home.
        slot: of the cell.
        which: what the cell is called, where it doesn't hear.
        but: the process at home that has read for it by an address which is another now.

    Raises:
        CellError: it isn't there in time.
    """
    reached = await value(at_home, "select pg_current_wal_lsn()::text")

    async def has_heard() -> bool:
        reader, has_all = await one(at_home, _HEARS, reached, slot) or (None, False)
        return has_all and reader not in {None, but}

    await until(
        has_heard,
        f"{which} doesn't hear from home: the log of its server says why, as that home's address or"
        " its password is another, that no worker is free (max_logical_replication_workers), or"
        " that a row there is in the way of one of home's; then run it again",
    )


async def _is_same(at_home: AsyncConnection[Any], there: AsyncConnection[Any]) -> bool:
    """Whether the cell has what home has now, in the columns that home has."""
    for table in (f"darkpearl.{each}" for each in SHARED):
        digest = _DIGEST.format(await value(at_home, _COLUMNS, table), table)
        if await one(at_home, digest) != await one(there, digest):
            return False
    return True
