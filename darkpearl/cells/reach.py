"""Connections to every cell, for a program that serves them all and was given the address of one.

A pool in another cell is opened when somebody needs it first. A cell that is away costs the others
no wait: who asks it waits for a moment, then looks whether it takes a connection at all; once it
doesn't, it is asked nothing more until it does again, which is looked for aside.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar
from uuid import UUID

import psycopg

from darkpearl.cells.directory import Cell, Directory, read_directory
from darkpearl.database import Pool, refuse_another
from darkpearl.errors import AWAY, DarkPearlError, UnavailableError, translated

FRESH_SECONDS = 10.0
"""A directory that is older is read again, beside what is done by it."""
PATIENCE_SECONDS = 1.0
"""A cell that has said nothing for so long is looked at: whether it is slow, or away."""
CONNECT_SECONDS = 2.0
"""How long a connection to a cell may take."""
RETURN_SECONDS = 0.5
"""The pause between looks whether a cell that was away is there again."""
TRUST_SECONDS = 1.0
"""A directory that is younger isn't read again, whatever is missing in it."""
_IS_FULL = ("too many", "connection slots")
"""What a server says that is there, and has no connection left."""

ALONE = Directory(0, {}, {})
"""Of a database that doesn't say which cells there are: one without the schema."""

Make = Callable[[str], Pool]
"""Makes a pool, not yet opened, of an address."""
T = TypeVar("T")
logger = logging.getLogger(__name__)


class AwayError(UnavailableError):
    """A cell doesn't answer; the others do their work."""

    def __init__(self, *cells: Cell) -> None:
        names = ", ".join(each.name for each in cells)
        said = f"Cell {names} doesn't answer" if len(cells) == 1 else f"Cells {names} don't answer"
        super().__init__(f"{said}.", title=AWAY.title)
        self.cells = cells


