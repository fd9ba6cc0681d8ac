"""The listener at work: it drives the engine and decides nothing.

advance() hands out external requests as leases, the gateway answers them with no transaction open,
settle() takes the answers.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Collection, Coroutine, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from darkpearl.config import Settings
from darkpearl.gateways import Gateway
from darkpearl.gateways.make import make_gateway
from darkpearl.listener.bell import Bell
from darkpearl.listener.calls import TURN, Breaker, Calls, Request, Settlement
from darkpearl.listener.sessions import Begun, Sessions
from darkpearl.telemetry import metrics

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

NAME = "darkpearl listener"
HOUSEKEEPING_SECONDS = 3600.0
PEERS_SECONDS = 1.0
"""How often a busy listener looks whether there are others."""
FORGET_BATCH = 10_000
"""Idempotency keys that one statement of housekeeping removes at most."""
LONGEST_BACKOFF_SECONDS = 5.0
Pass = tuple[int, list[Request]]
"""The outcome of an advance or a settle: how many sagas it was about, and the calls it asks for."""
_log = logging.getLogger(__name__)
_STATEMENTS = {
    "advance": "select claimed, requests::text from advance($1)",
    "settle": "select requests::text, saga_id from settle($1)",
}
_requests = msgspec.json.Decoder(list[Request], strict=False)
_encoder = msgspec.json.Encoder()
_NO_SPAN = contextlib.nullcontext()


class Listener:
    """One worker. `run()` it until `stop()` lets it finish, or `kill()` ends it at once."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        gateway: Gateway | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._url = url
        self._gateway = metrics.observed(gateway or make_gateway(settings))
        self._breaker = Breaker(settings.payment_failures)
        self._calls = Calls(
            self._gateway,
            self._breaker,
            concurrency=settings.payment_concurrency,
            timeout_seconds=settings.payment_timeout_seconds,
            tracing=tracing,
        )
        # So many at once that neither a call nor a pass waits for the next batch.
        self._most = 2 * max(settings.batch_size, settings.payment_concurrency)
        self._wake = self._calls.answered
        self._unasked: list[Request] = []
        self._unsettled: list[Settlement] = []
        # Looking them up in the registry takes longer than measuring.
        self._timers = {call: metrics.passes.labels(call) for call in ("advance", "settle")}
        self._sessions = Sessions([])
        self._begun: Begun | None = None
        self._outstanding = 0
        self._settling = 0
        self._asked = 0
        self._stopping = False
        self._main: asyncio.Task[None] | None = None
        self._housekept = float("-inf")
        self._has_peers = False
        self._looked = float("-inf")
        self._latest = ""

    async def run(self) -> None:
        """Work until told to stop. Outlives restarts of the database."""
        calling = asyncio.create_task(self._calls.run())
        self._main = asyncio.create_task(self._work_through_outages())
        try:
            await asyncio.wait([self._main, calling], return_when=asyncio.FIRST_COMPLETED)
            if self._main.done():
                with contextlib.suppress(asyncio.CancelledError):
                    self._main.result()
        finally:
            self._main.cancel()
            calling.cancel()
            ended = await asyncio.gather(self._main, calling, return_exceptions=True)
            await self._gateway.close()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    def stop(self) -> None:
        """Claim nothing more, finish what is in hand within the deadline, then end."""
        self._stopping = True
        self._wake.set()

    def kill(self) -> None:
        """End now. Nothing is lost: leases run out and are handed out again."""
        if self._main:
            self._main.cancel()

    async def _work_through_outages(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                async with (
                    Sessions.connect(self._url, NAME, _STATEMENTS, count=2) as self._sessions,
                    Bell.connect(self._url) as bell,
                ):
                    failures, self._begun = 0, None
                    await self._work(bell)
            except psycopg.Error as error:
                failures += 1
                metrics.outages.inc()
                seconds = min(LONGEST_BACKOFF_SECONDS, 0.1 * 2 ** min(failures, 10))
                seconds *= 0.5 + random.random() / 2  # noqa: S311 - jitter
                _log.warning("database: %s; trying again in %.1f s", _first_line(error), seconds)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped(), seconds)

    async def _work(self, bell: Bell) -> None:
        while not self._stopping:
            await self._keep_house()
            if not bell.holds_idle_lock:
                await self._work_off(bell)
                await bell.take_idle_lock()
            # What the bell rang for; or the last look, after which every writer rings.
            await self._work_off(bell)
            if bell.holds_idle_lock and not self._stopping:
                # How much to claim is found out now: an answer that changes it ends the sleep.
                hurry = partial(self._hurry, 0 if self._breaker.open else self._room())
                if not await bell.wait(self._wake, self._settings.poll_seconds, hurry):
                    await (
                        bell.release_idle_lock()
                    )  # to close it anew, which finds out whether it hears
        await self._finish()

    def _hurry(self, room: int) -> None:
        """The bell rings: have a claim begin, before all that follows here."""
        if room > 0 and not (self._stopping or self._begun):
            with contextlib.suppress(psycopg.Error):  # whoever uses the session next hears of it
                self._begun = self._sessions.begin("advance", b"%d" % room)
                self._asked = room
                os.sched_yield()  # The server's session may wait behind us for this processor.

    async def _work_off(self, bell: Bell) -> None:
        """Settle what is answered and claim what is ready, until there is neither.

        Both at once, each in a session of its own and at its own pace; in turns when there are
        other listeners. Writers go on ringing until there is more than one claim takes: for an
        order now and then, releasing the idle lock and taking it again is half of the work.
        """
        wanted = not self._stopping
        claims = 0
        passes: dict[str, asyncio.Task[Pass]] = {}
        done: dict[str, Pass] = {}
        try:
            while True:
                for kind, (count, requests) in done.items():
                    self._unasked += requests
                    if kind == "advance" and count:
                        claims += 1
                        if claims > 1 or count == self._asked:
                            await self._be_busy(bell)
                    # Who found less than there was room for looks again when an answer is settled:
                    # what has come until then is one batch, and no core is taken from the settling.
                    wanted = not self._stopping and (kind == "settle" or count == self._asked)
                done = {}
                due = self._due(passes, wanted=wanted)
                if len(due) == 1 and not passes and not self._coming and self._all_is_answered:
                    # Nothing can come up meanwhile: it needs no task, which for an order now and
                    # then are two turns of the loop.
                    ((kind, each),) = due.items()
                    done[kind] = await each
                    continue
                passes |= {kind: asyncio.create_task(each) for kind, each in due.items()}
                if self._coming:
                    await asyncio.sleep(0)  # callers whose gateway answers at once have theirs soon
                elif passes:
                    await self._one_of(passes)
                else:
                    return
                ended = [kind for kind, task in passes.items() if task.done()]
                done = {kind: passes.pop(kind).result() for kind in ended}
        except asyncio.CancelledError:
            for task in passes.values():
                task.cancel()
            raise
        finally:
            await _all(*passes.values())

    def _due(
        self, passes: Collection[str], *, wanted: bool
    ) -> dict[str, Coroutine[Any, Any, Pass]]:
        """A settle if there are answers, and an advance if one is wanted and has room.

        Who isn't alone starts one when the other is done: with more passes at once than there are
        processors, each has to fetch again what the others have pushed out of their caches, and
        waits for the others' shelves.

        Args:
            passes: those under way.
            wanted: whether there may be something to claim.
        """
        due: dict[str, Coroutine[Any, Any, Pass]] = {}
        self._wake.clear()
        self._unsettled += self._calls.take_answers()
        if self._latest == "advance" and self._has_peers and self._are_answered():
            wanted = False
        room = self._asked if self._begun else 0
        if wanted and not self._begun and self._may_start("advance", passes):
            room = self._room()
        if room > 0:
            self._asked = room
            self._latest = "advance"
            due["advance"] = self._advance(room)
        self._ask()
        if self._are_answered() and self._may_start("settle", {*passes, *due}):
            self._latest = "settle"
            due["settle"] = self._settle()
        return due

    def _may_start(self, kind: str, passes: Collection[str]) -> bool:
        return kind not in passes if not self._has_peers else not passes

    def _are_answered(self) -> bool:
        """Whether there are answers to settle: a batch of them, or all that there will be soon."""
        full = len(self._unsettled) >= self._settings.batch_size
        return full or (bool(self._unsettled) and not self._coming)

    @property
    def _all_is_answered(self) -> bool:
        """Whether no answer is outstanding."""
        return self._outstanding == len(self._unsettled)

    @property
    def _coming(self) -> bool:
        """Whether answers come as fast as they are asked for. All of them are one batch then."""
        return bool(self._unasked or self._calls.queue) and not self._calls.held_up

    def _ask(self) -> None:
        """Hand requests over to the callers: some at a time while they answer them at once.

        So that a pass which ends meanwhile is followed by the next before all are answered.
        """
        some = len(self._unasked) if self._calls.held_up else TURN
        for request in self._unasked[:some]:
            self._calls.put(request)
        del self._unasked[:some]

    async def _be_busy(self, bell: Bell) -> None:
        """There is more than one claim takes: writers need not ring, and others may be at it."""
        if bell.holds_idle_lock:
            await bell.release_idle_lock()
        if time.monotonic() - self._looked > PEERS_SECONDS:
            self._looked = time.monotonic()
            self._has_peers = await bell.has_peers()

    async def _one_of(self, passes: dict[str, asyncio.Task[Pass]]) -> None:
        """Return when a pass is done, or there are answers and nobody settles."""
        wanted: list[asyncio.Future[Any]] = [*passes.values()]
        answered = None
        if "settle" not in passes and self._outstanding:
            answered = asyncio.ensure_future(self._wake.wait())
            wanted.append(answered)
        try:
            if len(wanted) == 1:  # with two turns of the loop less than wait() takes
                await wanted[0]
            else:
                await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if answered:
                answered.cancel()

    def _room(self) -> int:
        """How many may be claimed now. What is being settled is on its way out.

        None while requests wait because the gateway takes its time: whoever is killed leaves as
        little behind as can be. No more than the gateway gets to before leases run out, else a
        slow one would use up the tries of orders that it was never asked about.
        """
        if self._calls.held_up and self._calls.queue > self._settings.payment_concurrency:
            return 0
        if self._breaker.half_open:
            return 1 - self._outstanding
        return min(
            self._settings.batch_size,
            self._most - self._outstanding + self._settling,
            self._calls.room,
        )

    async def _advance(self, limit: int) -> Pass:
        """Claim so many sagas at most; or wait for the claim that has begun already."""
        if seconds := self._breaker.take_pause():
            await self._sessions.fetch("select pause_external_steps(%s::numeric)", seconds)
        counts = {"claimed": 0}
        with self._span("advance", counts), self._timers["advance"].time():
            begun, self._begun = self._begun, None
            rows = await (begun or self._sessions.begin("advance", b"%d" % limit))()
            counts["claimed"] = sum([int(claimed or 0) for claimed, _ in rows])
        return counts["claimed"], await self._requests([requests for _, requests in rows])

    async def _settle(self) -> Pass:
        """Bring a batch of answers."""
        size = self._settings.batch_size
        answers, self._unsettled = self._unsettled[:size], self._unsettled[size:]
        self._settling = len(answers)
        try:
            counts = {"answers": len(answers)}
            with self._span("settle", counts), self._timers["settle"].time():
                rows = await self._sessions.call("settle", _encoder.encode(answers))
        except BaseException:
            self._unsettled += answers
            raise
        finally:
            self._settling = 0
        self._outstanding -= len(answers)
        for _, stale in rows:
            if stale:
                # A webhook was faster, or the lease had run out.
                _log.info("saga %s: answer refused, it has moved on", stale.decode())
        return len(answers), await self._requests([requests for requests, _ in rows])

    async def _requests(self, documents: Iterable[bytes | None]) -> list[Request]:
        """The requests in these documents, which are outstanding from here on."""
        requests: list[Request] = []
        for document in documents:
            if document:
                requests += _requests.decode(document)
        self._outstanding += len(requests)
        if self._tracing and requests:
            requests = await self._traced(requests)
        return requests

    async def _traced(self, requests: list[Request]) -> list[Request]:
        """The same requests with the traces that started them; as they are without an answer."""
        try:
            rows = await self._sessions.fetch(
                "select saga_id::text, traceparent from trace_contexts(%s::uuid[])",
                [request.saga_id for request in requests],
            )
        except psycopg.Error as error:
            _log.warning("traces begin anew: %s", _first_line(error))
            return requests
        known: dict[str, str] = dict(rows)
        return [
            msgspec.structs.replace(request, traceparent=known.get(request.saga_id, ""))
            for request in requests
        ]

    def _span(self, call: str, counts: dict[str, int]) -> AbstractContextManager[None]:
        """A span of one transaction, with its counts at the end, if anything is traced."""
        return self._tracing.engine_pass(call, counts) if self._tracing else _NO_SPAN

    async def _finish(self) -> None:
        """Settle what is still out, within the deadline."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_seconds):
                if self._begun:
                    _, self._unasked = await self._advance(self._asked)
                while self._outstanding:
                    self._wake.clear()
                    self._unsettled += self._calls.take_answers()
                    if self._unsettled:
                        _, requests = await self._settle()
                        self._unasked += requests
                        continue
                    self._ask()
                    await (asyncio.sleep(0) if self._coming else self._wake.wait())

    async def _keep_house(self) -> None:
        if time.monotonic() - self._housekept < HOUSEKEEPING_SECONDS:
            return
        for (name,) in await self._sessions.fetch("select ensure_event_partitions()"):
            _log.info("made partition %s", name)
        ((forgotten,),) = await self._sessions.fetch(
            "select forget_idempotency_keys(%s, %s)",
            *(self._settings.idempotency_key_hours, FORGET_BATCH),
        )
        if forgotten < FORGET_BATCH:  # else go on after the next round: sagas don't wait
            self._housekept = time.monotonic()

    async def _stopped(self) -> None:
        while not self._stopping:
            self._wake.clear()
            await self._wake.wait()


async def _all(*calls: Awaitable[Any]) -> list[Any]:
    """Run calls of the database to their ends, then raise the first failure.

    None is cancelled for another's failure: what it may have committed must be heard.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
