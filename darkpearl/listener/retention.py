"""Retention at work: rows that are too old go in small bites, in a session of their own.

Beside the listener's work and never in the way of it: a bite waits for nobody, and is followed by a
rest as long as itself.
"""

import asyncio
import logging
import time

import psycopg
from psycopg import sql

from darkpearl import database
from darkpearl.listener.pace import first_line

NAME = "darkpearl retention"
FIRST_SECONDS = 60.0
"""Between the start and the first look."""
LOOK_SECONDS = 3600.0
"""How often there is a look; the database says of each kind when it is due."""
RETRY_SECONDS = 60.0
"""After a look that failed."""
BITE = 100
"""Rows that one transaction looks at."""
MOST_SECONDS = 1800.0
"""What isn't done by then waits for the next look."""
REINDEX_LOCK_SECONDS = 10
"""How long a rebuilt index waits for old transactions, which keeps nobody else waiting."""
_log = logging.getLogger(__name__)


class Retention:
    """Looks every hour. `run()` ends only by being cancelled."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self) -> None:
        """What fails is logged and tried again later, and keeps nobody from work."""
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            pause = LOOK_SECONDS
            try:
                async with database.connect(self._url, NAME) as connection:
                    await keep(connection)
            except psycopg.Error as error:
                pause = RETRY_SECONDS
                _log.warning("retention: %s; trying again in %.0f s", first_line(error), pause)
            await asyncio.sleep(pause)


async def keep(connection: database.Connection, *, at_once: bool = False) -> dict[str, int]:
    """Remove what is too old, then build the indexes of closed months dense.

    Args:
        connection: a listener's.
        at_once: look at every kind, due or not.

    Returns:
        How many rows of each kind went.

    Raises:
        psycopg.Error: the first that failed, once the others were tried.
    """
    removed: dict[str, int] = {}
    failure: psycopg.Error | None = None
    deadline = time.monotonic() + MOST_SECONDS
    kinds = await database.fetch_all(connection, "select retention_to_do(%s) as kind", [at_once])
    for row in kinds:
        try:
            removed[row["kind"]] = await _remove(connection, row["kind"], deadline)
        except psycopg.Error as error:
            failure = failure or error
    if failure:
        raise failure
    await _build_dense(connection)
    return removed


async def _remove(connection: database.Connection, kind: str, deadline: float) -> int:
    """Remove a kind bite by bite; how many rows went."""
    removed, has_more = 0, True
    while has_more and time.monotonic() < deadline:
        began = time.monotonic()
        (bite,) = await database.fetch_all(
            connection, "select removed, has_more from apply_retention(%s, %s)", [kind, BITE]
        )
        removed += bite["removed"]
        has_more = bite["has_more"]
        await asyncio.sleep(time.monotonic() - began)
    if removed:
        _log.info("retention: removed %d of %s", removed, kind)
    return removed


async def _build_dense(connection: database.Connection) -> None:
    """Rebuild the primary keys of closed months, one after another, while everybody works."""
    indexes = await database.fetch_all(connection, "select sparse_event_indexes() as name")
    for row in indexes:
        await connection.execute("select prepare_dense_index(%s)", [row["name"]])
        await connection.execute(f"set lock_timeout = '{REINDEX_LOCK_SECONDS}s'".encode())
        try:
            await connection.execute(
                sql.SQL("reindex index concurrently {}").format(
                    sql.Identifier("darkpearl", row["name"])
                )
            )
        finally:
            await connection.execute("reset lock_timeout")
        _log.info("retention: %s is built anew", row["name"])
