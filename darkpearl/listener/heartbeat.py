"""The heartbeat: a listener says every few seconds that it is there, and what it is at.

In a session of its own, so that a pass that is blocked keeps it from nothing: a listener that isn't
heard of is dead, frozen or cut off. The answer says whether there are chores.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg

import darkpearl
from darkpearl import database
from darkpearl.listener.pace import first_line

NAME = "darkpearl heartbeat"
BEAT_SECONDS = 3.0
"""A listener counts as alive for five times as long: see the view listener_activity."""
RETRY_SECONDS = 3.0
"""After a heartbeat that failed, doubled with each in a row …"""
LONGEST_RETRY_SECONDS = 60.0
"""… up to this."""
FAREWELL_SECONDS = 1.0
"""How long a stop waits for the row to go."""
BREAKER_STATES = ("closed", "half_open", "open")
_REPORT = "select report_listener(%s, %s, %s, %s, %s, %s, %s, %s) as has_chores"
_FORGET = "select forget_listener(%s)"
_log = logging.getLogger(__name__)


class Activity:
    """What a listener is at: the oldest of what is under way."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._idle_since = time.monotonic()

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """It is at this meanwhile, once at a time."""
        self._began[name] = time.monotonic()
        try:
            yield
        finally:
            del self._began[name]
            self._idle_since = time.monotonic()

    def now(self) -> tuple[str, float]:
        """What it is at, and for how many seconds; "idle" when it is nothing."""
        name, began = min(
            self._began.items(), key=lambda each: each[1], default=("idle", self._idle_since)
        )
        return name, time.monotonic() - began


class Heartbeat:
    """Of one listener. `run()` ends only by being cancelled, and then takes its row away.

    Args:
        url: the database.
        gateway: the name of the listener's gateway.
        breaker: gives 0 while the breaker is closed, 1 while half open, 2 while open.
        activity: what the listener is at.
        on_chores: called when there is something of batches or of statistics to do.
    """

    def __init__(
        self,
        url: str,
        gateway: str,
        breaker: Callable[[], int],
        activity: Activity,
        on_chores: Callable[[], None],
    ) -> None:
        self._url = url
        self._gateway = gateway
        self._breaker = breaker
        self._activity = activity
        self._on_chores = on_chores
        self._id = uuid4()
        self._failures = 0

    async def run(self) -> None:
        """What fails is logged and tried again, and keeps nobody from work."""
        while True:
            try:
                async with database.connect(self._url, NAME) as connection:
                    await self._beat(connection)
            except psycopg.Error as error:
                seconds = min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(self._failures, 10))
                self._failures += 1
                _log.warning("heartbeat: %s; trying again in %.0f s", first_line(error), seconds)
                await asyncio.sleep(seconds)

    async def _beat(self, connection: database.Connection) -> None:
        try:
            while True:
                if await self._report(connection):
                    self._on_chores()
                self._failures = 0
                await asyncio.sleep(BEAT_SECONDS)
        except asyncio.CancelledError:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await connection.execute(_FORGET, [self._id])
            raise

    async def _report(self, connection: database.Connection) -> bool:
        name, seconds = self._activity.now()
        breaker = BREAKER_STATES[self._breaker()]
        host, version = socket.gethostname(), darkpearl.__version__
        told = [self._id, host, os.getpid(), version, self._gateway, breaker, name, seconds]
        (row,) = await database.fetch_all(connection, _REPORT, told)
        return bool(row["has_chores"])
