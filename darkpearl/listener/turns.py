"""Turns: who has the next of a few places, where many want one.

What waits stands in lanes, one for each warehouse and operation, that take turns. An otherwise idle
listener gives all places to one lane; where others have wanted some lately, none holds them all, so
that a lane whose calls are slow keeps no other waiting for as long as they take.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

QUIET_SECONDS = 60.0
"""After which a lane that nobody else has wanted a place beside is alone."""
KEPT_FREE = 8
"""One place in so many, and one at least, is not for a lane that has all others."""
T = TypeVar("T")


class Lane(Generic[T]):
    """What waits for one operation of one warehouse, and how many places it has."""

    def __init__(self, warehouse_id: str) -> None:
        self.warehouse_id = warehouse_id
        self.queue: deque[T] = deque()
        self.out = 0
        self.call_seconds: float | None = None


class Turns(Generic[T]):
    """Lanes that take turns in a number of places.

    Args:
        places: how many there are.
        clock: seconds that never go back.
    """

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self.out = 0
        self.queued = 0
        self.waiting: OrderedDict[tuple[str, str], Lane[T]] = OrderedDict()
        """The lanes in which something waits; the first has the next turn."""
        self._among_others = max(1, places - max(1, places // KEPT_FREE))
        self._clock = clock
        self._lanes: dict[tuple[str, str], Lane[T]] = {}
        self._latest: tuple[str, str] | None = None
        self._others_at = float("-inf")
        self._idle: deque[asyncio.Future[None]] = deque()

    @property
    def share(self) -> int:
        """How many places one lane may have."""
        alone = self._clock() - self._others_at > QUIET_SECONDS
        return self.places if alone else self._among_others

    @property
    def held_up(self) -> bool:
        """Nothing that waits may have a place now."""
        if self.out >= self.places:
            return True
        share = self.share
        return bool(self.waiting) and all(lane.out >= share for lane in self.waiting.values())

    def put(self, warehouse_id: str, operation: str, item: T) -> None:
        """Have something wait for its turn."""
        key = (warehouse_id, operation)
        if key != self._latest:
            if self._latest is not None:
                self._others_at = self._clock()
            self._latest = key
        if (lane := self._lanes.get(key)) is None:
            lane = self._lanes[key] = Lane(warehouse_id)
        lane.queue.append(item)
        self.waiting.setdefault(key, lane)
        self.queued += 1
        self._wake()

    async def take(self) -> tuple[Lane[T], T]:
        """What has the next turn; its lane has a place more, until `leave()`."""
        while (taken := self._next()) is None:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle
        return taken

    def leave(self, lane: Lane[T]) -> None:
        """A place of a lane is free again."""
        lane.out -= 1
        self.out -= 1
        if self.waiting:
            self._wake()

    def _next(self) -> tuple[Lane[T], T] | None:
        for _ in range(len(self.waiting)):
            key, lane = next(iter(self.waiting.items()))
            self.waiting.move_to_end(key)
            if lane.out < self._among_others or lane.out < self.share:
                item = lane.queue.popleft()
                if not lane.queue:
                    del self.waiting[key]
                lane.out += 1
                self.out += 1
                self.queued -= 1
                return lane, item
        return None

    def _wake(self) -> None:
        """Have one who is idle look again."""
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return
