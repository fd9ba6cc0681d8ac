"""Calls: asking the gateway and others outside, so many at once, and not at all while it is down.

No transaction is open here, and nothing is decided: a call that fails is an unknown answer, and
the engine says what follows from it. A request that isn't asked is given back, which costs its saga
no attempt: too little of its lease is left, the gateway is down, or nobody here knows what it asks
for.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from darkpearl.gateways import Answer, AnsweredError, Call, Gateway, NotAskedError
from darkpearl.listener.breaker import Breaker
from darkpearl.listener.turns import Lane, Turns

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

TURN = 250
"""Answers that come without waiting, before others have their turn."""
REMEMBERED_CALLS = 16
SHORTEST_CALL_SECONDS = 1e-6
LEASE_SHARE = 0.5
"""Of a lease for the call at most. The rest is for the queue."""
LATE_SECONDS = 1.0
"""After which a request may be made that had too little of its lease left at its turn."""
UNKNOWN_SECONDS = 30.0
"""After which another listener, of another release perhaps, may know what a request asks for."""
T = TypeVar("T")
R = TypeVar("R")
Operation = Callable[[dict[str, Any]], Awaitable[Any]]
"""An operation of a saga type of one's own: takes the request as its step wrote it, and returns the
answer as its settle function reads it, as JSON has it. Called again with the same request when an
answer was unknown, so what it asks must be idempotent by something in the request. Raises
NotAskedError for one that it didn't make, which is given back."""
_log = logging.getLogger(__name__)
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


class Request(msgspec.Struct, frozen=True):
    """An external request that advance() or settle() has committed to.

    Attributes:
        saga_id: whose request it is.
        lease_token: fencing token; the answer is refused when the saga has moved on since.
        attempt: 1 for the first try of a step; later ones first look what became of those before.
        timeout_seconds: how long the lease lasts.
        request: the JSON object that the step wrote; its "operation" says whom it is for.
        traceparent: W3C trace context that started the saga, when that is known and wanted.
        warehouse_id: the saga's.
    """

    saga_id: str
    lease_token: int
    attempt: int
    timeout_seconds: float
    request: msgspec.Raw
    traceparent: str = ""
    warehouse_id: str = ""


class Settlement(msgspec.Struct, frozen=True, omit_defaults=True):
    """One element of what settle() takes.

    Attributes:
        saga_id: whose request was answered.
        lease_token: that of the request.
        answer: what became of it, as a JSON object; why it was given back, in `message`.
        deferred_seconds: for a request that wasn't asked: when it may be, from now.
    """

    saga_id: str
    lease_token: int
    answer: msgspec.Raw
    deferred_seconds: float | None = None


class _Named(msgspec.Struct):
    """What every request has."""

    operation: str


_name = msgspec.json.Decoder(_Named)
_call = msgspec.json.Decoder(Call, strict=False)


