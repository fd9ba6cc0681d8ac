"""How the cells are: whether each answers, how late its catalogue is, and what it has to do."""

import asyncio
from datetime import timedelta
from typing import Any

from psycopg.rows import dict_row

from darkpearl import schema
from darkpearl.cells.joining import CATALOGUE, slot_of

LOOK_SECONDS = 10.0
"""How long a cell may take to answer; one that doesn't is told as that."""
_CELLS = (
    "select number, name, url, warehouses from cell_overview where removed_at is null order by 1"
)
_SLOT = (
    "select active as slot_active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as"
    " kept_bytes from pg_replication_slots where slot_name = %s"
)
SILENT_SECONDS = 20
"""A cell that hears says so every ten seconds (wal_receiver_status_interval), if nothing else."""
_LAG = (
    "select replay_lag, clock_timestamp() - reply_time as silent from pg_stat_replication"
    " join pg_replication_slots on active_pid = pid where slot_name = %s"
)
_SUBSCRIPTION = (
    "select s.subenabled as subscribed, e.apply_error_count + e.sync_error_count as errors from"
    " pg_subscription as s join pg_stat_subscription_stats as e using (subname)"
    " where subname = %s"
)
_LOAD = (
    "select this_cell() as cell, ready, stuck, (select count(*) from pg_stat_activity where"
    " datname = current_database()) as sessions from engine_health"
)
_MEASURED = ("server", "ready", "stuck", "sessions", "lag_seconds", "kept_bytes")
"""What is empty where it can't be had, or makes no sense, as a lag of home."""

Row = dict[str, Any]


async def states(home: str) -> list[Row]:
    """A row for each cell, home the first, as home knows them and as they say themselves.

    `trouble` is empty where all is well. Times are in seconds, sizes in bytes.

    Raises:
        schema.SchemaError: home can't be reached.
    """
    cells = await _rows(home, _CELLS)
    return await asyncio.gather(*(_state(home, cell) for cell in cells))


async def _rows(url: str, query: str, *values: Any) -> list[Row]:
    async with schema.connect(url) as connection:
        connection.row_factory = dict_row
        await connection.execute("set search_path = darkpearl")
        return list(await (await connection.execute(query.encode(), values or None)).fetchall())


async def _first(url: str, query: str, *values: Any) -> Row:
    rows = await _rows(url, query, *values)
    return rows[0] if rows else {}


async def _state(home: str, cell: Row) -> Row:
    number, url = cell["number"], cell["url"] or home
    found = {**dict.fromkeys(_MEASURED), **cell, "troubles": []}
    if number > 1:
        slot = slot_of(number)
        found |= await _first(home, _SLOT, slot) or {"slot_active": None, "kept_bytes": None}
        found |= _lag(await _first(home, _LAG, slot))
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            found |= await _first(url, _LOAD)
            status = await schema.status(url)
            found["server"] = status.server
            if number > 1:
                told = await _first(url, _SUBSCRIPTION, CATALOGUE)
                found |= told or {"subscribed": None, "errors": None}
    except (schema.SchemaError, TimeoutError) as error:
        found["troubles"].append(f"no answer: {error or 'too slow'}")
    else:
        found["troubles"] += _troubles(found, status)
    return {name: found[name] for name in found if name not in {"troubles", "is_silent"}} | {
        "trouble": "; ".join(found["troubles"])
    }


def _lag(told: Row) -> Row:
    """How late a cell is. The server's measure stands still while no word comes from it."""
    lag, silent = (told.get(each) or timedelta() for each in ("replay_lag", "silent"))
    is_silent = silent.total_seconds() > SILENT_SECONDS
    late = (silent if is_silent else lag).total_seconds()
    return {"lag_seconds": late if told else None, "is_silent": is_silent}


def _troubles(found: Row, status: schema.Status) -> list[str]:
    """What is wrong with a cell that answers."""
    is_cell = found["number"] > 1
    return [
        said
        for is_so, said in (
            (found["cell"] != found["number"], f"the database there is cell {found['cell']}"),
            (bool(status.pending or status.unknown), "its schema is of another release"),
            (is_cell and found.get("slot_active") is None, "home has no slot for it"),
            (is_cell and found.get("slot_active") is False, "it doesn't read its slot"),
            (bool(found.get("is_silent")), "it has said nothing of its slot for a while"),
            (is_cell and found.get("subscribed") is None, f"it has no subscription {CATALOGUE}"),
            (is_cell and found.get("subscribed") is False, "its subscription is disabled"),
            (bool(found.get("errors")), f"its subscription failed {found.get('errors')} times"),
        )
        if is_so
    ]
