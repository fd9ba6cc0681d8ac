"""What `darkpearl up` runs for the other cells: a listener and webhooks in each.

The directory of its own cell is read now and then: services of a cell that came are started, those
of one that was removed are stopped. Each outlives its database; one that ends all the same is
started again, and never takes the process along.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from darkpearl import schema
from darkpearl.cells.directory import Cell, address_of, directory_at
from darkpearl.serving import Service
from darkpearl.telemetry import logs

LOOK_SECONDS = 10.0
AGAIN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Elsewhere:
    """The services in the cells that others have, as one.

    Args:
        url: the login of these services, in the own cell.
        migrating_url: the login that migrates there: it sees which release another cell has.
        make: the services of a cell, by the address of their login.
    """

    def __init__(self, url: str, migrating_url: str, make: Callable[[str], list[Service]]) -> None:
        self._url = url
        self._migrating_url = migrating_url
        self._make = make
        self._stopping = asyncio.Event()
        self._tended: dict[Cell, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._running: list[Service] = []

    def service(self) -> Service:
        """To be run beside those of the own cell."""
        return Service(run=self.run, stop=self.stop, kill=self.kill)

    def stop(self) -> None:
        """Finish what is in hand everywhere, then end."""
        self._stopping.set()
        for each in self._running:
            each.stop()

    def kill(self) -> None:
        """End now."""
        for each in self._running:
            each.kill()

    async def run(self) -> None:
        """Run the services of every other cell until told to stop."""
        while not self._stopping.is_set():
            with contextlib.suppress(schema.SchemaError):  # the own cell is away: they go on
                known = await directory_at(self._url)
                others = [cell for cell in known.several if cell.number != known.here]
                for cell in [cell for cell in self._tended if cell not in others]:
                    self._ending.add(leaving := self._tended.pop(cell))
                    leaving.cancel()
                for cell in others:
                    if cell not in self._tended:
                        self._tended[cell] = asyncio.create_task(self._tend(cell))
            await self._pause(LOOK_SECONDS)
        await asyncio.gather(*self._tended.values(), *self._ending, return_exceptions=True)

    async def _tend(self, cell: Cell) -> None:
        """Keep the services of a cell running."""
        logs.cell.set(cell.name)
        checking = asyncio.create_task(self._check_release(cell))
        try:
            while not self._stopping.is_set():
                try:
                    await self._serve(cell)
                except Exception:  # noqa: BLE001 - a defect of one cell is none of the others
                    _log.exception("services of the cell ended; they begin anew")
                await self._pause(AGAIN_SECONDS)
        finally:
            checking.cancel()

    async def _serve(self, cell: Cell) -> None:
        services = self._make(cell.url)
        self._running += services
        tasks = [asyncio.ensure_future(each.run()) for each in services]
        _log.info("a listener and webhooks for it")
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in services:
                each.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._running = [each for each in self._running if each not in services]
        for task in tasks:
            task.result()

    async def _check_release(self, cell: Cell) -> None:
        """Say that a cell isn't of this release, once it answers; it works on, as it can."""
        address, found, said = address_of(self._migrating_url, cell.url), None, ""
        while found is None and not self._stopping.is_set():
            try:
                found = await schema.status(address)
            except schema.SchemaError as error:
                if str(error) != said:
                    _log.warning("it doesn't answer, and is waited for: %s", error)
                said = str(error)
                await self._pause(AGAIN_SECONDS)
        if found and found.pending:
            lacking = ", ".join(found.pending)
            _log.error("it lacks %s of this release: migrate the cells first, home last", lacking)
        elif found and found.unknown:
            _log.warning("it is of a newer release, with %s", ", ".join(found.unknown))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
