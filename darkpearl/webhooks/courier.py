"""The courier of one endpoint: what is sent when, and what is written down of it."""

import asyncio
import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from darkpearl.webhooks.sender import CONCURRENCY, Sender
from darkpearl.webhooks.turns import Turns

BATCH = 100
"""Webhooks whose outcome is written down together, at most: so many may be sent again after a kill.
An endpoint that takes long is given fewer at a time, so that what is read is sent soon."""
QUICK_SECONDS = 1.0
"""An endpoint that has taken less for a batch is given a larger one."""
LONGEST_PAUSE_SECONDS = 300.0
"""Between two tries of an endpoint to which nothing comes through."""

Fetch = Callable[[str, dict[str, Any], float], Awaitable[list[dict[str, Any]]]]
"""The rows of a statement, a transaction of its own, which may wait for others so many seconds."""

_DUE = "select due_webhooks(%(id)s, %(limit)s) as events"
_NEXT = "select events, place, next from next_webhooks(%(id)s, %(upto)s, %(limit)s)"
_SETTLE = (
    "select * from settle_webhooks(%(id)s, %(version)s, %(next)s, %(results)s, %(came_through)s,"
    " %(any)s, %(is_gone)s)"
)
_log = logging.getLogger(__name__)


class Event(Struct):
    """A webhook to be sent."""

    event_id: int
    subject: UUID
    body: str
    waits: bool
    """One of its subject has failed before it."""


class _Outcome:
    """What became of some webhooks."""

    def __init__(self) -> None:
        self.came_through: list[int] = []
        self.failed: list[tuple[Event, str]] = []
        self.untried: list[Event] = []
        self.is_gone = False

    @property
    def is_down(self) -> bool:
        """So many have failed and none came through that there is no use in going on."""
        return self.is_gone or (not self.came_through and len(self.failed) >= CONCURRENCY)


class Courier:
    """Sends one endpoint what it is to be told, for as long as it is switched on.

    Args:
        endpoint_id: whose.
        version: of it; what comes later is another courier's.
        url: where that is, for the log.
        sender: the way to it.
        fetch: asks the database.
        starts: what starts to be sent, one webhook in each round of the event loop: a round that
            many are started in is long, and every webhook takes several.
        is_failing: nothing came through when it was last tried.
    """

    def __init__(
        self,
        endpoint_id: UUID,
        version: int,
        url: str,
        sender: Sender,
        fetch: Fetch,
        starts: Turns,
        *,
        is_failing: bool,
    ) -> None:
        self._id = endpoint_id
        self._version = version
        self._url = url
        self._sender = sender
        self._fetch = fetch
        self._starts = starts
        self._failures = int(is_failing)
        self._upto = 0
        self._is_due = True
        """Something that has failed may be due."""
        self._batch = CONCURRENCY
        self._patience = 0.0
        """The seconds that the last webhooks took: for so long others may go first."""
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()

    def wake(self, upto: int, *, is_due: bool = False) -> None:
        """There may be something to do: of the feed up to an id, or of what has failed."""
        self._upto = upto
        self._is_due |= is_due
        self._woken.set()

    def stop(self) -> None:
        """End when what is in hand is sent and written down."""
        self._stopping.set()
        self._woken.set()

    async def run(self) -> None:
        """Send until stopped, or switched off.

        Raises:
            DarkPearlError: the database is away.
        """
        try:
            while not self._stopping.is_set():
                self._woken.clear()
                outcome = await self._round()
                if outcome is None:
                    await self._woken.wait()
                elif outcome.came_through:
                    self._failures = 0
                elif outcome.failed:
                    self._failures += 1
                    await self._pause()
        finally:
            await self._sender.close()

    async def _pause(self) -> None:
        """Wait before the next try, the longer the more have failed; or until stopped."""
        longest = min(2.0 ** min(self._failures - 1, 20), LONGEST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest * random.uniform(0.5, 1)):  # noqa: S311
                await self._stopping.wait()

    async def _round(self) -> _Outcome | None:
        """Try what has failed and is due, else what is new; None: there is neither.

        Who fails is tried with one at a time.
        """
        asked = {"id": self._id, "upto": self._upto, "limit": 1 if self._failures else self._batch}
        if self._is_due:
            self._is_due = False
            (due,) = await self._fetch(_DUE, asked, self._patience)
            if due["events"]:
                self._is_due = True  # what has waited for these comes next
                outcome = await self._send(msgspec.convert(due["events"], list[Event]))
                await self._settle(outcome, outcome.failed, came_through=outcome.came_through)
                return outcome
        (part,) = await self._fetch(_NEXT, asked, self._patience)
        if part["next"] == part["place"]:
            return None
        outcome = await self._send(msgspec.convert(part["events"], list[Event]))
        results = [*outcome.failed, *((event, None) for event in outcome.untried)]
        await self._settle(outcome, results, next=part["next"])
        return outcome

    async def _send(self, events: list[Event]) -> _Outcome:
        """Send webhooks: those of a subject one after the other, some subjects at once."""
        began_at = time.monotonic()
        outcome = _Outcome()
        subjects: dict[UUID, list[Event]] = defaultdict(list)
        for event in events:
            subjects[event.subject].append(event)
        room = asyncio.Semaphore(CONCURRENCY)
        await asyncio.gather(
            *(self._send_in_order(each, room, outcome) for each in subjects.values())
        )
        self._patience = time.monotonic() - began_at
        is_quick = self._patience < QUICK_SECONDS
        self._batch = (
            min(self._batch * 2, BATCH) if is_quick else max(self._batch // 2, CONCURRENCY)
        )
        return outcome

    async def _send_in_order(
        self, events: list[Event], room: asyncio.Semaphore, outcome: _Outcome
    ) -> None:
        """Send the webhooks of a subject, up to one that fails."""
        for at, event in enumerate(events):
            async with room:
                if event.waits or outcome.is_down:
                    outcome.untried += events[at:]
                    return
                async with self._starts.turn(self._patience):
                    await asyncio.sleep(0)
                sent = await self._sender.send(event.event_id, event.body)
            if sent.error is None:
                outcome.came_through.append(event.event_id)
                continue
            _log.info("webhook %s to %s: %s", event.event_id, self._url, sent.error)
            outcome.is_gone |= sent.is_gone
            outcome.failed.append((event, sent.error))
            outcome.untried += events[at + 1 :]
            return

    async def _settle(
        self,
        outcome: _Outcome,
        results: list[tuple[Event, str | None]] | list[tuple[Event, str]],
        *,
        came_through: list[int] | None = None,
        next: int | None = None,  # noqa: A002 - as SQL has it
    ) -> None:
        """Write down what became of webhooks."""
        told = [
            {"event_id": each.event_id, "subject": each.subject, "body": each.body, "error": error}
            for each, error in results
        ]
        (settled,) = await self._fetch(
            _SETTLE,
            {
                "id": self._id,
                "version": self._version,
                "next": next,
                "results": msgspec.json.encode(told).decode(),
                "came_through": came_through or [],
                "any": bool(outcome.came_through),
                "is_gone": outcome.is_gone,
            },
            self._patience,
        )
        if settled["off_because"]:
            _log.warning("webhooks to %s are switched off: %s", self._url, settled["off_because"])
        if settled["off_because"] or not settled["counts"]:
            self.stop()