class Reach:
    """The cells, and a pool of each kind in each.

    Args:
        url: of the cell that the program was given.
        makes: what makes the pools, by their kind; the directory is read by the first.
    """

    def __init__(self, url: str, makes: dict[str, Make]) -> None:
        self._url = url
        self._makes = makes
        self.own = {kind: make(url) for kind, make in makes.items()}
        """The pools of the cell that the program was given, by kind."""
        self._pools: dict[tuple[str, str], Pool] = {}
        self.cells: dict[int, Cell] = {}
        """The cells whose address is known, by number; empty while nobody has asked."""
        self._known: Directory | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Directory] | None = None
        self._looks: dict[int, asyncio.Task[str]] = {}
        self._away: dict[int, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the pools of the cell that was given; nobody waits for it."""
        for pool in self.own.values():
            await self._stack.enter_async_context(pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all that is open."""
        tasks = [*self._away.values(), *self._looks.values()]
        for task in [*tasks, *([self._reading] if self._reading else [])]:
            task.cancel()
        for pool in self._pools.values():
            await pool.close()
        await self._stack.aclose()

    @property
    def pools(self) -> list[Pool]:
        """All that there are, of every kind and cell."""
        return [*self.own.values(), *self._pools.values()]

    @property
    def away(self) -> list[Cell]:
        """The cells that don't answer, as far as anybody has asked them."""
        return [cell for number, cell in self.cells.items() if number in self._away]

    def cell_of(self, warehouse_id: UUID) -> int | None:
        """The number of the cell that has a warehouse, as far as is known."""
        return (self._known or ALONE).of_warehouse.get(warehouse_id)

    async def look(self) -> list[Cell]:
        """The cells beside the one that was given that don't take a connection now."""
        known = self._known or ALONE
        others = [number for number in self.cells if number != known.here]
        answers = await asyncio.gather(*(self.answers(each) for each in others))
        return [
            self.cells[each] for each, is_there in zip(others, answers, strict=True) if not is_there
        ]

    async def directory(self) -> Directory:
        """Which cells there are, as of some seconds ago.

        Raises:
            UnavailableError: nobody has asked yet, and the cell that was given doesn't answer.
        """
        if self._known is None:
            return await self.read()
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self.read_aside()
        return self._known

    async def read(self) -> Directory:
        """The same as of now, if the cell that was given answers: else as of before.

        Raises:
            UnavailableError: as directory().
        """
        known = self._known
        is_young = time.monotonic() - self._read_at < TRUST_SECONDS
        if known is not None and (is_young or known.here in self._away):
            return known
        return await asyncio.shield(self.read_aside())

    def doubt(self) -> None:
        """A cell says something else than the directory: read it again, aside, unless it is new."""
        if time.monotonic() - self._read_at > TRUST_SECONDS:
            self.read_aside()

    def read_aside(self) -> asyncio.Task[Directory]:
        """Begin to read the directory, unless somebody does."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_heard)
        return self._reading

    async def _read(self) -> Directory:
        pool = next(iter(self.own.values()))
        self._read_at = time.monotonic()
        try:
            with translated():
                async with asyncio.timeout(CONNECT_SECONDS if self._known else None):
                    async with pool.connection() as connection:
                        found = await read_directory(connection, self._url)
        except (UnavailableError, TimeoutError):
            if self._known is None:
                raise
            return self._known
        except DarkPearlError as error:
            if self._known is None:  # the schema isn't there, or not of this release
                return ALONE
            logger.warning("the directory of the cells can't be read: %s", error.__cause__)
            return self._known
        self._known = found
        self.cells = {number: each for number, each in found.cells.items() if each.url}
        for pool in self.own.values():
            pool.cell = found.here
        await self._close_unused()
        return found

    async def _close_unused(self) -> None:
        """Close the pools of cells that are gone, or elsewhere now."""
        urls = {each.url for each in self.cells.values()}
        for key in [each for each in self._pools if each[1] not in urls]:
            await self._pools.pop(key).close()

    async def pool(self, number: int, kind: str) -> Pool:
        """The pool of a kind in a cell, open; it may have no connection yet."""
        known = self._known or ALONE
        if number == known.here:
            return self.own[kind]
        cell = self._cell(number)
        key = kind, cell.url
        if key not in self._pools:
            self._pools[key] = self._makes[kind](cell.url)
            self._pools[key].cell = number
            self._pools[key].is_of_a_cell = True
        pool = self._pools[key]
        if pool.closed:
            await pool.open()
        return pool

    async def ask(self, number: int, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What comes of asking a cell something.

        Args:
            number: of a cell whose address is known.
            act: asks it; cancelled when the cell turns out to be away.

        Raises:
            AwayError: it doesn't take a connection, or didn't a moment ago.
            DarkPearlError: whatever else `act` raises.
        """
        cell = self._cell(number)
        if number in self._away:
            raise AwayError(cell)
        asked = asyncio.ensure_future(act())
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=PATIENCE_SECONDS)
                if not asked.done() and not await self.answers(number):
                    break
            if asked.done():
                return asked.result()
        except UnavailableError as error:
            is_open = error.code and not error.code.startswith(("08", "57P"))
            if is_open or await self.answers(number):
                raise
            raise AwayError(cell) from error
        finally:
            if not asked.done():  # nobody waits until it has noticed
                asked.add_done_callback(_heard)
                asked.cancel()
        raise AwayError(cell)

    def _cell(self, number: int) -> Cell:
        """A cell, by its number.

        Raises:
            AwayError: it was removed a moment ago.
        """
        cell = self.cells.get(number)
        if cell is None:
            raise AwayError(Cell(number, str(number), ""))
        return cell

    async def answers(self, number: int) -> bool:
        """Whether a cell takes a connection; all who ask at once have one look."""
        if number in self._away:
            return False
        look = self._looks.get(number)
        if look is None or look.done():
            look = self._looks[number] = asyncio.create_task(self._look(number))
        why_not = await asyncio.shield(look)
        if not why_not:
            return True
        if number not in self._away:
            logger.warning("cell %s doesn't answer: %s", number, why_not)
            self._away[number] = asyncio.create_task(self._wait_for(number))
        return False

    async def _look(self, number: int) -> str:
        """Why a cell takes no connection, or is another; empty if all is well."""
        cell = self.cells.get(number)
        if cell is None:
            return "it is none any more"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await psycopg.AsyncConnection.connect(
                    cell.url, application_name="darkpearl look"
                )
                async with connection:
                    await refuse_another(connection, number)
        except TimeoutError:
            return f"no connection in {CONNECT_SECONDS:g} s"
        except psycopg.Error as error:
            return "" if any(each in str(error) for each in _IS_FULL) else str(error)
        return ""

    async def _wait_for(self, number: int) -> None:
        """Look for a cell until it is there again, or isn't one any more."""
        while number in self.cells and await self._look(number):  # noqa: ASYNC110 - it says nothing by itself
            await asyncio.sleep(RETURN_SECONDS)
        logger.warning("cell %s answers again", number)
        del self._away[number]


def _heard(task: asyncio.Future[Any]) -> None:
    """Take note of how a task ended that nobody waits for."""
    if not task.cancelled():
        task.exception()
