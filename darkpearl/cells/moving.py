"""How a warehouse goes from one cell to another, with all that is its own.

Nothing stops while its rows are copied and kept up to date by logical replication. Then it is
closed where it was, for the seconds that the rest takes to arrive, and opened where it is. Sagas go
as they stand: what a gateway was asked for is asked again, under the same key, when its lease ends.

How far a move is stands in the databases alone, so one that was killed is run again:

    coming    closed where it goes to, where a subscription copies its rows
    arrived   closed in both; all rows are there, and nothing has changed hands yet
    here      home says that it is another cell's; what it has left is put to sleep
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from darkpearl import database, schema
from darkpearl.cells.joining import asked_at, lock, refuse_away_from_home
from darkpearl.cells.queries import one, rows, value
from darkpearl.cells.replication import (
    LOST,
    SLOT,
    SUBSCRIPTION,
    CellError,
    drop_slot,
    unsubscribe,
    until,
)
from darkpearl.cells.transit import (
    STATE,
    Move,
    as_owner,
    clearing,
    copy,
    hand_over,
    refuse_clashes,
    refuse_deaf,
    withdraw,
)

_WAREHOUSE = "select id, cell from darkpearl.warehouses where code = %s"
_CELL = (
    "select number, name, url from darkpearl.cells"
    " where (name = %s or number::text = %s) and removed_at is null"
)
_URL = "select url from darkpearl.cells where number = %s and removed_at is null"
_REMOVED = (
    "select number from darkpearl.cells"
    " where (name = %s or number::text = %s) and removed_at is not null"
)
_PLANS = (
    "select saga_type, plan_version, md5(string_agg(t::text, ' ' order by position))"
    " from darkpearl.saga_steps as t group by 1, 2"
)
_PLANS_IN_USE = (
    "select distinct saga_type, plan_version from darkpearl.sagas where warehouse_id = %s"
)
_LAYOUTS = "select name, is_owned, is_logged, columns from darkpearl.warehouse_layouts()"
_HANDED_OVER = (
    "update darkpearl.warehouses set cell = %s, version = version + 1,"
    " updated_at = darkpearl.clock() where id = %s and cell <> %s"
)
_BEHIND = "select string_agg(u, ', ') from darkpearl.endpoints_behind(%s) as u"
_SLEEP = (
    "update darkpearl.sagas set ready_at = 'infinity'"
    " where warehouse_id = %s and ready_at < 'infinity'"
)
_FORGET_TOKENS = "delete from darkpearl.payment_tokens where warehouse_id = %s"


async def move(home: str, code: str, to: str, *, source_url: str = "") -> AsyncIterator[str]:
    """Move a warehouse to another cell; says what it does, in a line each, as it goes.

    Args:
        home: home, as a superuser.
        code: the warehouse.
        to: the name of the cell, or its number.
        source_url: where the server of that cell reaches the one that has the warehouse, as a
            superuser or a login with REPLICATION and BYPASSRLS; if not given, the address that
            this process reaches it by. Only superusers read it there, until the move is over.

    Raises:
        CellError: it can't be moved there, or somebody holds its tables.
        schema.SchemaError: one of the cells can't be reached, or fails.
    """
    async with _open(home, code, to, source_url) as this:
        began = time.monotonic()
        if not this.is_handed_over:
            if await this.state() != "arrived":
                await _check(this)
                await _tidy_last(this)
                await _begin_anew(this)
                await copy(this)
                yield f"its rows are copied to cell {this.target_cell}, while it works on"
                began = time.monotonic()
                await hand_over(this)
                yield "it is closed, and all of it has arrived"
            await _switch(this)
        await _open_there(this)
        yield f"it is open in cell {this.target_cell}, after {time.monotonic() - began:.1f} s"
        await _tidy(this)
        yield f"what cell {this.source_cell} has of it is at rest"


async def undo(home: str, code: str, to: str) -> None:
    """Take back a move that hasn't come to its end: the warehouse stays where it was.

    Raises:
        CellError: it is another cell's already, or wasn't on its way there.
        schema.SchemaError: one of the cells can't be reached, or fails.
    """
    if await _undo_alone(home, code, to):
        return
    async with _open(home, code, to, "") as this:
        if this.is_handed_over:
            raise CellError(f"{code} is cell {this.target_cell}'s already")
        if await this.state() not in {"", "gone"}:
            await _take_back(this)
        elif await this.goes() == this.way:  # no further than that
            await withdraw(this)
        else:
            raise CellError(f"{code} isn't on its way to cell {this.target_cell}")


async def _take_back(this: Move) -> None:
    """Have it open where it was, and leave nothing of it where it was going."""
    key = this.warehouse_id
    # A copy that gets nothing more is none that a later run may go on with.
    await as_owner(
        this.target, f"select darkpearl.close_warehouse('{key}', {this.source_cell}, 'coming')"
    )
    await unsubscribe(this.target, this.name)
    await as_owner(this.source, f"select darkpearl.open_warehouse('{key}')")
    async with this.target.transaction():
        await this.target.execute("set local session_replication_role = replica")
        for each in await clearing(this):
            await this.target.execute(each.encode())
    await as_owner(this.target, f"select darkpearl.open_warehouse('{key}')")
    # Last, since it says where it was going: until then it goes nowhere else.
    await withdraw(this)


async def _begin_anew(this: Move) -> None:
    """Take a copy back whose slot was lost: what has changed since is kept nowhere."""
    kept = await one(this.source, SLOT, this.name)
    if kept and kept[1] != LOST:
        return
    if await one(this.target, SUBSCRIPTION, this.name) is not None:
        await _take_back(this)
    else:
        await drop_slot(this.source, this.name)


async def _undo_alone(home: str, code: str, to: str) -> bool:
    """Take back a move to a cell that was removed, where the warehouse is; whether it was such."""
    async with schema.connect(home) as at_home:
        await refuse_away_from_home(at_home)
        await lock(at_home)
        warehouse = await one(at_home, _WAREHOUSE, code)
        number = await value(at_home, _REMOVED, to, to)
        if warehouse is None or number is None or warehouse[1] == number:
            return False
        key, has = warehouse
        address = asked_at(home, has, await value(at_home, _URL, has))
        async with schema.connect(address) as source:
            await database.refuse_another(source, has)
            await as_owner(source, f"select darkpearl.open_warehouse('{key}')")
            await withdraw(
                Move(key, at_home, source, source, has, number, address, is_handed_over=False)
            )
    return True


@asynccontextmanager
async def _open(home: str, code: str, to: str, source_url: str) -> AsyncIterator[Move]:
    """Find the warehouse and its cells.

    Raises:
        CellError: there is none of them, what is at their addresses is another, or the warehouse
            is on its way from another.
    """
    async with AsyncExitStack() as stack:
        at_home = await stack.enter_async_context(schema.connect(home))
        await refuse_away_from_home(at_home)
        await lock(at_home)
        warehouse = await one(at_home, _WAREHOUSE, code)
        cell = await one(at_home, _CELL, to, to)
        if warehouse is None or cell is None:
            raise CellError(f"there is no {'cell ' + to if warehouse else 'warehouse ' + code}")
        warehouse_id, has = warehouse
        number, name, url = cell
        url = asked_at(home, number, url)
        target = await stack.enter_async_context(schema.connect(url))
        state, other = await one(target, STATE, warehouse_id) or ("", None)
        if has == number and state not in {"arrived", "here"}:
            raise CellError(f"{code} is cell {name}'s already")
        comes_from = int(other) if has == number and other else has
        if state in {"coming", "arrived"} and other != comes_from:
            raise CellError(f"{code} is on its way to cell {name} from cell {other}")
        address = asked_at(home, comes_from, await value(at_home, _URL, comes_from) or "")
        if not address:
            raise CellError(f"cell {comes_from}, which {code} comes from, was removed")
        source = await stack.enter_async_context(schema.connect(address))
        await database.refuse_another(source, comes_from)
        await database.refuse_another(target, number)
        for each in (at_home, source, target):
            await each.execute(f"set lock_timeout = '{schema.LOCK_SECONDS}s'".encode())
            # Each step is on its server's disk before another server goes on with the next.
            await each.execute("set synchronous_commit = on")
            # Tables are called the same in all of them, and times are written the same.
            await each.execute("set search_path = pg_catalog")
            await each.execute("set datestyle = 'ISO'")
        yield Move(
            warehouse_id,
            at_home,
            source,
            target,
            comes_from,
            number,
            source_url or _with_password(address, source),
            has == number,
        )


def _with_password(address: str, source: AsyncConnection[Any]) -> str:
    """The address for another server, which doesn't look where this process found its password."""
    password = source.info.password
    return make_conninfo(address, password=password) if password else address


