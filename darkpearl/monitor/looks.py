"""Looks at the database that many viewers share.

Who asks for what another has asked for within the last second gets that one's answer; who asks
while another waits waits for the same. So any number of viewers of a screen costs what one does, a
database that is away is asked once a second, and nobody who looks means that nothing is asked. What
takes long is asked for less often. Roles share no answers: a row that one may see another may not.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from darkpearl.monitor.viewer import Statement, Viewer

SHARED_SECONDS = 0.9
"""Less than a stream's pause, so that each of its looks finds the answer of the last one stale."""

SHARE = 4
"""An answer that took long is good for so many times as long: no screen keeps a server busy."""

Row = dict[str, Any]
_Key = tuple[str, str, str]


class _Answer:
    """An answer that is awaited, then good for a while."""

    def __init__(self, clock: Callable[[], float], found: Coroutine[Any, Any, Row | None]) -> None:
        self._clock = clock
        self._at = clock()
        self._good_for = SHARED_SECONDS
        # A task of its own: a viewer who leaves takes nobody else's answer along.
        self.task = asyncio.create_task(found)
        self.task.add_done_callback(self._arrived)

    @property
    def is_good(self) -> bool:
        """It is under way, or still young."""
        return not self.task.done() or self._clock() - self._at < self._good_for

    def _arrived(self, task: asyncio.Task[Row | None]) -> None:
        if not task.cancelled() and task.exception() is None:
            took = self._clock() - self._at
            self._good_for = max(SHARED_SECONDS, took * SHARE)


class Looks:
    """The answers of the last second, by who may see them and what was asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[_Key, _Answer] = {}

    async def look(self, viewer: Viewer, statement: Statement) -> Row | None:
        """The row that a statement finds, at most a second old.

        Raises:
            DarkPearlError: as the statement did, for whoever shares it.
        """
        query, parameters = statement
        self._answers = {key: each for key, each in self._answers.items() if each.is_good}
        key = (viewer.role, query, repr(sorted(parameters.items())))
        if key not in self._answers:
            self._answers[key] = _Answer(self._clock, _find(viewer, statement))
        return await asyncio.shield(self._answers[key].task)

    def forget(self) -> None:
        """What comes next is looked up anew: somebody has changed something."""
        self._answers.clear()


async def _find(viewer: Viewer, statement: Statement) -> Row | None:
    return await viewer.find(dict, statement)
