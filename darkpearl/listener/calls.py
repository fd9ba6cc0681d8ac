"""Calls: asking the gateway, so many at once, and not at all while it is down.

No transaction is open here, and nothing is decided: a call that fails is an unknown answer, and
the engine says what follows from it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from darkpearl.gateways import Answer, Call, Gateway

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

TURN = 250
"""Answers that come without waiting, before others have their turn."""
REMEMBERED_CALLS = 16
SHORTEST_CALL_SECONDS = 1e-6
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True):
    """An external request that advance() or settle() has committed to.

    Attributes:
        saga_id: whose request it is.
        lease_token: fencing token; the answer is refused when the saga has moved on since.
        attempt: 1 for the first try of a step; later ones first look what became of those before.
        timeout_seconds: how long the lease lasts.
        request: what goes to the gateway.
        traceparent: W3C trace context that started the saga, when that is known and wanted.
    """

    saga_id: str
    lease_token: int
    attempt: int
    timeout_seconds: float
    request: Call
    traceparent: str = ""


class Settlement(msgspec.Struct, frozen=True):
    """One element of what settle() takes."""

    saga_id: str
    lease_token: int
    answer: Answer


class Breaker:
    """A circuit breaker: opens after so many failures in a row, closes with the first success.

    Open, it asks for a pause of all calls, longer with each failed try to close it. Half open, it
    lets one call through to see.
    """

    def __init__(self, failures: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = failures
        self._clock = clock
        self._in_a_row = 0
        self._pause_seconds = 0.0
        self._open_until = 0.0
        self._asked = True

    @property
    def open(self) -> bool:
        """No call is to be made."""
        return self._clock() < self._open_until

    @property
    def half_open(self) -> bool:
        """One call is to be made, to see."""
        return self._pause_seconds > 0 and not self.open

    def succeeded(self) -> None:
        """The gateway answered."""
        self._in_a_row = 0
        self._pause_seconds = 0.0

    def failed(self) -> None:
        """The gateway didn't answer, or with nothing usable."""
        self._in_a_row += 1
        if self.open or (self._in_a_row < self._threshold and not self.half_open):
            return
        self._pause_seconds = min(
            max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LONGEST_PAUSE_SECONDS
        )
        self._open_until = self._clock() + self._pause_seconds
        self._asked = False
        _log.warning("the gateway fails; no calls for %.0f s", self._pause_seconds)

    def take_pause(self) -> float:
        """Seconds for which everybody's calls should pause; 0 when that was said already."""
        if self._asked or not self.open:
            return 0.0
        self._asked = True
        return self._pause_seconds


class Calls:
    """Requests go in, answers come out, as they come. `run()` it as long as answers are wanted."""

    def __init__(
        self,
        gateway: Gateway,
        breaker: Breaker,
        *,
        concurrency: int,
        timeout_seconds: float,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.answered = asyncio.Event()
        self._breaker = breaker
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._tracing = tracing
        self._gateway = gateway
        self._operations: dict[str, Any] = {
            "authorize": gateway.authorize,
            "capture": gateway.capture,
            "void": gateway.void,
            "refund": gateway.refund,
            "lookup": gateway.lookup,
        }
        self._queue: asyncio.Queue[tuple[Request, float]] = asyncio.Queue()
        self._out = 0
        self._lease_seconds = 0.0
        self._call_seconds: float | None = None
        self._answers: list[Settlement] = []

    def put(self, request: Request) -> None:
        """Have a request made, before its lease runs out."""
        self._lease_seconds = request.timeout_seconds
        self._queue.put_nowait((request, time.monotonic() + request.timeout_seconds))

    @property
    def queue(self) -> int:
        """Requests that wait for their call to begin, while their leases run."""
        return self._queue.qsize()

    @property
    def capacity(self) -> int:
        """How many more requests would have their turn within half of their leases.

        At the pace of the calls so far; until one has ended, as many as may be made at once.
        """
        if self._call_seconds is None:
            return self._concurrency - self.queue
        turns = self._lease_seconds / 2 / max(self._call_seconds, SHORTEST_CALL_SECONDS)
        return max(1, int(self._concurrency * turns)) - self.queue

    @property
    def held_up(self) -> bool:
        """All calls that may be made at once wait for the gateway."""
        return self._out >= self._concurrency

    def take_answers(self) -> list[Settlement]:
        """The answers that have come since the last time."""
        answers, self._answers = self._answers, []
        return answers

    async def run(self) -> None:
        """Make calls until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._concurrency):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            request, lease_until = await self._queue.get()
            self._out += 1
            answer = await self._ask(request, lease_until - time.monotonic())
            self._out -= 1
            self._answers.append(Settlement(request.saga_id, request.lease_token, answer))
            self.answered.set()
            if len(self._answers) % TURN == 0:
                await asyncio.sleep(0)

    def _took(self, seconds: float) -> None:
        """Remember how long calls take, the last ones most."""
        if self._call_seconds is None:
            self._call_seconds = seconds
        self._call_seconds += (seconds - self._call_seconds) / REMEMBERED_CALLS

    async def _ask(self, request: Request, seconds: float) -> Answer:
        if seconds <= 0:
            return Answer("unknown", message="its lease ran out before it could be made")
        if self._breaker.open:
            return Answer("unknown", message="not asked: the gateway has failed too often")
        seconds = min(seconds, self._timeout_seconds)
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                answer = await self._answer(request)
        except TimeoutError:
            answer = Answer("unknown", message=f"no answer within {seconds:.1f} s")
        except Exception as error:  # noqa: BLE001 - whatever a gateway raises, it was no answer
            answer = Answer("unknown", message=f"{type(error).__name__}: {error}")
            debugging = _log.isEnabledFor(logging.DEBUG)
            _log.warning("saga %s: %s", request.saga_id, answer.message, exc_info=debugging)
        self._took(time.monotonic() - began)
        if answer.outcome == "unknown":
            self._breaker.failed()
        else:
            self._breaker.succeeded()
        return answer

    async def _answer(self, request: Request) -> Answer:
        """Ask; but when asked before, see first what became of that."""
        if request.attempt > 1:
            known: Answer | None = await self._call("lookup", request)
            if known is not None and known.outcome != "unknown":
                return known
        answer: Answer = await self._call(request.request.operation, request)
        return answer

    async def _call(self, operation: str, request: Request) -> Any:
        ask = self._operations[operation]
        if self._tracing is None:
            return await ask(request.request)
        with self._tracing.gateway_call(
            operation, request.saga_id, request.attempt, request.traceparent
        ) as call:
            answer = await ask(request.request)
            call.outcome = getattr(answer, "outcome", "none")
        return answer