async def _check(this: Move) -> None:
    """Refuse what can't go well, before anything is begun.

    Raises:
        CellError: a server, a release or a plan isn't fit for it, or a cell that it comes back to
            still has to tell what happened there.
    """
    await _check_servers(this)
    if await this.state() in {"", "gone"} and await this.goes() not in {"", this.way}:
        raise CellError(f"it is on its way {await this.goes()}: go on with that, or undo it")
    await _check_tables(this)
    plans = {tuple(row) for row in await rows(this.target, _PLANS)}
    used = {tuple(row) for row in await rows(this.source, _PLANS_IN_USE, this.warehouse_id)}
    for plan in await rows(this.source, _PLANS):
        if tuple(plan[:2]) in used and tuple(plan) not in plans:
            raise CellError(
                f"version {plan[1]} of the plan of {plan[0]} isn't the same in cell"
                f" {this.target_cell}: sagas of the warehouse go by it"
            )
    await refuse_clashes(this)
    behind = await value(this.target, _BEHIND, this.warehouse_id)
    if behind and await this.state() == "gone":
        raise CellError(
            f"cell {this.target_cell} has not sent all yet of when it had the warehouse, to"
            f" {behind}: wait for its webhooks, or switch them off"
        )
    await refuse_deaf(this)


async def _check_servers(this: Move) -> None:
    """Refuse servers that can't do it.

    Raises:
        CellError: as that.
    """
    if await value(this.source, "show wal_level") != "logical":
        raise CellError(
            f"wal_level of cell {this.source_cell} isn't logical: set it, and restart its server"
        )
    for which, number in ((this.source, this.source_cell), (this.target, this.target_cell)):
        if not await value(which, "select rolsuper from pg_roles where rolname = current_user"):
            raise CellError(f"the login in cell {number} is no superuser")
        status = await schema.status_on(which)
        if status.pending or status.unknown:
            raise CellError("the cells are of different releases: migrate them first")


