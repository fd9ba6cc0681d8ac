"""How the cells are: whether each answers, how late its catalogue is, and what it has to do."""

import asyncio
from typing import Any

from psycopg.rows import dict_row

from darkpearl import schema
from darkpearl.cells.catalogue import CATALOGUE
from darkpearl.cells.joining import asked_at, refuse_away_from_home
from darkpearl.cells.queries import HERE
from darkpearl.cells.replication import LOST

LOOK_SECONDS = 10.0
"""How long a cell may take to answer; one that doesn't is told as that."""
_CELLS = (
    "select number, name, url, warehouses from cell_overview where removed_at is null order by 1"
)
_CATALOGUE = "select * from catalogue_state()"
_WORKS = (
    "exists (select from pg_stat_subscription where subid = s.oid and relid is null and pid > 0)"
)
_SUBSCRIPTION = (
    "select subenabled as subscribed, apply_error_count + sync_error_count as errors,"  # noqa: S608
    f" {_WORKS} as works from pg_subscription as s join pg_stat_subscription_stats on subid = s.oid"
    f" where s.subname = %s and {HERE}"
)
_LOAD = (
    "select this_cell() as says, ready, stuck, (select count(*) from pg_stat_activity where"
    " datname = current_database()) as sessions from engine_health"
)
_SLOTS = {
    None: "home has no slot for it: darkpearl cells add again",
    LOST: "its slot has lost what it was to read: darkpearl cells add again",
}
"""What is wrong with a slot in a state."""
_MEASURED = ("server", "ready", "stuck", "sessions", "lag_seconds", "kept_bytes")
"""What is empty where it can't be had, or makes no sense, as a lag of home."""

Row = dict[str, Any]


async def states(home: str) -> list[Row]:
    """A row for each cell, home the first, as home knows them and as they say themselves.

    `trouble` is empty where all is well. Times are in seconds, sizes in bytes.

    Raises:
        CellError: it is another cell.
        schema.SchemaError: home can't be reached.
    """
    async with schema.connect(home) as at_home:
        await refuse_away_from_home(at_home)
    cells = await _rows(home, _CELLS)
    sent = {each.pop("number"): each for each in await _rows(home, _CATALOGUE)}
    return await asyncio.gather(
        *(
            _state(asked_at(home, cell["number"], cell["url"]), cell, sent.get(cell["number"], {}))
            for cell in cells
        )
    )


async def _rows(url: str, query: str, *values: Any) -> list[Row]:
    async with schema.connect(url) as connection:
        connection.row_factory = dict_row
        await connection.execute("set search_path = darkpearl")
        return list(await (await connection.execute(query.encode(), values or None)).fetchall())


async def _first(url: str, query: str, *values: Any) -> Row:
    rows = await _rows(url, query, *values)
    return rows[0] if rows else {}


async def _state(url: str, cell: Row, sent: Row) -> Row:
    """A cell as home knows it, with what home sends it, and as it says itself."""
    number = cell["number"]
    found = {**dict.fromkeys(_MEASURED), **cell, "troubles": []}
    found |= {each: sent.get(each) for each in ("lag_seconds", "kept_bytes")}
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            found |= await _first(url, _LOAD)
            status = await schema.status(url)
            found["server"] = status.server
            if number > 1:
                told = await _first(url, _SUBSCRIPTION, CATALOGUE)
                found |= told or {"subscribed": None, "errors": None, "works": None}
    except (schema.SchemaError, TimeoutError) as error:
        found["troubles"].append(f"no answer: {error or 'too slow'}")
    else:
        found["troubles"] += _troubles(found, sent, status)
    found["troubles"] += [said for at, said in _SLOTS.items() if sent and sent["slot_status"] == at]
    return {name: found[name] for name in found if name not in {"troubles", "says", "works"}} | {
        "trouble": "; ".join(found["troubles"])
    }


def _troubles(found: Row, sent: Row, status: schema.Status) -> list[str]:
    """What is wrong with a cell that answers."""
    is_cell = found["number"] > 1
    return [
        said
        for is_so, said in (
            (found["says"] != found["number"], f"the database there is cell {found['says']}"),
            (bool(status.pending or status.unknown), "its schema is of another release"),
            (is_cell and sent["is_read"] is False, "it doesn't read its slot"),
            (is_cell and sent["is_silent"], "it has said nothing of its slot for a while"),
            (is_cell and found.get("subscribed") is None, f"it has no subscription {CATALOGUE}"),
            (is_cell and found.get("subscribed") is False, "its subscription is disabled"),
            (
                bool(found.get("errors")) and not found.get("works"),
                f"its subscription doesn't work, after {found.get('errors')} errors",
            ),
        )
        if is_so
    ]
