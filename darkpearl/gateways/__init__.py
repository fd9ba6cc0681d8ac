"""Payment gateways: a saga's requests to the world outside, as one small Protocol.

Every call carries an idempotency key that is the same for each try of one purpose of one saga.
A gateway gives the same answer for the same key, however often it is asked; that is what makes
asking again safe. An exception or a timeout is no answer: the listener reports it as unknown, and
the engine asks again, after a look at what became of the first call.
"""

import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol

import msgspec

Operation = Literal["authorize", "capture", "void", "refund"]
Outcome = Literal["approved", "declined", "pending", "unknown", "disputed"]
DisputeStatus = Literal["open", "won", "lost"]
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:\\u[dD][89abAB]..(\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..)"
)
"""Escapes of halves of a character: the second group is there when both halves are."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the gateway.

    Attributes:
        operation: what to do.
        idempotency_key: the same for every try of this operation.
        payment_key: the idempotency key that the payment was authorised under, and so the name
            that both sides know the payment by. For authorize, the idempotency key itself.
        amount: in major units of the currency.
        currency: ISO 4217.
        capture: for authorize: take the money at once.
        reference: the gateway's own name for the payment, when it is known.
        token: for authorize: the payer's means of payment, in the gateway's terms.
    """

    operation: Operation
    idempotency_key: str
    payment_key: str
    amount: Decimal
    currency: str
    capture: bool = False
    reference: str | None = None
    token: str | None = None


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The gateway's answer. An approval of something else than was asked for is none.

    Attributes:
        outcome: approved and declined are final; pending will be decided later, by webhook;
            unknown means that it has to be asked again; disputed, by webhook alone, that the
            payer's bank wants the payment back.
        gateway: the name of the gateway.
        reference: the gateway's own name: of the refund for refund, of the dispute for disputed,
            else of the payment.
        code: why it was declined or disputed, in the gateway's terms; with unknown, that the
            gateway did answer, and so is up.
        message: what went wrong, for people.
        deadline_seconds: for pending: how long from now an answer may take.
        captured: what the gateway has captured of the payment, in major units, where it says so.
        refunded: what it has given back of that.
        amount: what this call has held, taken or given back, or what is disputed.
        currency: of these amounts, ISO 4217.
        dispute: for disputed: what became of it.
        client_action: for pending: what the payer has to do first, in the gateway's terms, such as
            a page of their bank to go to. They are told of it; of more than 8 kB they aren't.
    """

    outcome: Outcome
    gateway: str | None = None
    reference: str | None = None
    code: str | None = None
    message: str | None = None
    deadline_seconds: float | None = None
    captured: Decimal | None = None
    refunded: Decimal | None = None
    amount: Decimal | None = None
    currency: str | None = None
    dispute: DisputeStatus | None = None
    client_action: dict[str, Any] | None = None


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a gateway tells by webhook.

    Attributes:
        event_id: the gateway's name for the event; the same for every delivery of it.
        idempotency_key: of the call that this is the answer to, or the payment key of what is
            disputed; None when the gateway can't say.
        answer: what became of the call.
        payment_reference: without a key: the gateway's own name for the payment, for
            `Gateway.payment_key`.
    """

    event_id: str
    idempotency_key: str | None
    answer: Answer
    payment_reference: str | None = None


class GatewayPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as the gateway's own books have it.

    Attributes:
        payment_key: the idempotency key it was authorised under.
        reference: the gateway's own name for it.
        currency: ISO 4217.
        authorized: in major units, as are the others.
        captured: what was taken.
        refunded: what was given back.
        voided: it was cancelled; nothing can be captured any more.
        created_at: when the gateway first knew of it.
        disputed: the payer's bank wants it back, or has; None when the gateway doesn't say.
    """

    payment_key: str
    reference: str
    currency: str
    authorized: Decimal
    captured: Decimal
    refunded: Decimal
    voided: bool
    created_at: datetime
    disputed: bool | None = None


class AnsweredError(RuntimeError):
    """The gateway answered, with nothing that says what became of the call: it is up at least."""


class NotAskedError(RuntimeError):
    """A request that wasn't made: it is given back, which costs its saga no attempt.

    Args:
        reason: why it can't be made now, or not by this listener.
        seconds: when it may be, from now.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class SignatureError(ValueError):
    """A webhook that isn't signed by whom it says it is from."""


def whole_characters(body: bytes) -> bytes:
    """A JSON document that no text was cut in: a half of a character becomes U+FFFD.

    For webhooks, once their signature is checked: refused, they would be sent again for days.
    """
    whole = body.decode(errors="replace").encode()
    return _SURROGATES.sub(lambda half: half[0] if half[2] else half[1] + rb"\ufffd", whole)


class Gateway(Protocol):
    """Someone who takes money and gives it back."""

    name: str

    async def authorize(self, call: Call) -> Answer:
        """Hold the money of one order, or take it at once when the call says so."""

    async def capture(self, call: Call) -> Answer:
        """Take what was authorised."""

    async def void(self, call: Call) -> Answer:
        """Undo a payment wholly: cancel what isn't captured, refund what is.

        A payment that the gateway has never heard of is approved, and must not be made later,
        however late the call to authorise it arrives.
        """

    async def refund(self, call: Call) -> Answer:
        """Give back a part of what was captured. The idempotency key is the refund's."""

    async def lookup(self, call: Call) -> Answer | None:
        """The outcome of a call; None when its idempotency key was never heard of."""

    def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:
        """Every payment the gateway has had since then, by its own books."""

    def webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent | None:
        """The event of a webhook; None for events that say nothing of a call.

        Args:
            headers: of the request, with lower-case names.
            body: of the request, to the byte.

        Raises:
            SignatureError: the signature is missing, wrong or too old.
            ValueError: the body makes no sense.
        """

    async def payment_key(self, reference: str) -> str | None:
        """The payment key of a payment that the gateway names; None when it is none of ours."""

    async def close(self) -> None:
        """Let go of connections."""