class Calls:
    """Requests go in, answers come out, as they come. `run()` it as long as answers are wanted."""

    def __init__(
        self,
        gateway: Gateway,
        breaker: Breaker,
        *,
        concurrency: int,
        timeout_seconds: float,
        operations: Mapping[str, Operation] | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.answered = asyncio.Event()
        self._breaker = breaker
        self._timeout_seconds = timeout_seconds
        self._tracing = tracing
        self._payments: dict[str, Callable[[Call], Awaitable[Answer]]] = {
            "authorize": gateway.authorize,
            "capture": gateway.capture,
            "void": gateway.void,
            "refund": gateway.refund,
        }
        self._lookup = gateway.lookup
        self._operations = operations or {}
        self._complained: set[str] = set()
        self._turns: Turns[tuple[Request, float]] = Turns(concurrency)
        self._lease_seconds = 0.0
        self._call_seconds: float | None = None
        self._answers: list[Settlement] = []

    def put(self, request: Request) -> None:
        """Have a request made, before its lease runs out."""
        self._lease_seconds = request.timeout_seconds
        item = (request, time.monotonic() + request.timeout_seconds)
        self._turns.put(request.warehouse_id, self._operation(request), item)

    @property
    def queue(self) -> int:
        """Requests that wait for their call to begin, while their leases run."""
        return self._turns.queued

    @property
    def held_up(self) -> bool:
        """Whatever waits here waits for calls that are out."""
        return self._turns.held_up

    def crowded(self) -> dict[str, int]:
        """The warehouses of which no more requests are wanted for now, and how many wait of each.

        Those that wait already wouldn't all have their turn within half of their leases, at the
        pace of the warehouse's calls so far; or they are many, and wait because calls take their
        time: a listener that is killed leaves as little behind as can be.
        """
        crowded: dict[str, int] = {}
        if not self._turns.queued:
            return crowded
        held_up = self._turns.held_up
        turns = self._turns.places / len(self._turns.waiting) * self._lease_seconds * LEASE_SHARE
        for lane in self._turns.waiting.values():
            waiting = len(lane.queue)
            late = lane.call_seconds is not None and waiting * lane.call_seconds >= turns
            if late or (held_up and waiting >= self._turns.places):
                crowded[lane.warehouse_id] = crowded.get(lane.warehouse_id, 0) + waiting
        return crowded

    def capacity(self, waiting: int) -> int:
        """How many more requests would have their turn within half of their leases.

        At the pace of the calls so far; until one has ended, as many as may be made at once.

        Args:
            waiting: of those that wait, how many are before them.
        """
        if self._call_seconds is None:
            return self._turns.places - waiting
        turns = self._lease_seconds * LEASE_SHARE / max(self._call_seconds, SHORTEST_CALL_SECONDS)
        return max(1, int(self._turns.places * turns)) - waiting

    def take_answers(self) -> list[Settlement]:
        """The answers that have come since the last time."""
        answers, self._answers = self._answers, []
        return answers

    async def run(self) -> None:
        """Make calls until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._turns.places):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            lane, (request, lease_until) = await self._turns.take()
            began = time.monotonic()
            answer = await self._settlement(request, lease_until - began)
            self._turns.leave(lane)
            if answer.deferred_seconds is None:
                self._took(time.monotonic() - began, lane)
            self._answers.append(answer)
            self.answered.set()
            if len(self._answers) % TURN == 0:
                await asyncio.sleep(0)

    async def _settlement(self, request: Request, seconds: float) -> Settlement:
        """Make a request whose lease lasts so many seconds, or give it back."""
        deferred_seconds = None
        answer: Any
        try:
            answer = await self._made(request, seconds)
        except NotAskedError as error:
            answer = {"message": f"not asked: {error}"}
            deferred_seconds = error.seconds
        try:
            document = encoded(answer)
        except (TypeError, ValueError) as error:
            document = encoded(Answer("unknown", message=f"the answer is no JSON: {error}"))
        return Settlement(request.saga_id, request.lease_token, document, deferred_seconds)

    async def _made(self, request: Request, left_seconds: float) -> Any:
        """What came of a request: an unknown answer too, when nothing did in time.

        Raises:
            NotAskedError: it can't be made now, or not by this listener.
        """
        seconds = min(self._timeout_seconds, request.timeout_seconds * LEASE_SHARE)
        if left_seconds < seconds:
            raise NotAskedError("too little of its lease was left", LATE_SECONDS)
        call, payment = self._prepared(request)
        answered = False
        try:
            async with asyncio.timeout(seconds):
                answer = await call
        except TimeoutError:
            answer = Answer("unknown", message=f"no answer within {seconds:.1f} s")
        except NotAskedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it raises, it was no answer
            answer = Answer("unknown", message=f"{type(error).__name__}: {error}")
            answered = isinstance(error, AnsweredError)
            debugging = _log.isEnabledFor(logging.DEBUG)
            _log.warning("saga %s: %s", request.saga_id, answer.message, exc_info=debugging)
        if payment is None:
            return answer
        # What is unknown for a reason that the gateway names was answered.
        if answer.outcome == "unknown" and not (answered or answer.code):
            self._breaker.failed(payment)
        else:
            self._breaker.succeeded()
        return answer

    def _took(self, seconds: float, lane: Lane[Any]) -> None:
        """Remember how long calls take, the last ones most."""
        if self._call_seconds is None:
            self._call_seconds = seconds
        self._call_seconds += (seconds - self._call_seconds) / REMEMBERED_CALLS
        if lane.call_seconds is None:
            lane.call_seconds = seconds
        lane.call_seconds += (seconds - lane.call_seconds) / REMEMBERED_CALLS

    def _operation(self, request: Request) -> str:
        """What a request asks for; "" for what nobody here knows."""
        try:
            operation = _name.decode(request.request).operation
        except ValueError:
            return ""
        return operation if operation in self._payments or operation in self._operations else ""

    def _prepared(self, request: Request) -> tuple[Awaitable[Any], str | None]:
        """The call that a request asks for, not begun yet, and the payment that it is about.

        Raises:
            NotAskedError: it can't be made now, or not by this listener.
        """
        try:
            operation = _name.decode(request.request).operation
            if own := self._operations.get(operation):
                return self._spanned(
                    operation, request, own, msgspec.json.decode(request.request)
                ), None
            if operation in self._payments:
                call = _call.decode(request.request)
            else:
                raise ValueError(f"this listener knows no operation {operation!r}")  # noqa: TRY301
        except ValueError as error:
            if str(error) not in self._complained:
                self._complained.add(str(error))
                _log.error("saga %s: not asked: %s", request.saga_id, error)
            raise NotAskedError(str(error), UNKNOWN_SECONDS) from None
        if (seconds := self._breaker.wait_seconds(call.payment_key)) > 0:
            raise NotAskedError("the gateway has failed too often", seconds)
        return self._paid(operation, request, call), call.payment_key

    async def _paid(self, operation: str, request: Request, call: Call) -> Answer:
        """Ask the gateway; but when asked before, see first what became of that."""
        if request.attempt > 1:
            known = await self._spanned("lookup", request, self._lookup, call)
            if known is not None and known.outcome != "unknown":
                return known
        return await self._spanned(operation, request, self._payments[operation], call)

    async def _spanned(
        self, operation: str, request: Request, ask: Callable[[T], Awaitable[R]], about: T
    ) -> R:
        """Ask, in a span of its own if anything is traced."""
        if self._tracing is None:
            return await ask(about)
        with self._tracing.gateway_call(
            operation, request.saga_id, request.attempt, request.traceparent
        ) as call:
            answer = await ask(about)
            call.outcome = getattr(answer, "outcome", "none")
        return answer


def encoded(answer: Any) -> msgspec.Raw:
    """An answer as JSON, without the character that no text of the database can hold.

    Raises:
        TypeError, ValueError: it can't be written as JSON.
    """
    document = msgspec.json.encode(answer)
    return msgspec.Raw(_NUL.sub(rb"\1", document) if b"\\u0000" in document else document)
