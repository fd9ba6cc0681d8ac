"""The listener at work: it drives the engine and decides nothing.

advance() hands out external requests as leases, the gateway answers them with no transaction open,
settle() takes the answers.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from darkpearl.database import PoolerError
from darkpearl.gateways import Gateway
from darkpearl.listener.bell import Bell
from darkpearl.listener.breaker import Breaker, see_again
from darkpearl.listener.calls import TURN, Calls, Operation, Request, Settlement
from darkpearl.listener.chores import beside
from darkpearl.listener.engine import Engine
from darkpearl.listener.heartbeat import Activity
from darkpearl.listener.housekeeping import Housekeeping
from darkpearl.listener.limits import Limits
from darkpearl.listener.pace import Pace, first_line
from darkpearl.listener.sessions import all_of
from darkpearl.telemetry import metrics

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

AGAIN_SECONDS = 1.0
"""Until an answer is brought again that could not be recorded for another session's lock."""
PEERS_SECONDS = 1.0
"""How often a busy listener looks for peers."""
Pass = tuple[int, list[Request]]
"""The outcome of an advance or a settle: how many sagas it was about, and the calls it asks for."""
Passes = dict[str, asyncio.Task[Pass]]
"""The passes under way, an advance and a settle at most."""
_log = logging.getLogger(__name__)