async def _check_tables(this: Move) -> None:
    """Refuse tables of somebody's own that can't be copied, or closed.

    Raises:
        CellError: one isn't darkpearl_owner's, is unlogged, or isn't the same in both cells.
    """
    layouts = []
    for which, number in ((this.source, this.source_cell), (this.target, this.target_cell)):
        found = await rows(which, _LAYOUTS)
        for table, is_owned, is_logged, _ in found:
            if not is_owned:
                raise CellError(
                    f"darkpearl_owner doesn't own {table} in cell {number}, and can't close it"
                )
            if not is_logged:
                raise CellError(f"{table} is unlogged in cell {number}, and can't be copied")
        layouts.append({table: columns for table, _, _, columns in found})
    here, there = layouts
    if odd := sorted(table for table in here | there if here.get(table) != there.get(table)):
        raise CellError(
            f"cells {this.source_cell} and {this.target_cell} don't have the same"
            f" {', '.join(odd)}, whose rows go along: make them alike"
        )


async def _switch(this: Move) -> None:
    """Say at home whose it is now; past the guard that keeps everybody else from it."""
    await unsubscribe(this.target, this.name)
    async with this.at_home.transaction():
        await this.at_home.execute("set local session_replication_role = replica")
        await this.at_home.execute(
            _HANDED_OVER, [this.target_cell, this.warehouse_id, this.target_cell]
        )


async def _open_there(this: Move) -> None:
    """Open it, once both cells have heard whose it is."""
    for which in (this.source, this.target):

        async def knows(which: AsyncConnection[Any] = which) -> bool:
            cell = await value(
                which, "select cell from darkpearl.warehouses where id = %s", this.warehouse_id
            )
            return bool(cell == this.target_cell)

        await until(knows, "a cell doesn't hear from home: see darkpearl cells status")
    if await this.state() == "arrived":
        await as_owner(this.target, f"select darkpearl.open_warehouse('{this.warehouse_id}')")


async def _tidy_last(this: Move) -> None:
    """The end of the move that brought it here, should that have been killed before it.

    A cell that doesn't answer is let be.
    """
    state, other = await one(this.source, STATE, this.warehouse_id) or ("", None)
    if state != "here" or other == this.target_cell:
        return
    if other == 1:
        await _let_rest(this._replace(source=this.at_home))
    elif url := await value(this.at_home, _URL, other):
        async with AsyncExitStack() as stack:
            try:
                there = await stack.enter_async_context(schema.connect(url))
            except schema.SchemaError:
                return
            await _let_rest(this._replace(source=there))


async def _tidy(this: Move) -> None:
    """Let go of what the move needed, and put to sleep what is left where the warehouse was."""
    await unsubscribe(this.target, this.name)
    await _let_rest(this)


async def _let_rest(this: Move) -> None:
    await withdraw(this)
    async with this.source.transaction():
        await this.source.execute("set local session_replication_role = replica")
        for each in (_SLEEP, _FORGET_TOKENS):
            await this.source.execute(each, [this.warehouse_id])
