"""Turns: what all couriers share, the session of the database and the time of the process.

Who comes first is served first, but an endpoint whose webhooks take a second lets pass whoever
comes within a second of it. So a hundred slow ones are in no quick one's way, and none is passed
over for longer than it takes itself.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    @asynccontextmanager
    async def turn(self, patience: float = 0.0) -> AsyncIterator[None]:
        """Have what is shared for a block, once it is free.

        Args:
            patience: for how many seconds others that come later may go first.
        """
        if self._is_taken:
            loop = asyncio.get_running_loop()
            mine: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._waiting, (loop.time() + patience, next(self._numbers), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # it had come, and is of no use any more
                    self._pass_on()
                raise
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Who is next has it at once, so that nobody who comes now gets in between."""
        while self._waiting:
            *_, next_one = heapq.heappop(self._waiting)
            if not next_one.done():
                next_one.set_result(None)
                return
        self._is_taken = False
