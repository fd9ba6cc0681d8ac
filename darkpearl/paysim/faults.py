"""Faults of calls on their way, decided by seed, key and number of the try alone.

The service behind knows nothing of this: faults come from outside, as they do in the world. A try
that fails before the service hears of it has done nothing; one that fails after has done all.
"""

import asyncio
import re
import socket
import struct
from collections import Counter
from decimal import Decimal
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:  # every command knows of these options, and would wait for it
    from litestar.types import ASGIApp, Message, Receive, Scope, Send

TRANSPORT = "darkpearl.transport"
SPARED = {("GET", "/v1/payments"), ("GET", "/v1/ledger")}
"""For whoever compares books afterwards."""
MAX_BODY_BYTES = 65_536
ALL = 1 + 1e-9
"""Rates that are all of it may add up to so much in floating point."""
_TOKEN = re.compile(r"(pending|action)?:?(?:decline:(\w+)|approve(?::(\d{1,14}(?:\.\d{1,4})?))?)?")
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing resets."""

_ERROR: "list[Message]" = [
    {
        "type": "http.response.start",
        "status": HTTPStatus.INTERNAL_SERVER_ERROR,
        "headers": [(b"content-type", b"application/problem+json")],
    },
    {
        "type": "http.response.body",
        "body": b'{"title":"Internal Server Error","status":500}',
        "more_body": False,
    },
]
FaultKind = Literal["drop", "error", "reset", "late"]
_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

Rate = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]


class Verdict(msgspec.Struct, frozen=True):
    """The service's decision on a call, whichever try of it gets through.

    Attributes:
        code: why it is declined, if it is.
        amount: what is approved of an authorisation, in major units, if not what was asked for.
        pending: that is told later, and by webhook alone.
        action: the payer has something to do until then, and is told what.
        webhook: when a call that is decided at once is told by webhook too, if it is.
        regret: what becomes later of a refund, or of money that was taken, if anything does.
    """

    code: str | None = None
    amount: Decimal | None = None
    pending: bool = False
    action: bool = False
    webhook: Literal["no", "first", "after"] = "no"
    regret: Literal["no", "failed", "disputed"] = "no"


class Fault(msgspec.Struct, frozen=True):
    """A fault that one try meets, or none.

    Attributes:
        kind: `late` comes after so long that the caller may have given up.
        before: it strikes before the service hears of the try.
        latency_seconds: what the way takes in any case.
    """

    kind: FaultKind | Literal["answer"]
    before: bool
    latency_seconds: float


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How often what goes wrong. Rates are shares from 0 to 1; every field is an option."""

    seed: Annotated[int, Meta(description="another seed, another course of events")] = 0
    latency_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="median time that a call takes")
    ] = 0.0
    latency_spread: Annotated[
        float, Meta(ge=0, le=5, description="sigma of its lognormal distribution")
    ] = 0.5
    decline_rate: Annotated[Rate, Meta(description="authorisations declined")] = 0.0
    refund_decline_rate: Annotated[Rate, Meta(description="refunds declined")] = 0.0
    void_decline_rate: Annotated[Rate, Meta(description="voids declined")] = 0.0
    half_amount_rate: Annotated[
        Rate, Meta(description="authorisations approved of half the amount")
    ] = 0.0
    refund_failure_rate: Annotated[
        Rate, Meta(description="refunds and voids that are approved and fail later")
    ] = 0.0
    dispute_rate: Annotated[Rate, Meta(description="payments taken and disputed later")] = 0.0
    regret_seconds: Annotated[Seconds, Meta(description="how much later that is")] = 5.0
    pending_rate: Annotated[Rate, Meta(description="calls, but voids, decided later")] = 0.0
    pending_seconds: Annotated[Seconds, Meta(description="how much later")] = 1.0
    pending_deadline_seconds: Annotated[
        Seconds, Meta(description="how much later it may get, as the answer says")
    ] = 30.0
    error_rate: Annotated[
        Rate, Meta(description="tries answered with 500, half of them after all was done")
    ] = 0.0
    drop_rate: Annotated[Rate, Meta(description="tries that are done, then hung up on")] = 0.0
    reset_rate: Annotated[
        Rate, Meta(description="tries whose connection is reset, half of them after all was done")
    ] = 0.0
    late_rate: Annotated[
        Rate, Meta(description="tries that are late, half of them with what they do too")
    ] = 0.0
    late_seconds: Annotated[Seconds, Meta(description="how late")] = 5.0
    answer_twice_rate: Annotated[
        Rate, Meta(description="calls decided at once that are told by webhook too")
    ] = 0.0
    webhook_first_rate: Annotated[
        Rate, Meta(description="calls decided at once whose webhook comes before the answer")
    ] = 0.0
    duplicate_webhook_rate: Annotated[Rate, Meta(description="webhooks sent twice")] = 0.0
    reorder_seconds: Annotated[
        Seconds, Meta(description="webhooks wait up to so long, and so overtake each other")
    ] = 0.0

    def __post_init__(self) -> None:
        """Refuse more than can happen.

        Raises:
            ValueError: exclusive rates add up to more than 1.
        """
        if sum(getattr(self, f"{kind}_rate") for kind in _KINDS) > ALL:
            raise ValueError("the rates of drops, errors, resets and lates exceed 1 together")
        if self.answer_twice_rate + self.webhook_first_rate > ALL:
            raise ValueError("the rates of answers twice and webhooks first exceed 1 together")

    def verdict(
        self, operation: str, key: str, token: str | None = None, asked: Decimal = Decimal(0)
    ) -> Verdict:
        """The decision on the call with an idempotency key, of an amount if it asks for one.

        A token says it outright: `approve`, `approve:<amount>`, `decline:<code>`, `pending`,
        `pending:decline:<code>`; `action` for `pending`, when the payer has something to do first.
        """
        dice = self._dice("verdict", key)
        rate = {
            "authorize": self.decline_rate,
            "refund": self.refund_decline_rate,
            "void": self.void_decline_rate,
        }.get(operation)
        code = "card_declined" if dice.random() < (rate or 0.0) else None
        pending = dice.random() < self.pending_rate and operation != "void"
        told = dice.random() - self.webhook_first_rate
        webhook: Literal["no", "first", "after"] = "no"
        if told < 0:
            webhook = "first"
        elif told < self.answer_twice_rate:
            webhook = "after"
        half = operation == "authorize" and dice.random() < self.half_amount_rate
        amount = asked / 2 if half else None
        action = False
        if token and (said := _TOKEN.fullmatch(token)):
            pending, action, code = said[1] is not None, said[1] == "action", said[2]
            amount = Decimal(said[3]) if said[3] else None
        back = operation in ("refund", "void")
        regrets = dice.random() < (self.refund_failure_rate if back else self.dispute_rate)
        regret: Literal["failed", "disputed"] = "failed" if back else "disputed"
        return Verdict(code, amount, pending, action, webhook, regret if regrets else "no")

    def fault(self, key: str, number: int) -> Fault:
        """The fault that the try of that number meets."""
        dice = self._dice("try", key, number)
        seconds = self.latency_ms / 1000 * dice.lognormvariate(0.0, self.latency_spread)
        before = dice.random() < 0.5  # noqa: PLR2004 - a coin
        roll = dice.random()
        for kind in _KINDS:
            roll -= getattr(self, f"{kind}_rate")
            if roll < 0:
                return Fault(kind, before and kind != "drop", seconds)
        return Fault("answer", before=False, latency_seconds=seconds)

    def webhook_delay(self, key: str) -> float:
        """Seconds that the webhook about a call waits before it is first sent."""
        return self._dice("delay", key).random() * self.reorder_seconds

    def webhook_copies(self, key: str) -> int:
        """How often the webhook about a call is sent when all goes well."""
        return 1 + (self._dice("copies", key).random() < self.duplicate_webhook_rate)

    def _dice(self, *about: object) -> Random:
        return Random(f"{self.seed} {about}")  # noqa: S311 - it has to be repeatable


