"""Stripe's objects, as far as we look at them, and the answers that they amount to.

A payment is a payment intent with our `payment_key` in its metadata; `capture_key` there is the
idempotency key of its capture. A refund has the `idempotency_key` of its call; one that is a void
has the `void_key` of that, and nothing is told of it but that it failed: whoever asked for the void
has its answer. A dispute names the payment intent, by Stripe's name alone.
"""

from decimal import Decimal
from typing import Any

import msgspec

from darkpearl.gateways import Answer, DisputeStatus, Outcome, WebhookEvent
from darkpearl.gateways.money import from_minor, minor_units, to_minor

NAME = "stripe"
ACTION_SECONDS = 3600.0
"""How long a payer may take to confirm a payment with their bank."""
PROCESSING_SECONDS = 86400.0
"""How long the payer's bank may take to let Stripe know."""

_API_DECIMALS = {"ISK": 2, "UGX": 2, "MGA": 0}
"""Where Stripe counts differently from ISO 4217."""
_CHARGED_DECIMALS = {"ISK": 0, "UGX": 0}
_MOST_CHARGED_DECIMALS = 2
_TELLING = {
    "payment_intent.amount_capturable_updated",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
}
_DISPUTES: dict[str, DisputeStatus] = {
    "won": "won",
    "warning_closed": "won",  # an inquiry that came to nothing
    "lost": "lost",
    "prevented": "lost",  # the payer has the money already
}
"""Statuses that end a dispute. In all others it is open, be it an inquiry, be it an appeal."""


def to_stripe(amount: Decimal, currency: str) -> int:
    """An amount in the units that Stripe counts in.

    As https://docs.stripe.com/currencies has it: ISO 4217, but the króna and the Ugandan shilling
    are whole and counted in hundredths, the ariary is counted whole, and of three decimals the
    last has to be 0. That HUF and TWD are paid out whole doesn't matter to a charge.

    Raises:
        AmountError: Stripe can't charge it to the last unit.
    """
    decimals = _api_decimals(currency)
    charged = _CHARGED_DECIMALS.get(currency, min(decimals, _MOST_CHARGED_DECIMALS))
    scale: int = 10 ** (decimals - charged)
    return to_minor(amount, currency, charged) * scale


def from_stripe(minor: int, currency: str) -> Decimal:
    """An amount in major units."""
    return from_minor(minor, currency, _api_decimals(currency))


def _api_decimals(currency: str) -> int:
    return _API_DECIMALS.get(currency, minor_units(currency))


class Failure(msgspec.Struct):
    """Why a charge failed."""

    code: str | None = None
    decline_code: str | None = None
    message: str | None = None


class Charge(msgspec.Struct):
    """The charge that a confirmation led to."""

    status: str = ""
    amount: int = 0
    amount_captured: int = 0
    amount_refunded: int = 0
    disputed: bool = False


class Intent(msgspec.Struct):
    """A payment intent."""

    id: str
    status: str
    amount: int
    currency: str
    created: int
    amount_capturable: int = 0
    amount_received: int = 0
    metadata: dict[str, str] = {}
    latest_charge: Charge | str | None = None
    last_payment_error: Failure | None = None
    next_action: dict[str, Any] | None = None
    client_secret: str | None = None

    @property
    def payment_key(self) -> str | None:
        """Its name on our side; None for a payment of somebody else on the same account."""
        return self.metadata.get("payment_key")

    @property
    def charge(self) -> Charge:
        """Its charge; an empty one where there is none, or Stripe gave no more than its id."""
        return self.latest_charge if isinstance(self.latest_charge, Charge) else Charge()

    @property
    def returned(self) -> int:
        """Refunded of what was captured; Stripe counts what it released as refunded too."""
        released = self.charge.amount - self.charge.amount_captured
        return self.charge.amount_refunded - released if self.amount_received else 0

    def money(self, minor: int) -> Decimal:
        """An amount of it in major units."""
        return from_stripe(minor, self.currency.upper())

    def authorization(self) -> Answer | None:
        """The answer to its authorisation; None when that wasn't asked for yet."""
        match self.status, self.last_payment_error:
            case "requires_capture" | "succeeded", _:
                return self._approved(self.amount_capturable + self.amount_received)
            case "requires_action", _:
                # Stripe.js takes the secret: stripe.handleNextAction({clientSecret}).
                action = (self.next_action or {}) | {"client_secret": self.client_secret}
                return self._answer(
                    "pending", deadline_seconds=ACTION_SECONDS, client_action=action
                )
            case "processing", _:
                return self._answer("pending", deadline_seconds=PROCESSING_SECONDS)
            case "canceled", _:
                return self._answer("declined", code="canceled")
            case _, Failure() as why:
                code = why.decline_code or why.code
                return self._answer("declined", code=code, message=why.message)
        return None

    def capture(self) -> Answer | None:
        """The answer to its capture; None when it can still be captured."""
        if self.status == "succeeded":
            return self._approved(self.amount_received)
        return self._answer("declined", code="canceled") if self.status == "canceled" else None

    def void(self, returned: int) -> Answer | None:
        """The answer to its void, with so much given back; None when it isn't undone."""
        given_back = self.status == "succeeded" and returned >= self.amount_received
        return self.voided() if self.status == "canceled" or given_back else None

    def voided(self) -> Answer:
        """That it is undone: all that was captured is given back."""
        captured = self.money(self.amount_received)
        currency = self.currency.upper()
        return self._answer("approved", captured=captured, refunded=captured, currency=currency)

    def _approved(self, minor: int) -> Answer:
        """That so much is held or taken of it."""
        return self._answer(
            "approved",
            captured=self.money(self.amount_received),
            amount=self.money(minor),
            currency=self.currency.upper(),
        )

    def _answer(self, outcome: Outcome, **more: Any) -> Answer:
        return Answer(outcome, gateway=NAME, reference=self.id, **more)


