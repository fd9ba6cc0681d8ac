"""Payment gateways: what a saga asks of the world outside, as one small Protocol.

A gateway is asked to charge or to void under an idempotency key. It gives the same answer for the
same key, however often it is asked; that is what makes asking again safe. An exception or a
timeout is no answer: the listener reports it as unknown, and the engine asks again.
"""

from decimal import Decimal
from typing import Literal, Protocol

import msgspec

from darkpearl.config import Settings


class Charge(msgspec.Struct, frozen=True):
    """What the gateway is asked for.

    Attributes:
        idempotency_key: the same for every try of one charge, and for its void.
        amount: in major units of the currency.
        currency: ISO 4217.
        reference: the gateway's own name for the charge, when it is known.
    """

    idempotency_key: str
    amount: Decimal
    currency: str
    reference: str | None = None


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the gateway said.

    Attributes:
        outcome: approved and declined are final; unknown means that it has to be asked again.
        gateway: the name of the gateway.
        reference: the gateway's own name for the charge.
        code: why it was declined, in the gateway's terms.
        message: what went wrong, for people.
    """

    outcome: Literal["approved", "declined", "unknown"]
    gateway: str | None = None
    reference: str | None = None
    code: str | None = None
    message: str | None = None


class Gateway(Protocol):
    """Someone who takes money and gives it back."""

    async def charge(self, charge: Charge) -> Answer:
        """Take the money of one order."""

    async def void(self, charge: Charge) -> Answer:
        """Undo a charge, wholly: cancel what isn't captured, refund what is.

        A key that was never charged is approved, and must not be charged later.
        """


def make_gateway(settings: Settings) -> Gateway:
    """The gateway that the settings name."""
    from darkpearl.gateways.mock import MockGateway  # noqa: PLC0415 - only the one in use is loaded

    return MockGateway(
        approval_rate=settings.mock_approval_rate,
        latency_seconds=settings.mock_latency_seconds,
        seed=settings.mock_seed,
    )
