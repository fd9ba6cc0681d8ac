"""The rows of a warehouse on its way: how they are copied, kept up to date and counted.

moving.py says what for. All that belongs to a warehouse goes by a publication that has its rows
alone, of the tables that the catalogue names; what belongs to no warehouse and keeps a request from
being done twice is copied beside.
"""

import asyncio
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor

from darkpearl.cells.catalogue import hears, slot_of
from darkpearl.cells.queries import one, rows, value
from darkpearl.cells.replication import (
    CellError,
    drop_slot,
    make_slot,
    subscribe,
    until,
    wait_for_copy,
)

LOCK_SECONDS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.0, 2.0, 2.0, 4.0)
"""How long the tables' locks are tried for, each time longer; between them others get on."""
AHEAD = 1_000_000
"""How many numbers more than are needed the other cell leaves out, so that it need not be stopped
again while nobody can write."""
PREFIX = "darkpearl_move_"
_TABLES = "select name::text from darkpearl.warehouse_tables()"
_WITHOUT_KEY = f"{_TABLES} where not is_keyed"
_GOES_TO = (
    "select coalesce(obj_description(oid, 'pg_publication'), '') from pg_publication"
    " where pubname = %s"
)
_MOVES = "select count(*) from pg_publication where pubname ^@ %s and pubname <> %s"
_CONFIRMED = (
    "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
)
_SEQUENCES = "select name::text, reached from darkpearl.warehouse_sequences()"
_HOLD_SEQUENCE = "alter sequence {} no cycle"
_SET_SEQUENCE = "select setval('{0}', greatest({1}, coalesce(pg_sequence_last_value('{0}'), 1)))"
_SPEND_SHIPMENTS = (
    "insert into darkpearl.spent_ids (id) select id from darkpearl.shipments"
    " where warehouse_id = %s on conflict do nothing"
)
_NOT_SO_FAR = "delete from darkpearl.spent_up_to where id < %s"
_SPENT_UP_TO = (
    "insert into darkpearl.spent_up_to (id) select %s"
    " where not exists (select from darkpearl.spent_up_to)"
)
_GONE_BEFORE = (
    "select removed_before, kind from darkpearl.retention where removed_before is not null"
)
_IS_GONE = (
    "update darkpearl.retention set removed_before = greatest(removed_before, %s) where kind = %s"
)
_PAUSES = (
    "select distinct paused_until from darkpearl.step_settings"
    " where paused_until > darkpearl.clock()"
)
_HELD_NO_MORE = (
    "update darkpearl.sagas set ready_at = darkpearl.clock() where warehouse_id = %s"
    " and status <> 'waiting' and ready_at - %s between '0' and '1 s'"
)
_UNIQUE = "select name::text, key from darkpearl.warehouse_keys()"
_NO_ROWS = "create temporary table came on commit drop as select {1} from {0} with no data"
_CHOSEN = "copy (select {1} from {0} where warehouse_id = '{2}' and {1} is not null) to stdout"
_CLASHES = (
    "select string_agg(k, ', ') from (select t.{1}::text as k from came inner join {0} as t"
    " using ({1}) where t.warehouse_id <> '{2}' order by 1 limit 3) as few"
)
_HOLDERS = "select darkpearl.warehouse_holders()"
STATE = "select state::text, other_cell from darkpearl.moved_warehouses where warehouse_id = %s"


class Move(NamedTuple):
    """A warehouse on its way, and the sessions of superusers that it takes."""

    warehouse_id: UUID
    at_home: AsyncConnection[Any]
    source: AsyncConnection[Any]
    target: AsyncConnection[Any]
    source_cell: int
    target_cell: int
    source_url: str
    is_handed_over: bool

    @property
    def name(self) -> str:
        """What its publication, its slot and its subscription are called."""
        return PREFIX + self.warehouse_id.hex

    async def state(self) -> str:
        """How far it is: coming, arrived or here; gone where it was before, else empty."""
        found = await one(self.target, STATE, self.warehouse_id)
        return found[0] if found else ""

    @property
    def way(self) -> str:
        """What its publication says, so that it isn't begun to another cell as well."""
        return f"to cell {self.target_cell}"

    async def goes(self) -> str:
        """The way that its publication says; empty if it has none."""
        return await value(self.source, _GOES_TO, self.name) or ""


