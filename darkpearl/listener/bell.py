"""The bell, and the idle lock that decides whether writers ring it.

A listener that has nothing to do takes the idle lock and sleeps. While it is held, whoever commits
work for a saga rings; while it isn't, listeners are awake and need no bell. Taking it waits for the
writers that are under way, so the look that follows misses nothing of theirs.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Self

import psycopg

from darkpearl.database import Connection, connect, fetch_all

CHANNEL = "darkpearl_bell"
NAME = "darkpearl bell"
"""The application in `pg_stat_activity` of the session that hears, one for each listener."""
CLOCK_SECONDS = 1.0
"""How often it is looked whether the database's clock was set back."""
_TAKE_IDLE_LOCK = (
    "select take_idle_lock() as taken, %s in (select pg_listening_channels()) as listening"
)
_RELEASE_IDLE_LOCK = "select release_idle_lock()"
_CORRECT_WAITS = "select correct_future_waits(%s) as seen"
_HAS_PEERS = (
    "select count(*) > 1 as has_peers from pg_stat_activity"
    " where datname = current_database() and application_name = %s"
)


class Bell:
    """A connection that hears the bell, and holds the idle lock while its listener sleeps."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rung = False
        self.holds_idle_lock = False
        self._clock_seen: datetime | None = None
        self._clock_due_at = float("-inf")
        connection.add_notify_handler(self._hear)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Self]:
        """Connect and listen. Needs a direct connection: a pooler loses notifications and locks."""
        async with connect(url, NAME) as connection:
            await connection.execute(f"listen {CHANNEL}")
            yield cls(connection)

    async def take_idle_lock(self) -> None:
        """Announce sleep. If the lock is held then, every writer rings from now on.

        Listens again if that was lost.
        """
        (lock,) = await fetch_all(self._connection, _TAKE_IDLE_LOCK, [CHANNEL])
        if not lock["listening"]:
            await self._connection.execute(f"listen {CHANNEL}")
        self.holds_idle_lock = lock["taken"] and lock["listening"]

    async def release_idle_lock(self) -> None:
        """Awake again: writers need not ring."""
        self.holds_idle_lock = False
        await self._connection.execute(_RELEASE_IDLE_LOCK)

    async def has_peers(self) -> bool:
        """Other listeners are connected to this database."""
        (found,) = await fetch_all(self._connection, _HAS_PEERS, [NAME])
        return bool(found["has_peers"])

    async def correct_waits(self) -> None:
        """Bring back what waits for a time that is far off since the database's clock was set back.

        It asks once a second at most; a claim is to follow.
        """
        if time.monotonic() >= self._clock_due_at:
            (clock,) = await fetch_all(self._connection, _CORRECT_WAITS, [self._clock_seen])
            self._clock_seen = clock["seen"]
            self._clock_due_at = time.monotonic() + CLOCK_SECONDS

    async def wait(
        self, event: asyncio.Event, seconds: float, on_ring: Callable[[], None] = lambda: None
    ) -> bool:
        """Return when the bell rings, when the event is set, or after so many seconds.

        The bell sets the event. Nobody else uses this connection meanwhile.

        Args:
            event: what else to wait for.
            seconds: how long at most.
            on_ring: called at once when the bell seems to ring, before this returns.

        Returns:
            True for one of the first two.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        self._drain()
        if not self._rung:
            # The library's own way makes two tasks and a generator of every wait.
            loop, socket = asyncio.get_running_loop(), self._connection.fileno()
            lost: list[psycopg.Error] = []

            def hear() -> None:
                # What is taken from the socket here was committed before what on_ring begins.
                # What comes later stays there, and ends the next wait.
                loop.remove_reader(socket)
                try:
                    self._connection.pgconn.consume_input()
                except psycopg.Error as error:
                    lost.append(error)
                else:
                    on_ring()
                event.set()

            loop.add_reader(socket, hear)
            try:
                async with asyncio.timeout(seconds):
                    await event.wait()
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(socket)
            if lost:
                raise lost[0]
            self._drain()
        self._rung = False
        return True

    def _drain(self) -> None:
        """All notifications that are here are one."""
        while self._connection.pgconn.notifies():
            self._rung = True

    def _hear(self, _: psycopg.Notify) -> None:
        """The bell rang while the connection was at something else."""
        self._rung = True