class Refund(msgspec.Struct):
    """A refund."""

    id: str
    amount: int
    currency: str
    status: str | None = None
    metadata: dict[str, str] = {}
    failure_reason: str | None = None

    @property
    def idempotency_key(self) -> str | None:
        """Of the call that asked for it; None when it was made by hand."""
        return self.metadata.get("idempotency_key", self.metadata.get("void_key"))

    @property
    def failed(self) -> bool:
        """Its money is here."""
        return self.status in ("failed", "canceled")

    def answer(self) -> Answer:
        """Its outcome; pending while Stripe waits for funds or for the bank."""
        match self.status:
            case "succeeded":
                currency = self.currency.upper()
                return Answer(
                    "approved",
                    gateway=NAME,
                    reference=self.id,
                    amount=from_stripe(self.amount, currency),
                    currency=currency,
                )
            case "pending" | "requires_action":
                return Answer(
                    "pending",
                    gateway=NAME,
                    reference=self.id,
                    deadline_seconds=PROCESSING_SECONDS,
                )
        code = self.failure_reason or self.status
        return Answer("declined", gateway=NAME, reference=self.id, code=code)


class Dispute(msgspec.Struct):
    """A payer's bank that wants a payment back."""

    id: str
    amount: int
    currency: str
    status: str
    reason: str | None = None
    payment_intent: str | None = None

    def answer(self) -> Answer:
        """What became of it so far."""
        currency = self.currency.upper()
        return Answer(
            "disputed",
            gateway=NAME,
            reference=self.id,
            code=self.reason,
            amount=from_stripe(self.amount, currency),
            currency=currency,
            dispute=_DISPUTES.get(self.status, "open"),
        )


class Request(msgspec.Struct):
    """The request that an event is a consequence of."""

    idempotency_key: str | None = None


class Event(msgspec.Struct):
    """A webhook; `data` has the `object` that it is about."""

    id: str
    type: str
    data: dict[str, msgspec.Raw]
    request: Request | None = None

    def told(self) -> WebhookEvent | None:
        """The answer to a call of ours, or a dispute; None when it says nothing final.

        Raises:
            ValueError: the object isn't what the type of the event says.
        """
        key, answer = None, None
        said = self.data.get("object", msgspec.Raw(b"null"))
        if self.type.startswith("charge.dispute."):
            dispute = msgspec.json.decode(said, type=Dispute)
            return WebhookEvent(
                event_id=self.id,
                idempotency_key=None,
                answer=dispute.answer(),
                payment_reference=dispute.payment_intent,
            )
        if self.type.startswith("refund.") or self.type == "charge.refund.updated":
            refund = msgspec.json.decode(said, type=Refund)
            key, answer = refund.idempotency_key, refund.answer()
            if "void_key" in refund.metadata and answer.outcome == "approved":
                return None
        elif self.type in _TELLING:
            intent = msgspec.json.decode(said, type=Intent)
            if intent.payment_key is not None:
                key, answer = self._of(intent, intent.payment_key)
        if answer is None or answer.outcome == "pending":
            return None
        return WebhookEvent(event_id=self.id, idempotency_key=key, answer=answer)

    def _of(self, intent: Intent, payment_key: str) -> tuple[str, Answer | None]:
        """Which call it answers, and how. What Stripe cancels by itself was an authorisation."""
        if self.type == "payment_intent.canceled" and self.request:
            key, ours, _ = (self.request.idempotency_key or "").partition(CANCEL)
            if ours:
                return key, intent.voided()
        return intent.metadata.get("capture_key", payment_key), intent.authorization()


CANCEL = ":cancel:"
"""Between the idempotency key of a void and the state that the payment was cancelled in."""