async def copy(this: Move) -> None:
    """Have the rows copied, and kept up to date, while the warehouse works on.

    What is left where it was before makes room for them, in the transaction that begins the copy.
    """
    key = this.warehouse_id
    if await one(this.source, _GOES_TO, this.name) is None:
        tables = [row[0] for row in await rows(this.source, _TABLES)]
        published = ", ".join(f"{table} where (warehouse_id = '{key}')" for table in tables)
        whole = [row[0] for row in await rows(this.source, _WITHOUT_KEY)]
        await patiently(
            this.source,
            *(f"alter table {table} replica identity full" for table in whole),
            # Whoever empties a table here empties no other warehouse's there.
            f"create publication {this.name} for table {published} with"
            " (publish_via_partition_root = true, publish = 'insert, update, delete')",
            f"comment on publication {this.name} is '{this.way}'",
        )
    if (was := await this.state()) == "gone":
        # Of the move away, if that was killed near its end: none of it may reach what comes now.
        await withdraw(this._replace(source=this.target))
    if was in {"", "gone"}:
        await as_owner(
            this.target,
            f"select darkpearl.close_warehouse('{key}', {this.source_cell}, 'coming')",
        )
    await make_slot(this.source, this.name)
    emptying = await clearing(this)
    await subscribe(this.target, this.name, this.name, this.source_url, emptying)
    await wait_for_copy(this.target, this.name)
    await _copy_beside(this)
    await _catch_up(this)


async def refuse_clashes(this: Move) -> None:
    """Refuse a copy that some row there would stop: what is one in a cell may be in both of them.

    Raises:
        CellError: ids or references that clients chose are.
    """
    for table, column in await rows(this.source, _UNIQUE):
        about = (table, column, this.warehouse_id)
        async with this.target.transaction(), this.target.cursor() as into:
            await into.execute(_NO_ROWS.format(*about).encode())
            await _stream(this, into, _CHOSEN.format(*about), "came")
            row = await (await into.execute(_CLASHES.format(*about).encode())).fetchone()
            if row and row[0]:
                raise CellError(
                    f"cell {this.target_cell} has the same {column} in {table} for another"
                    f" warehouse: {row[0]}"
                )


async def hand_over(this: Move) -> None:
    """Close the warehouse, wait until all of it is there, and make sure of that.

    Raises:
        CellError: it isn't there in time, or some rows are missing: nothing has changed hands.
    """
    key = this.warehouse_id
    await refuse_deaf(this)
    await _number_past(this, AHEAD)
    began = await value(this.source, "select now() - interval '10 minutes'")
    await as_owner(this.source, f"select darkpearl.close_warehouse('{key}', {this.target_cell})")
    await _catch_up(this)
    had, has = await asyncio.gather(_counts(this.source, key), _counts(this.target, key))
    if had != has:
        odd = ", ".join(table for table in had if had[table] != has.get(table))
        raise CellError(f"not all rows arrived, of {odd}: undo it, and look into the cells' logs")
    await _copy_beside(this, began)
    await _number_past(this)
    await _end_pauses(this)
    events = await value(
        this.source, "select coalesce(pg_sequence_last_value('darkpearl.saga_events_id_seq'), 0)"
    )
    gone = await rows(this.source, _GONE_BEFORE)
    async with this.target.transaction():
        await this.target.execute(_SPEND_SHIPMENTS, [key])
        for each in gone:  # what isn't there any more is missed by nobody there either
            await this.target.execute(_IS_GONE, each)
        await this.target.execute(
            "update darkpearl.moved_warehouses set state = 'arrived', told_after = %s,"
            " changed_at = darkpearl.clock() where warehouse_id = %s",
            [events, key],
        )


async def _end_pauses(this: Move) -> None:
    """Have nothing wait for the end of a pause that the other cell doesn't know of, nor can end."""
    async with this.target.transaction():
        await this.target.execute("set local session_replication_role = replica")
        for (end,) in await rows(this.source, _PAUSES):
            await this.target.execute(_HELD_NO_MORE, [this.warehouse_id, end])


async def _number_past(this: Move, ahead: int = 0) -> None:
    """Have rows there numbered on after those that have been numbered here.

    Altering a sequence, though nothing changes, keeps others from drawing from it meanwhile, and
    waits for whoever has: so it is done patiently, and where it has to be alone.
    """
    has = dict(await rows(this.target, _SEQUENCES))
    statements = [
        statement.format(name, reached + ahead)
        for name, reached in await rows(this.source, _SEQUENCES)
        if reached and reached > (has.get(name) or 0)
        for statement in (_HOLD_SEQUENCE, _SET_SEQUENCE)
    ]
    if statements:
        await patiently(this.target, *statements)


