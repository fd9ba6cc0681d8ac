"""The service that sends webhooks: one at a time, with a courier for each endpoint."""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from typing import Any
from uuid import UUID

from darkpearl import database
from darkpearl.errors import DarkPearlError, translated
from darkpearl.feed import Horizon
from darkpearl.webhooks.courier import Courier
from darkpearl.webhooks.endpoints import HOME, keep_endpoints
from darkpearl.webhooks.sender import Sender
from darkpearl.webhooks.turns import Turns

NAME = "darkpearl webhooks"
LOOK_SECONDS = 0.2
"""Between two looks at how far the feed can be read."""
ENDPOINTS_SECONDS = 1.0
"""Between two looks at the endpoints; and at the lock, for who waits to take over."""
HOME_SECONDS = 5.0
"""Between two looks of another cell at the endpoints of home."""
HOME_PATIENCE_SECONDS = 10.0
"""How long such a look may take."""
LONGEST_BACKOFF_SECONDS = 30.0

_TAKE_OVER = "select pg_try_advisory_lock(webhooks_lock_key()) as taken, this_cell() as cell"
_TO_DO = "select * from webhooks_to_do()"
_Key = tuple[UUID, int, tuple[str, ...]]
"""An endpoint, its version and its secrets: one that was changed gets another courier."""
_log = logging.getLogger(__name__)


class Webhooks:
    """Sends the feed to the endpoints that are switched on, until stopped.

    Args:
        url: of the database, directly: a pooler loses the lock.
        to_private: addresses that aren't public may be sent to.
        timeout_seconds: how long an endpoint may take for one webhook.
        shutdown_seconds: to finish what is in hand after stop().
    """

    def __init__(
        self,
        url: str,
        *,
        to_private: bool = False,
        timeout_seconds: float = 10.0,
        shutdown_seconds: float = 10.0,
    ) -> None:
        self._url = url
        self._to_private = to_private
        self._timeout_seconds = timeout_seconds
        self._shutdown_seconds = shutdown_seconds
        self._tls = ssl.create_default_context()
        self._stopping = asyncio.Event()
        self._killed = asyncio.Event()
        self._starts = Turns()
        self._cell = HOME
        self._couriers: dict[_Key, tuple[Courier, asyncio.Task[None]]] = {}

    def stop(self) -> None:
        """Finish what is in hand, then end."""
        self._stopping.set()

    def kill(self) -> None:
        """End now."""
        self._stopping.set()
        self._killed.set()

    async def run(self) -> None:
        """Send; where the database is away, come back.

        Raises:
            ConfigError: the address leads through a pooler.
        """
        failures = 0
        while not self._stopping.is_set():
            began_at = time.monotonic()
            try:
                with translated():
                    async with database.connect(self._url, NAME) as connection:
                        await self._serve(connection)
            except DarkPearlError as error:
                failures = (
                    0 if time.monotonic() - began_at > LONGEST_BACKOFF_SECONDS else failures + 1
                )
                pause = min(2.0 ** min(failures, 10) / 4, LONGEST_BACKOFF_SECONDS)
                _log.error("webhooks: %s; trying again", error.__cause__ or error)
                await self._wait(pause * random.uniform(0.5, 1))  # noqa: S311

    async def _serve(self, connection: database.Connection) -> None:
        """Send over a connection that has the lock, or gets it."""
        turns = Turns()

        async def fetch(
            query: str, parameters: dict[str, Any], patience: float = 0.0
        ) -> list[dict[str, Any]]:
            async with turns.turn(patience):
                with translated():
                    return await database.fetch_all(connection, query, parameters)

        while not (taken := (await fetch(_TAKE_OVER, {}))[0])["taken"]:
            if await self._wait(ENDPOINTS_SECONDS):
                return
        self._cell = taken["cell"]
        keeping = asyncio.create_task(self._keep_endpoints())
        horizon = Horizon()
        due_at = float("-inf")
        try:
            while not self._stopping.is_set():
                if time.monotonic() >= due_at:
                    due_at = time.monotonic() + ENDPOINTS_SECONDS
                    endpoints = await fetch(_TO_DO, {})
                    self._assign(endpoints, fetch)
                    due = {each["id"] for each in endpoints if each["is_due"]}
                    behind = {each["id"] for each in endpoints if each["place"] < horizon.id}
                    self._wake(due | behind, horizon.id, due)
                if self._couriers and horizon.see((await fetch(*horizon.look))[0]):
                    self._wake({endpoint_id for endpoint_id, *_ in self._couriers}, horizon.id)
                await self._wait(LOOK_SECONDS if self._couriers else ENDPOINTS_SECONDS)
        finally:
            keeping.cancel()
            await self._dismiss()

    async def _keep_endpoints(self) -> None:
        """Send to the endpoints of home as well; while it is away, to those that are known."""
        failed = False
        while self._cell != HOME:
            try:
                async with asyncio.timeout(HOME_PATIENCE_SECONDS):
                    await keep_endpoints(self._url, NAME)
                failed = False
            except (DarkPearlError, TimeoutError) as error:
                if not failed:  # which is told once
                    why = error.__cause__ or str(error) or "no answer"
                    _log.warning("webhooks: the endpoints of home can't be read: %s", why)
                failed = True
            await asyncio.sleep(HOME_SECONDS)

    def _assign(self, endpoints: list[dict[str, Any]], fetch: Any) -> None:
        """Give each endpoint a courier, and take leave of those that are not needed any more.

        Raises:
            DarkPearlError: what a courier has ended with.
        """
        wanted: dict[_Key, dict[str, Any]] = {
            (each["id"], each["version"], tuple(each["secrets"])): each for each in endpoints
        }
        for key, (courier, task) in list(self._couriers.items()):
            if key not in wanted:
                courier.stop()
            if task.done():
                del self._couriers[key]
                task.result()
        busy = {endpoint_id for endpoint_id, *_ in self._couriers}
        for key, each in wanted.items():
            if each["id"] not in busy:  # the one before sends what it has in hand first
                sender = Sender(
                    each["url"],
                    each["secrets"],
                    self._tls,
                    timeout_seconds=self._timeout_seconds,
                    to_private=self._to_private,
                    cell=f"@{self._cell}" if self._cell != HOME else "",
                )
                courier = Courier(
                    *(each["id"], each["version"], each["url"], sender, fetch, self._starts),
                    is_failing=each["is_failing"],
                )
                self._couriers[key] = courier, asyncio.create_task(courier.run())

    def _wake(
        self, endpoint_ids: set[UUID], upto: int, due: set[UUID] | frozenset[UUID] = frozenset()
    ) -> None:
        for (endpoint_id, *_), (courier, _task) in self._couriers.items():
            if endpoint_id in endpoint_ids:
                courier.wake(upto, is_due=endpoint_id in due)

    async def _dismiss(self) -> None:
        """Have all couriers end: with what they have in hand, or, killed or too slow, without."""
        tasks = [task for _, task in self._couriers.values()]
        for courier, _ in self._couriers.values():
            courier.stop()
        self._couriers.clear()
        if not tasks:
            return
        killed = asyncio.ensure_future(self._killed.wait())
        ended = asyncio.ensure_future(asyncio.wait(tasks))
        await asyncio.wait(
            [killed, ended], timeout=self._shutdown_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for each in (*tasks, killed, ended):
            each.cancel()
        await asyncio.gather(*tasks, killed, ended, return_exceptions=True)

    async def _wait(self, seconds: float) -> bool:
        """Wait so long, or until stopped; says whether that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()
