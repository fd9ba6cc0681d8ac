"""What the simulator does otherwise than asked, and what it takes back: honest in its books."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from darkpearl.gateways import Answer, GatewayPayment, WebhookEvent
from darkpearl.gateways.http import HttpGateway
from darkpearl.paysim.faults import Behaviour

from .conftest import PATIENCE_SECONDS, Start, call
from .test_webhooks import Shop

AGES_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def booked(gateway: HttpGateway) -> GatewayPayment:
    """The only payment of the books."""
    (payment,) = [each async for each in gateway.payments(AGES_AGO)]
    return payment


async def heard(shop: Shop, gateway: HttpGateway) -> WebhookEvent:
    """The next event that the simulator tells."""
    (request,) = await shop.hear(1)
    event = gateway.webhook(dict(request.headers), request.content)
    assert event
    return event


async def test_every_approval_names_its_amount(gateway: HttpGateway) -> None:
    """And its currency; a void and a decline have no amount of their own."""
    for each in (
        call("authorize", "p", "10.00"),
        call("capture", "c", "10.00"),
        call("refund", "r", "2.50"),
    ):
        answer = await getattr(gateway, each.operation)(each)
        assert (answer.outcome, answer.amount, answer.currency) == ("approved", each.amount, "EUR")
        assert await gateway.lookup(each) == answer
    for each in (call("refund", "s", "7.51"), call("void", "v")):
        answer = await getattr(gateway, each.operation)(each)
        assert answer.amount is None


@pytest.mark.parametrize(
    ("how", "token", "amount"),
    [
        ({}, "approve:1.00", "1.00"),
        ({}, "approve:299.00", "299.00"),
        ({"half_amount_rate": 1.0}, None, "5.00"),
        ({"half_amount_rate": 1.0}, "approve", "10.00"),
    ],
)
async def test_another_amount_is_taken_and_told(
    start: Start, how: Any, token: str | None, amount: str
) -> None:
    """On demand by the payer's token, or by a rate; the books have what was taken."""
    async with start(**how) as gateway:
        answer = await gateway.authorize(call("authorize", "p", capture=True, token=token))
        assert (answer.outcome, answer.amount, answer.captured) == (
            "approved",
            Decimal(amount),
            Decimal(amount),
        )
        assert (await booked(gateway)).captured == Decimal(amount)


@pytest.mark.parametrize("operation", ["refund", "void"])
async def test_money_that_went_back_comes_again(start: Start, operation: Any) -> None:
    """The call is declined then, by webhook and by look-up; another one may be made."""
    shop = Shop()
    how = {"refund_failure_rate": 1.0, "regret_seconds": 0}
    async with start(heard=shop, **how) as gateway:
        await gateway.authorize(call("authorize", "p", capture=True))
        back = call(operation, "b", "4.00")
        assert (await getattr(gateway, operation)(back)).outcome == "approved"
        event = await heard(shop, gateway)
        assert event.idempotency_key == "b"
        assert (event.answer.outcome, event.answer.code) == ("declined", "account_closed")
        found = await gateway.lookup(back)
        assert found
        assert found.outcome == "declined"
        assert (await booked(gateway)).refunded == 0
        again = await gateway.void(call("void", "v"))
        assert (again.captured, again.refunded) == (10, 10)


async def test_a_payment_is_disputed_once_it_is_taken(start: Start) -> None:
    """It is told under the key of the payment, and listed; its money stays where it is."""
    shop = Shop()
    async with start(heard=shop, dispute_rate=1.0, regret_seconds=0) as gateway:
        await gateway.authorize(call("authorize", "p"))
        assert (await booked(gateway)).disputed is False
        await gateway.capture(call("capture", "c"))
        event = await heard(shop, gateway)
        answer = event.answer
        assert (event.idempotency_key, answer.outcome, answer.dispute) == ("p", "disputed", "open")
        assert (answer.amount, answer.currency, answer.code) == (10, "EUR", "fraudulent")
        payment = await booked(gateway)
        assert (payment.disputed, payment.captured, payment.refunded) == (True, 10, 0)


def test_regrets_follow_from_the_seed() -> None:
    """A share of refunds and voids fails, a share of what is taken is disputed."""
    how = Behaviour(refund_failure_rate=0.2, dispute_rate=0.1, half_amount_rate=0.3)
    keys = [f"key-{number}" for number in range(5000)]
    for operation, regret, rate in (
        ("refund", "failed", 0.2),
        ("void", "failed", 0.2),
        ("capture", "disputed", 0.1),
    ):
        verdicts = [how.verdict(operation, key) for key in keys]
        share = sum(each.regret == regret for each in verdicts) / 5000
        assert share == pytest.approx(rate, abs=0.03)
    halves = [how.verdict("authorize", key, asked=Decimal(10)).amount == 5 for key in keys]
    assert sum(halves) / 5000 == pytest.approx(0.3, abs=0.03)


async def test_a_webhook_of_news_has_an_id_of_its_own(start: Start) -> None:
    """The answer and what became of it later are two events."""
    shop = Shop()
    how = {"refund_failure_rate": 1.0, "regret_seconds": 0, "answer_twice_rate": 1.0}
    async with start(heard=shop, **how) as gateway:
        await gateway.authorize(call("authorize", "p", capture=True))
        await gateway.refund(call("refund", "r", "4.00"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            events = [await heard(shop, gateway) for _ in range(3)]
    assert len({each.event_id for each in events}) == 3
    outcomes = sorted(each.answer.outcome for each in events)
    assert outcomes == ["approved", "approved", "declined"]
    assert all(isinstance(each.answer, Answer) for each in events)