async def withdraw(this: Move) -> None:
    """Drop the slot and the publication; the last move's end gives tables back their identity."""
    await drop_slot(this.source, this.name)
    if await one(this.source, _GOES_TO, this.name) is None:
        return
    statements = [f"drop publication {this.name}"]
    if not await value(this.source, _MOVES, PREFIX, this.name):
        whole = [row[0] for row in await rows(this.source, _WITHOUT_KEY)]
        statements += [f"alter table {table} replica identity default" for table in whole]
    await patiently(this.source, *statements)


async def clearing(this: Move) -> list[str]:
    """What empties the place that the rows are copied to."""
    return [
        f"delete from {row[0]} where warehouse_id = '{this.warehouse_id}'"  # noqa: S608
        for row in await rows(this.target, _TABLES)
    ]


async def _copy_beside(this: Move, since: Any = None) -> None:
    """What belongs to no warehouse, and keeps a request from being done twice: to both cells."""
    await _copy_rows(
        this,
        "darkpearl.idempotency_keys",
        "caller, idempotency_key, request_hash, response, created_at",
        f"created_at >= '{since or '-infinity'}'",
    )
    if since is None:
        await _copy_rows(this, "darkpearl.spent_ids", "id", "not is_timed")
        if highest := await value(this.source, "select id from darkpearl.spent_up_to"):
            async with this.target.transaction():
                await this.target.execute(_NOT_SO_FAR, [highest])
                await this.target.execute(_SPENT_UP_TO, [highest])


async def _copy_rows(this: Move, table: str, columns: str, where: str) -> None:
    """Copy rows of a table, past those that are there."""
    async with this.target.transaction(), this.target.cursor() as into:
        await into.execute(f"create temporary table came (like {table}) on commit drop".encode())
        if columns == "id":
            await into.execute(
                "alter table came alter spent_in drop not null, alter is_timed drop not null"
            )
        query = f"copy (select {columns} from {table} where {where}) to stdout"  # noqa: S608
        await _stream(this, into, query, f"came ({columns})")
        await into.execute(
            f"insert into {table} ({columns}) select {columns} from came"  # noqa: S608
            " on conflict do nothing".encode()
        )


async def _stream(this: Move, into: AsyncCursor[Any], query: str, to: str) -> None:
    """What a query gives in one cell into a table in the other."""
    async with (
        this.source.cursor() as out,
        out.copy(query.encode()) as sent,
        into.copy(f"copy {to} from stdin".encode()) as taken,
    ):
        async for block in sent:
            await taken.write(block)


async def _counts(connection: AsyncConnection[Any], key: UUID) -> dict[str, int]:
    """How many rows of a warehouse each table has."""
    return {
        table: await value(
            connection,
            f"select count(*) from {table} where warehouse_id = %s",  # noqa: S608
            key,
        )
        for (table,) in await rows(connection, _TABLES)
    }


async def _catch_up(this: Move) -> None:
    """Wait until the other cell has all that is committed now."""
    reached = await value(this.source, "select pg_current_wal_lsn()::text")

    async def is_there() -> bool:
        return bool(await value(this.source, _CONFIRMED, reached, this.name))

    await until(is_there, "changes don't arrive: the log of the cell's server says why")


async def refuse_deaf(this: Move) -> None:
    """Refuse what only home's word can end, where one of the two doesn't hear from home.

    Raises:
        CellError: it has not taken in time what home has written.
    """
    for number in {this.source_cell, this.target_cell} - {1}:
        await hears(this.at_home, slot_of(number), f"cell {number}")


async def as_owner(connection: AsyncConnection[Any], statement: str) -> None:
    """Run a statement as who owns the schema; as patiently()."""
    await patiently(connection, "set local role darkpearl_owner", statement)


async def patiently(connection: AsyncConnection[Any], *statements: str) -> None:
    """Run statements in one transaction, which gives way to who holds the tables and tries again.

    Raises:
        CellError: somebody holds them all the time.
    """
    for seconds in LOCK_SECONDS:
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = {int(seconds * 1000)}".encode())
                for statement in statements:
                    await connection.execute(statement.encode())
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            await asyncio.sleep(seconds)
        else:
            return
    place = f"{connection.info.dbname} at {connection.info.host}:{connection.info.port}"
    held = await value(connection, _HOLDERS) or "pg_locks there says who"
    raise CellError(f"somebody holds the tables of {place}: {held}")
