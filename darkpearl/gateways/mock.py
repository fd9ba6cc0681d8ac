"""A gateway that takes no money: for demos, development and tests.

It keeps no books. What it says of a call follows from the call, the seed and the script alone, so
asking again, or looking up, gives the same answer in any process, which is what a real gateway
promises too.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from typing import NoReturn

from darkpearl.config import PREFIX, ConfigError
from darkpearl.gateways import Answer, Call, GatewayPayment, SignatureError

PENDING_SECONDS = 30.0
ACTION = {"type": "redirect", "url": "https://bank.example/confirm"}
"""What a payer is told to do. Nobody is there: a lookup finds it done."""
_DECLINED = Answer("declined", gateway="mock", code="card_declined")

Script = dict[Decimal | str, Answer]


class MockGateway:
    """Approves a share of all authorisations, and every capture, void and refund.

    The script says otherwise for authorisations and refunds of an amount, or of a payer's token:
    declined and unknown for good; pending until it is looked up, then approved, with an action of
    the payer's or without; approved, but of another amount. A call that is
    answered by unknown never got through: a lookup finds nothing, and a void has nothing to undo.

    Args:
        approval_rate: share of authorisations that are approved, from 0 to 1.
        latency_seconds: time that each answer takes.
        seed: another one approves others.
        script: as `parse_script` reads it.

    Raises:
        ConfigError: the script can't be read.
    """

    name = "mock"

    def __init__(
        self,
        approval_rate: float = 0.9,
        latency_seconds: float = 0.0,
        seed: int | None = None,
        script: str = "",
    ) -> None:
        self._latency_seconds = latency_seconds
        self._threshold = round(approval_rate * 2**64)
        self._key = str(seed or 0).encode()
        self._script = parse_script(script)

    async def authorize(self, call: Call) -> Answer:
        """As the script says, else approved or declined by the idempotency key."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        if self._script and (scripted := self._scripted(call)):
            return scripted
        digest = blake2b(call.idempotency_key.encode(), digest_size=8, key=self._key).digest()
        if int.from_bytes(digest) < self._threshold:
            return _approved(call, f"mock-{digest.hex()}")
        return _DECLINED

    async def capture(self, call: Call) -> Answer:
        """Approve."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        return _approved(call)

    async def void(self, call: Call) -> Answer:  # noqa: ARG002 - there are no books to look into
        """Approve."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        return Answer("approved", gateway="mock")

    async def refund(self, call: Call) -> Answer:
        """As the script says, else approved."""
        approved = await self.capture(call)
        return self._scripted(call) or approved

    async def lookup(self, call: Call) -> Answer | None:
        """The same answer again; but None where it was unknown, approved where it was pending."""
        answer: Answer = await getattr(self, call.operation)(call)
        if answer.outcome == "unknown":
            return None
        return _approved(call) if answer.outcome == "pending" else answer

    def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:  # noqa: ARG002
        """Refuse.

        Raises:
            ConfigError: there are no books.
        """
        raise ConfigError(f"{PREFIX}GATEWAY: mock keeps no books to compare with; give another")

    def webhook(self, headers: Mapping[str, str], body: bytes) -> NoReturn:  # noqa: ARG002
        """Refuse.

        Raises:
            SignatureError: whoever sends it, it isn't the mock.
        """
        raise SignatureError("the mock gateway sends no webhooks")

    async def payment_key(self, reference: str) -> None:
        """Nobody asks, since it sends no webhooks."""

    async def close(self) -> None:
        """Nothing is open."""

    def _scripted(self, call: Call) -> Answer | None:
        answer = self._script.get(call.token or "") or self._script.get(call.amount)
        if answer is None or answer.outcome != "approved":
            return answer
        return _approved(call, amount=answer.amount)


def _approved(call: Call, reference: str | None = None, amount: Decimal | None = None) -> Answer:
    return Answer(
        "approved",
        gateway="mock",
        reference=reference,
        amount=call.amount if amount is None else amount,
        currency=call.currency,
    )


def parse_script(script: str) -> Script:
    """Read scripted outcomes, such as `13.37=declined:insufficient_funds, tok_lost=unknown`.

    Each is an amount in major units or a token, then `approved`, or `approved:amount` for another
    amount than was asked for, `declined` or `declined:code`, `pending` or `pending:seconds`,
    `action` or `action:seconds`, which is pending too until the payer has done something, or
    `unknown`.

    Raises:
        ConfigError: naming the part that can't be read.
    """
    answers: Script = {}
    for part in filter(None, map(str.strip, script.split(","))):
        match, _, outcome = part.partition("=")
        answer = _outcome(outcome.strip())
        if not match.strip() or answer is None:
            raise ConfigError(
                f"{PREFIX}MOCK_SCRIPT: {part!r} is not allowed; give AMOUNT=OUTCOME or"
                " TOKEN=OUTCOME, the outcome one of approved, approved:AMOUNT, declined:CODE,"
                " pending:SECONDS, action:SECONDS, unknown"
            )
        answers[_amount(match.strip())] = answer
    return answers


def _amount(match: str) -> Decimal | str:
    try:
        amount = Decimal(match)
    except InvalidOperation:
        return match
    return amount if amount.is_finite() else match


def _outcome(text: str) -> Answer | None:
    outcome, _, detail = text.partition(":")
    if outcome == "declined":
        return Answer("declined", gateway="mock", code=detail) if detail else _DECLINED
    if outcome in {"pending", "action"}:
        try:
            seconds = float(detail or PENDING_SECONDS)
        except ValueError:
            return None
        if not (math.isfinite(seconds) and seconds > 0):
            return None
        action = ACTION if outcome == "action" else None
        return Answer("pending", gateway="mock", deadline_seconds=seconds, client_action=action)
    if outcome == "approved" and detail:
        amount = _amount(detail)
        return Answer("approved", amount=amount) if isinstance(amount, Decimal) else None
    return {
        "approved": Answer("approved"),
        "unknown": Answer("unknown", gateway="mock", message="scripted: the answer got lost"),
    }.get(text)
