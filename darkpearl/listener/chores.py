"""Chores: what a listener does for operators, beside its work and never in the way of it.

It adds up what happened in each minute, and works batches off, bite by bite and at their pace. Its
heartbeat says when there is anything; then it has a session of its own until it is done. Every bite
is a transaction that knows where the last one ended, so any listener may go on with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import psycopg

from darkpearl import database
from darkpearl.listener.heartbeat import Activity, Heartbeat
from darkpearl.listener.pace import first_line
from darkpearl.listener.retention import Retention

NAME = "darkpearl chores"
MINUTES_SECONDS = 10.0
"""How often it looks for minutes to add up while it works batches off, and the longest rest."""
BITE = 50
"""Items of a batch that one transaction sees to, at most."""
_log = logging.getLogger(__name__)


class Chores:
    """`run()` ends only by being cancelled."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._wanted = asyncio.Event()
        self._bite = BITE

    def wake(self) -> None:
        """There is something to do."""
        self._wanted.set()

    async def run(self) -> None:
        """What fails is logged, and done when it is next woken: alone, if it was many."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with database.connect(self._url, NAME) as connection:
                    await work_off(connection, self._bite)
                self._bite = BITE
            except psycopg.Error as error:
                self._bite = 1
                _log.warning("chores: %s; trying again", first_line(error))


async def work_off(connection: database.Connection, bite: int = BITE) -> None:
    """Add up minutes and work batches off until there is nothing left, with rests between.

    Args:
        connection: a listener's.
        bite: items of a batch in one transaction.

    Raises:
        psycopg.Error: of the first that failed.
    """
    minutes_at = float("-inf")
    has_minutes = True
    while True:
        began = time.monotonic()
        if began >= minutes_at:
            (row,) = await database.fetch_all(connection, "select fill_step_minutes() as has_more")
            has_minutes = row["has_more"]
            minutes_at = began if has_minutes else began + MINUTES_SECONDS
        bites = await database.fetch_all(
            connection, "select worked, wait_seconds from work_batches(%s)", [bite]
        )
        if not bites and not has_minutes:
            return
        wait = min(bites[0]["wait_seconds"], MINUTES_SECONDS) if bites and not has_minutes else 0.0
        await asyncio.sleep(max(wait, time.monotonic() - began))


async def beside(url: str, gateway: str, breaker: Callable[[], int], activity: Activity) -> None:
    """All that a listener does beside its work; ends only by being cancelled.

    Args:
        url: the database.
        gateway: the name of the listener's gateway.
        breaker: gives 0 while its breaker is closed, 1 while half open, 2 while open.
        activity: what the listener is at.
    """
    chores = Chores(url)
    heartbeat = Heartbeat(url, gateway, breaker, activity, chores.wake)
    async with asyncio.TaskGroup() as group:
        for each in (heartbeat.run(), chores.run(), Retention(url).run()):
            group.create_task(each)
