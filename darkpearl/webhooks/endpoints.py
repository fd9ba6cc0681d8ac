"""The endpoints of home, which every other cell sends what happens there.

An endpoint is made, changed and deleted at home. Each cell fetches what there is, so one that was
away has missed nothing, and one that is new is told of as any other.
"""

import asyncio

from darkpearl import database
from darkpearl.cells.directory import read_directory
from darkpearl.errors import translated
from darkpearl.feed import Horizon

HOME = 1
"""The number of the cell in which endpoints are made."""
LOOK_SECONDS = 0.05
"""Between two looks at the horizon, while those that were writing at the first one still do."""

_OF_HOME = "select webhooks_of_home()::text as endpoints"
_KEEP = "select keep_webhook_endpoints(%(endpoints)s, %(horizon)s)"


async def keep_endpoints(url: str, name: str) -> None:
    """Have a cell send to the endpoints of home, as they are there now.

    Args:
        url: of the cell, directly; its login is the one at home, too.
        name: what `pg_stat_activity` shows, in both.

    Raises:
        DarkPearlError: one of them can't be asked. What is sent goes on as before.
    """
    with translated():
        async with database.connect(url, name) as here:
            directory = await read_directory(here, url)
            home = directory.cells.get(HOME)
            if home is None or not home.url or directory.here == HOME:
                return
            async with database.connect(home.url, name) as there:
                (told,) = await database.fetch_all(there, _OF_HOME)
            asked = {"endpoints": told["endpoints"], "horizon": await _horizon(here)}
            await database.fetch_all(here, _KEEP, asked)


async def _horizon(here: database.Connection) -> int:
    """How far the feed of a cell can be read."""
    horizon = Horizon()
    while True:
        (row,) = await database.fetch_all(here, *horizon.look)
        horizon.see(row)
        if row["horizon"] is not None:
            return horizon.id
        await asyncio.sleep(LOOK_SECONDS)
