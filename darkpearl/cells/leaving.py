"""How a database ceases to be a cell, once nobody waits for it.

A run that was killed is simply run again: the row of the cell is marked removed last.
"""

from typing import Any

from psycopg import AsyncConnection

from darkpearl import database, schema
from darkpearl.cells.catalogue import CATALOGUE, slot_of
from darkpearl.cells.joining import (
    KNOWN,
    lock,
    refuse_away_from_home,
)
from darkpearl.cells.queries import one, rows, value
from darkpearl.cells.replication import CellError, drop_slot, unsubscribe

_AT_WORK = (
    "select string_agg(code, ', ' order by code) from darkpearl.warehouses"
    " where cell = %s and is_active"
)
_MOVES = "select darkpearl.is_warehouse_moving()"
_UNFINISHED = (
    "select nullif(count(*), 0) from darkpearl.sagas where (ready_at < 'infinity' or"
    " status = 'stuck') and warehouse_id <> all (darkpearl.closed_warehouses())"
)
_ON_THEIR_WAY = (
    "select nullif(count(*), 0) from darkpearl.stock_in_transit as t inner join"
    " darkpearl.warehouses as w on w.id = t.to_warehouse_id where w.cell = %s"
)
_OTHERS = "select url from darkpearl.cells where removed_at is null and number not in (1, %s)"


async def remove(home: str, name: str, *, url: str = "", is_gone: bool = False) -> int:
    """Let a cell go that has no active warehouse: it gets no catalogue any more.

    Args:
        home: home, as a superuser.
        name: what the cell is called.
        url: the cell, as a superuser; if not given, what home knows.
        is_gone: don't ask the cell, which isn't there any more.

    Returns:
        Its number, which is not given again.

    Raises:
        CellError: there is none of this name, it is home, it has warehouses that take orders, the
            database is another, or something of it isn't over: a move, an order, goods on their
            way to it.
        schema.SchemaError: one of them can't be reached, or fails.
    """
    async with schema.connect(home) as at_home:
        await refuse_away_from_home(at_home)
        await lock(at_home)
        known = await one(at_home, KNOWN, name)
        if known is None or known[0] == 1:
            raise CellError(f"there is no cell {name} beside home")
        number, address, removed_at = known
        if codes := await value(at_home, _AT_WORK, number):
            raise CellError(
                f"cell {name} has warehouses that take orders: {codes}; set their is_active to"
                " false first"
            )
        if not is_gone and removed_at is None:
            async with schema.connect(url or address) as there:
                await database.refuse_another(there, number)
                await _refuse_unfinished(there, at_home, name, number)
                await unsubscribe(there, CATALOGUE)
        await drop_slot(at_home, slot_of(number))
        await at_home.execute(
            "update darkpearl.cells set removed_at = darkpearl.clock()"
            " where number = %s and removed_at is null",
            [number],
        )
    return int(number)


async def _refuse_unfinished(
    there: AsyncConnection[Any], at_home: AsyncConnection[Any], name: str, number: int
) -> None:
    """Refuse to let a cell go that somebody still waits for: nobody would find it any more.

    Raises:
        CellError: something isn't over.
    """
    if await value(there, _MOVES):
        raise CellError(
            f"a warehouse is on its way to cell {name}, or from it: end that, or undo it"
        )
    if count := await value(there, _UNFINISHED):
        raise CellError(f"cell {name} has {count} sagas that have not ended, such as of orders")
    count = await value(at_home, _ON_THEIR_WAY, number) or 0
    for (url,) in await rows(at_home, _OTHERS, number):
        async with schema.connect(url) as other:
            count += await value(other, _ON_THEIR_WAY, number) or 0
    if count:
        raise CellError(f"{count} transfers are on their way to cell {name}: see stock transit")