class Listener:
    """One worker. `run()` it until `stop()` lets it finish, or `kill()` ends it at once.

    Args:
        url: the database, directly: a pooler loses locks, notifications and prepared statements.
        gateway: asked for payments; closed at the end.
        limits: how much it takes on.
        operations: asked for what saga types of one's own need from outside, by name.
        tracing: makes spans of passes and calls; None: no traces.
    """

    def __init__(
        self,
        url: str,
        gateway: Gateway,
        limits: Limits,
        operations: Mapping[str, Operation] | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._url = url
        self._limits = limits
        self._tracing = tracing
        self._gateway = metrics.observed(gateway)
        self._breaker = Breaker(limits.call_failures)
        self._calls = Calls(
            self._gateway,
            self._breaker,
            concurrency=limits.concurrency,
            timeout_seconds=limits.call_seconds,
            operations=operations,
            tracing=tracing,
        )
        # So many at once that neither a call nor a pass waits for the next batch.
        self._most_outstanding = 2 * max(limits.batch_size, limits.concurrency)
        self._wake = self._calls.answered
        self._unasked: list[Request] = []
        self._unsettled: list[Settlement] = []
        self._outstanding = self._settling = self._claims = 0
        self._activity = Activity()
        self._pace = Pace(limits.batch_size)
        self._told = metrics.Working(lambda: self._breaker.state, lambda: self._pace.failures)
        self._engine: Engine
        self._complained: set[tuple[str, str]] = set()
        self._main: asyncio.Task[None] | None = None
        self._stopping = self._has_peers = self._wants_claim = False
        self._housekeeping = Housekeeping(limits.idempotency_key_hours)
        self._counted_peers_at = float("-inf")
        self._limit = 0
        """Of the latest claim: if it found as many, there may be more."""
        self._crowded: Mapping[str, int] = {}
        """Of the latest claim: the warehouses that it leaves out."""
        self._latest = ""

    async def run(self) -> None:
        """Work until told to stop. Outlives restarts of the database, ends with PoolerError."""
        aside = beside(self._url, self._gateway.name, lambda: self._breaker.state, self._activity)
        seeing = see_again(self._gateway, self._breaker)
        calling, *others = map(asyncio.create_task, (self._calls.run(), aside, seeing))
        self._main = asyncio.create_task(self._work_through_outages())
        try:
            await asyncio.wait([self._main, calling], return_when=asyncio.FIRST_COMPLETED)
            if self._main.done():
                with contextlib.suppress(asyncio.CancelledError):
                    self._main.result()
        finally:
            for task in (tasks := (self._main, calling, *others)):
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await self._gateway.close()
            self._told.ends()
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
        while not self._stopping:
            try:
                async with (
                    Engine.connect(self._url, self._tracing, self._complained) as self._engine,
                    Bell.connect(self._url) as bell,
                ):
                    await self._work(bell)
            except psycopg.Error as error:
                metrics.outages.labels(error.sqlstate or "none").inc()
                if self._pace.halve(error):
                    continue
                await self._back_off(f"database: {first_line(error)}", error)
            except PoolerError:
                raise
            except Exception:  # noqa: BLE001 - a defect of ours ends no listener; leases run out
                _log.exception("the listener stumbled")
                await self._back_off("begins anew")

    async def _back_off(self, reason: str, error: psycopg.Error | None = None) -> None:
        activity = self._activity.during(f"backing off: {reason}")
        with activity, contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped(), self._pace.failed(reason, error))

    async def _work(self, bell: Bell) -> None:
        while not self._stopping:
            await self._housekeeping.keep(self._engine)
            await bell.correct_waits()
            if self._breaker.state:
                await self._look_for_peers(bell)
            if not bell.holds_idle_lock:
                await self._work_off(bell)
                await bell.take_idle_lock()
            # The work that the bell rang for; or the last look, after which every writer rings.
            await self._work_off(bell)
            if bell.holds_idle_lock and not self._stopping:
                # The limit is found out now: an answer that changes it ends the sleep.
                claim_early = partial(self._claim_early, self._claim_limit())
                if not await bell.wait(self._wake, self._limits.poll_seconds, claim_early):
                    await bell.release_idle_lock()  # taking it anew says whether it hears
        await self._finish()

    async def _work_off(self, bell: Bell) -> None:
        """Settle what is answered and claim what is ready, until there is neither.

        Both at once, each in a session of its own and at its own pace; in turns when there are
        peers. Writers go on ringing until there is more than one claim takes: for an order now and
        then, releasing the idle lock and taking it again would be a large part of the work.
        """
        self._wants_claim = not self._stopping
        self._claims = 0
        passes: Passes = {}
        try:
            while (ended := await self._go_on(passes)) is not None:
                for kind, (count, requests) in ended.items():
                    self._unasked += requests
                    await self._take_note(kind, count, bell)
        except asyncio.CancelledError:
            for task in passes.values():
                task.cancel()
            raise
        finally:
            await all_of(*passes.values())

    async def _go_on(self, passes: Passes) -> dict[str, Pass] | None:
        """Start the passes that are due, wait a while, and give those that have ended.

        Returns:
            None when there is nothing left to do.
        """
        due = self._due(passes)
        if len(due) == 1 and not passes and self._nothing_can_come:
            # It needs no task, which would be two turns of the loop.
            ((kind, each),) = due.items()
            return {kind: await each}
        for kind, each in due.items():
            passes[kind] = asyncio.create_task(each)
        if self._answers_come:
            await asyncio.sleep(0)  # callers whose gateway answers at once have theirs soon
        elif passes:
            await self._one_of(passes)
        else:
            return None
        ended = [kind for kind, task in passes.items() if task.done()]
        return {kind: passes.pop(kind).result() for kind in ended}

    async def _take_note(self, kind: str, count: int, bell: Bell) -> None:
        """Learn from a pass that has ended if a claim is to follow, and if times are busy."""
        was_full = count == self._limit
        if kind == "advance" and count:
            self._claims += 1
            if self._claims > 1 or was_full:
                await self._be_busy(bell)
        # A claim that found less than its limit is followed by the next when an answer is settled:
        # orders that come until then are one batch, and no core is taken from the settling.
        self._wants_claim = not self._stopping and (kind == "settle" or was_full)

    async def _be_busy(self, bell: Bell) -> None:
        """There is more than one claim takes: writers need not ring, and peers may be at it."""
        if bell.holds_idle_lock:
            await bell.release_idle_lock()
        await self._look_for_peers(bell)
        await bell.correct_waits()

    async def _look_for_peers(self, bell: Bell) -> None:
        if time.monotonic() - self._counted_peers_at > PEERS_SECONDS:
            self._counted_peers_at = time.monotonic()
            self._has_peers = await bell.has_peers()

    def _due(self, passes: Passes) -> dict[str, Coroutine[Any, Any, Pass]]:
        """A settle if there are answers, and an advance if one is wanted and there is room.

        A listener with peers starts one when the other is done: with more passes at once than there
        are processors, each has to fetch again what the others have pushed out of their caches, and
        waits for the others' shelves.

        Args:
            passes: those under way.
        """
        due: dict[str, Coroutine[Any, Any, Pass]] = {}
        self._wake.clear()
        self._unsettled += self._calls.take_answers()
        if (limit := self._limit_now(passes)) > 0:
            self._limit = limit
            self._latest = "advance"
            due["advance"] = self._advance(limit)
        self._ask()
        if self._answers_are_due and self._may_start("settle", {*passes, *due}):
            self._latest = "settle"
            due["settle"] = self._settle()
        return due

    def _limit_now(self, passes: Passes) -> int:
        """How many sagas the claim that is due takes at most; 0 or less: none is due."""
        if self._engine.has_begun:
            return self._limit
        settles_first = self._latest == "advance" and self._has_peers and self._answers_are_due
        if settles_first or not self._wants_claim or not self._may_start("advance", passes):
            return 0
        return self._claim_limit()

    def _may_start(self, kind: str, passes: Collection[str]) -> bool:
        return not passes if self._has_peers else kind not in passes

    def _claim_limit(self) -> int:
        """How many sagas may be claimed now. What is being settled is on its way out.

        No more than the gateway gets to before leases run out. Of crowded warehouses none are
        claimed, and what waits of them takes nothing from what the others may have. When the
        gateway doesn't answer this listener, what peers may have better luck with is left to
        them, but for one now and then, to see.
        """
        if self._breaker.state and self._has_peers:
            return int(not (self._breaker.open or self._outstanding))
        self._crowded = self._calls.crowded()
        waits = min(sum(self._crowded.values()), self._most_outstanding)
        return min(
            self._pace.size,
            self._most_outstanding - self._outstanding + self._settling + waits,
            self._calls.capacity(self._calls.queue - waits),
        )

    def _claim_early(self, limit: int) -> None:
        """The bell rings: have a claim begin, before all that follows here."""
        if limit > 0 and not (self._stopping or self._engine.has_begun):
            with contextlib.suppress(psycopg.Error):  # the next use of the session tells of it
                self._engine.begin_advance(limit, self._crowded)
                self._limit = limit
                os.sched_yield()  # The server's session may wait behind us for this processor.

    @property
    def _answers_are_due(self) -> bool:
        """There are answers to settle: a batch of them, or all that there will be soon."""
        full = len(self._unsettled) >= self._limits.batch_size
        return full or (bool(self._unsettled) and not self._answers_come)

    @property
    def _answers_come(self) -> bool:
        """Answers come as fast as they are asked for. All of them are one batch then."""
        return bool(self._unasked or self._calls.queue) and not self._calls.held_up

    @property
    def _nothing_can_come(self) -> bool:
        """No answer is outstanding, and none is about to be."""
        return not self._answers_come and self._outstanding == len(self._unsettled)

    def _ask(self) -> None:
        """Hand requests over to the callers: some at a time while they answer them at once.

        So that a pass which ends meanwhile is followed by the next before all are answered.
        """
        some = len(self._unasked) if self._calls.held_up else TURN
        for request in self._unasked[:some]:
            self._calls.put(request)
        del self._unasked[:some]

    async def _one_of(self, passes: Passes) -> None:
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

    async def _advance(self, limit: int) -> Pass:
        """Claim so many sagas at most; or wait for the claim that has begun already."""
        self._pace.tried = limit
        with self._activity.during("advance"):
            claimed, requests = await self._engine.advance(limit, self._crowded)
        self._pace.done(claimed)
        self._outstanding += len(requests)
        return claimed, await self._engine.with_traces(requests)

    async def _settle(self) -> Pass:
        """Bring a batch of answers."""
        size = self._pace.size
        answers, self._unsettled = self._unsettled[:size], self._unsettled[size:]
        self._settling = self._pace.tried = len(answers)
        try:
            with self._activity.during("settle"):
                requests, held = await self._engine.settle(answers)
            self._pace.done(len(answers))
        except BaseException:
            self._unsettled += answers
            raise
        finally:
            self._settling = 0
        if held:
            again = [each for each in answers if each.saga_id in held]
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._bring_again, again)
            answers = [each for each in answers if each.saga_id not in held]
        self._outstanding += len(requests) - len(answers)
        return len(answers), await self._engine.with_traces(requests)

    def _bring_again(self, answers: list[Settlement]) -> None:
        """Answers that another session's lock kept from being recorded: perhaps it is gone."""
        self._unsettled += answers
        self._wake.set()

    async def _finish(self) -> None:
        """Settle what is still out, within the deadline."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.shutdown_seconds):
                if self._engine.has_begun:
                    _, requests = await self._advance(self._limit)
                    self._unasked += requests
                while self._outstanding:
                    self._wake.clear()
                    self._unsettled += self._calls.take_answers()
                    if self._unsettled:
                        _, requests = await self._settle()
                        self._unasked += requests
                        continue
                    self._ask()
                    await (asyncio.sleep(0) if self._answers_come else self._wake.wait())

    async def _stopped(self) -> None:
        while not self._stopping:
            self._wake.clear()
            await self._wake.wait()