def with_faults(app: "ASGIApp", behaviour: Behaviour) -> "ASGIApp":
    """The service as its callers meet it. Tries are counted from the start of the process."""
    tries: Counter[str] = Counter()

    async def faulty(scope: Any, receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) in SPARED:
            await app(scope, receive, send)
            return
        key = (
            dict(scope["headers"]).get(b"idempotency-key", scope["path"].encode()).decode("latin-1")
        )
        tries[key] += 1
        fault = behaviour.fault(key, tries[key])
        received = await _received(receive)
        answer: list[Message] = []

        async def ask() -> None:
            await app(scope, received, _into(answer))

        await asyncio.sleep(fault.latency_seconds)
        if not fault.before:
            await ask()
        match fault.kind:
            case "late":
                await asyncio.sleep(behaviour.late_seconds)
                if fault.before:
                    await ask()
            case "error":
                answer = _ERROR
            case "drop" | "reset":
                await _hang_up(scope, received, reset=fault.kind == "reset")
                return
        for message in answer:
            await send(message)

    return faulty


class Protocol(H11Protocol):
    """Lets the application hang up, for which ASGI has no message."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Hand the transport on in the scope of each request."""
        super().connection_made(transport)
        app: Any = self.app
        extensions: Any = {TRANSPORT: transport}

        async def with_transport(scope: "Scope", receive: "Receive", send: "Send") -> None:
            scope["extensions"] = extensions
            await app(scope, receive, send)

        self.app = with_transport


async def _hang_up(scope: "Scope", receive: "Receive", *, reset: bool) -> None:
    extensions: Any = scope["extensions"]
    transport: asyncio.Transport = extensions[TRANSPORT]
    if reset and not transport.is_closing():  # else the caller was faster
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _received(receive: "Receive") -> "Receive":
    """The request in full, or as much as a service needs to refuse it.

    It is acted upon even when the caller has hung up since, as it is by services that
    queue what they receive.
    """
    messages: list[Any] = []
    size = 0
    while size <= MAX_BODY_BYTES:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if not messages[-1].get("more_body"):
            break
    waiting = iter(messages)

    async def again() -> Any:
        return next(waiting, None) or await receive()

    return again


def _into(messages: "list[Message]") -> "Send":
    async def send(message: "Message") -> None:
        messages.append(message)

    return send
