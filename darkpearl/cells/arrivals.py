"""Transfers to other cells: the listener asks the cell that has the warehouse to let the goods in.

Nothing is decided here. That cell decides once, in decide_arrival(), and says the same to whoever
asks again; so a call without an answer is made again, and one that can't be made is given back.
"""

import asyncio
import logging
import re
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

from darkpearl import database
from darkpearl.cells.directory import Cell, Directory, read_directory
from darkpearl.gateways import NotAskedError

AWAY_SECONDS = 30.0
"""After which a cell that couldn't be reached is tried again for a transfer."""
LOOK_SECONDS = 5.0
"""For which nobody else tries it."""
CONNECT_SECONDS = 3
SESSIONS = 4
"""How many sessions in one cell a listener has at once: the rest waits its turn."""
HOPS = 3
"""How often a call follows a warehouse that has moved."""
_NAME = "darkpearl transfers"
_DECIDE = (
    "select decide_arrival(%(transfer_id)s, %(from_warehouse_id)s, %(warehouse_id)s,"
    " %(product_id)s, %(quantity)s, %(notes)s, %(refusal)s) as refusal"
)
_log = logging.getLogger(__name__)


class Arrivals:
    """Asks other cells about transfers.

    Args:
        url: this cell, with the listener's login, which the others know as well.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._directory: Directory | None = None
        self._looking = asyncio.Lock()
        self._turns: dict[int, asyncio.Semaphore] = {}
        self._away: dict[int, float] = {}

    async def decide(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have the goods of a transfer let in, or, with a refusal in the request, refused.

        Args:
            request: what ask_for_arrivals() writes.

        Returns:
            "approved" when it is as asked for; "declined" when the goods were refused, or, when
            they were to be, are in already.

        Raises:
            NotAskedError: no cell can be asked now.
            psycopg.Error: nothing was decided, or nobody knows what.
        """
        cell = await self._cell_of(UUID(request["warehouse_id"]))
        for _ in range(HOPS):
            try:
                refusal = await self._ask(cell, request)
            except psycopg.Error as error:
                if error.sqlstate != "DP050":
                    raise
                self._directory = None
                cell = await self._named(error)
                continue
            if (refusal is None) == (request["refusal"] is None):
                return {"outcome": "approved", "message": refusal}
            return {"outcome": "declined", "message": refusal or "the goods are in already"}
        raise NotAskedError("the warehouse moves from cell to cell", LOOK_SECONDS)

    async def _ask(self, cell: Cell, request: dict[str, Any]) -> str | None:
        """What the cell says: why the goods were refused, or None.

        Raises:
            NotAskedError: it can't be reached, so nothing was asked.
            psycopg.Error: what went wrong there.
        """
        turn = self._turns.setdefault(cell.number, asyncio.Semaphore(SESSIONS))
        async with turn:
            if time.monotonic() < self._away.get(cell.number, 0.0):
                raise NotAskedError(f"cell {cell.name} can't be reached", AWAY_SECONDS)
            async with AsyncExitStack() as stack:
                url = make_conninfo(cell.url, connect_timeout=CONNECT_SECONDS)
                try:
                    session = await stack.enter_async_context(database.connect(url, _NAME))
                except psycopg.Error as error:
                    raise self._not_reached(cell, error) from None
                row = await (await session.execute(_DECIDE, request)).fetchone()
        return None if row is None else row["refusal"]

    def _not_reached(self, cell: Cell, error: psycopg.Error) -> NotAskedError:
        """Remember that a cell is away, and that its address may be another by now."""
        self._away[cell.number] = time.monotonic() + LOOK_SECONDS
        self._directory = None
        said = str(error).partition("\n")[0]
        _log.warning("transfers to cell %s wait: %s", cell.name, said)
        return NotAskedError(f"cell {cell.name} can't be reached: {said}", AWAY_SECONDS)

    async def _cell_of(self, warehouse: UUID) -> Cell:
        """The cell that has a warehouse, as this one knows.

        Raises:
            NotAskedError: it knows of none, which it may in a moment.
        """
        for _ in range(2):
            directory = await self._look()
            number = directory.of_warehouse.get(warehouse)
            if number is not None and number in directory.cells:
                return directory.cells[number]
            self._directory = None
        raise NotAskedError(f"no cell is known that has warehouse {warehouse}", AWAY_SECONDS)

    async def _named(self, error: psycopg.Error) -> Cell:
        """The cell that a refusal names.

        Raises:
            NotAskedError: this one doesn't know it yet.
        """
        named = re.search(r"is of cell (\d+)", error.diag.message_detail or "")
        directory = await self._look()
        if named is None or int(named[1]) not in directory.cells:
            raise NotAskedError("the warehouse has moved to a cell that isn't known", LOOK_SECONDS)
        return directory.cells[int(named[1])]

    async def _look(self) -> Directory:
        async with self._looking:
            if self._directory is None:
                try:
                    async with database.connect(self._url, _NAME) as connection:
                        self._directory = await read_directory(connection, self._url)
                except psycopg.Error as error:
                    said = f"this cell can't be asked: {error}"
                    raise NotAskedError(said, LOOK_SECONDS) from None
            return self._directory
