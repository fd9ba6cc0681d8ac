"""Looks at the database that many viewers share.

All that the viewers of a role look at in a cell is one statement, once a second: any number of
viewers of a screen costs what one does, those of several screens share a round trip and a snapshot,
and each is drawn once. Nobody who looks means that nothing is asked. Who opens a screen is shown it
at once, as whoever else looks at it has just seen it or by a look of its own. What takes long is
asked for less often. Roles share nothing: a row that one may see another may not.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from darkpearl.errors import DarkPearlError, UnavailableError
from darkpearl.monitor.screens import OVERVIEW, Sight, look_at
from darkpearl.monitor.viewer import Viewer

LOOK_SECONDS = 1.0
SHARE = 4
"""After a look that took long comes a pause so many times as long: no page keeps a server busy."""

Row = dict[str, Any]
Drawn = str | DarkPearlError
"""A screen as HTML, or why there is nothing to be seen."""
Draw = Callable[[Sight, Row, Row | None, Viewer], str]
"""Draws a screen: of the state line, and of what its function gave one of those who look at it."""
Wait = Callable[[float], Coroutine[Any, Any, object]]

logger = logging.getLogger(__name__)


class Looks:
    """What is seen, by role and cell.

    Args:
        draw: draws what was found; a DarkPearlError of it is what its viewers get.
        wait: ends after so many seconds, or earlier.
        clock: says how long a look took.
    """

    def __init__(
        self, draw: Draw, wait: Wait = asyncio.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._draw = draw
        self._wait = wait
        self._clock = clock
        self._rounds: dict[tuple[str, int, bool], _Round] = {}

    @contextmanager
    def watching(self, viewer: Viewer, sight: Sight) -> Iterator["Watch"]:
        """Look at something, in the viewer's cell, for as long as the block runs."""
        key = viewer.role, sight.cell, sight.is_of_all
        if key not in self._rounds:
            self._rounds[key] = _Round(self._draw, self._wait, self._clock)
        watch = Watch(self._rounds[key], viewer, sight)
        watch.round.watches.append(watch)
        try:
            yield watch
        finally:
            watch.round.watches.remove(watch)

    def forget(self) -> None:
        """Everything is looked up anew, now: somebody has changed something."""
        for each in self._rounds.values():
            each.again()


class Watch:
    """Somebody who looks at something."""

    def __init__(self, its_round: "_Round", viewer: Viewer, sight: Sight) -> None:
        self.round = its_round
        self.viewer = viewer
        self.sight = sight

    async def first(self) -> str:
        """What is there now.

        Raises:
            DarkPearlError: whatever the database says of it.
        """
        return _html(await self.round.now(self))

    async def next(self) -> str:
        """The same, once it has been looked up again.

        Raises:
            DarkPearlError: as first().
        """
        return _html(await self.round.next(self))


def _html(drawn: Drawn) -> str:
    if isinstance(drawn, DarkPearlError):
        raise drawn
    return drawn


class _Round:
    """The looks of one role in a cell, or over all: a statement a second, while it is watched."""

    def __init__(self, draw: Draw, wait: Wait, clock: Callable[[], float]) -> None:
        self._draw, self._wait, self._clock = draw, wait, clock
        self.watches: list[Watch] = []
        self._seen: dict[Sight, asyncio.Future[Drawn]] = {}
        self._turned = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def now(self, watch: Watch) -> Drawn:
        """What the others see of it, or a look that whoever comes meanwhile shares."""
        self._keep_on()
        if watch.sight not in self._seen:
            # A task of its own: a viewer who leaves takes nobody else's answer along.
            self._seen[watch.sight] = asyncio.create_task(self._look(watch.viewer, watch.sight))
        return await asyncio.shield(self._seen[watch.sight])

    async def next(self, watch: Watch) -> Drawn:
        """What the next turn finds of it."""
        self._keep_on()
        await self._turned.wait()
        return await self.now(watch)

    def again(self) -> None:
        """What was seen is not so any more: the next turn is due."""
        self._seen = {}
        self._hurry.set()

    def _keep_on(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        pause = LOOK_SECONDS
        while True:
            await self._rest(pause)
            self._seen = {}
            if not self.watches:
                return
            began = self._clock()
            sights = list({watch.sight: None for watch in self.watches})
            drawn = await self._look_at_all(self.watches[0].viewer, sights)
            took = self._clock() - began
            # A database that is away took long to say so, and is asked again all the same.
            is_away = any(isinstance(each, UnavailableError) for each in drawn)
            pause = LOOK_SECONDS if is_away else max(LOOK_SECONDS, SHARE * took)
            for sight, each in zip(sights, drawn, strict=True):
                self._seen[sight] = asyncio.get_running_loop().create_future()
                self._seen[sight].set_result(each)
            self._turned.set()
            self._turned = asyncio.Event()

    async def _rest(self, seconds: float) -> None:
        """Wait, but no longer than until somebody has changed something."""
        rest = {asyncio.ensure_future(each) for each in (self._wait(seconds), self._hurry.wait())}
        try:
            await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in rest:
                each.cancel()
        self._hurry.clear()

    async def _look(self, viewer: Viewer, sight: Sight) -> Drawn:
        (drawn,) = await self._look_at_all(viewer, [sight])
        return drawn

    async def _look_at_all(self, viewer: Viewer, sights: list[Sight]) -> list[Drawn]:
        """What is seen of each. One that fails is alone in that, unless the database is away."""
        try:
            is_of_all = sights[0].is_of_all
            row = await (_over_all(viewer) if is_of_all else viewer.find(dict, look_at(sights)))
        except DarkPearlError as error:
            if len(sights) == 1 or isinstance(error, UnavailableError):
                return [error] * len(sights)
            return [await self._look(viewer, each) for each in sights]
        except Exception:
            logger.exception("a look failed")
            return [DarkPearlError()] * len(sights)
        found: Row = row or {}
        pairs = zip(sights, found["seen"], strict=True)
        return [self._drawn(sight, found["state"], seen, viewer) for sight, seen in pairs]

    def _drawn(self, sight: Sight, state: Row, seen: Row | None, viewer: Viewer) -> Drawn:
        try:
            return self._draw(sight, state, seen, viewer)
        except DarkPearlError as error:
            return error
        except Exception:
            logger.exception("%s can't be drawn", sight.screen.template)
            return DarkPearlError()


async def _over_all(viewer: Viewer) -> Row:
    """What each cell says of itself, as one that is away is told: without a state."""

    async def state_of(number: int) -> Row:
        try:
            return await viewer.in_cell(number).find(dict, OVERVIEW) or {}
        except UnavailableError as error:
            return {"state": None, "error": error.detail or error.title}

    states = await asyncio.gather(*map(state_of, viewer.cells))
    late = {each["cell"]: each for row in states for each in row.get("catalogue") or []}
    cells = [
        {
            "number": number,
            "name": cell.name,
            "late": late.get(cell.name),
            "is_bad": _is_bad(row["state"] or {}),
            **row,
        }
        for (number, cell), row in zip(viewer.cells.items(), states, strict=True)
    ]
    return {"state": cells, "seen": [{"cells": cells}]}


def _is_bad(state: Row) -> bool:
    """Whether a cell that answers needs somebody at once: as its own line says it."""
    needed = (state.get("stuck"), state.get("listeners_failing"))
    return any(needed) or state.get("listeners_alive") == 0
