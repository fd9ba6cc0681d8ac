"""Whole orders paid through Stripe, while every kind of call gets lost."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import cycle

import pytest
from shop import Shop
from stripe_as_documented import Stripe

from darkpearl import database
from darkpearl.config import Settings
from darkpearl.gateways.stripe import StripeGateway
from darkpearl.listener import Listener
from darkpearl.reconcile import reconcile
from darkpearl.serving import limits_of

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text")

GOOD, BAD = "pm_card_visa", "pm_card_chargeCustomerFail"
PATIENCE_SECONDS = 60.0


async def done(shop: Shop) -> None:
    """Wait until every saga has ended."""
    unfinished = "select count(*) from sagas where status not in ('completed', 'compensated')"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while await shop.value(unfinished):
        assert time.monotonic() < deadline, await shop.rows("select * from saga_overview")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("capture", ["at_payment", "at_fulfilment"])
async def test_every_order_is_paid_once_or_not_at_all(
    shop: Shop,
    database_url: str,
    server: Stripe,
    gateway: StripeGateway,
    capture: str,
) -> None:
    """Paid, declined, cancelled and refunded orders end where they should, and the books agree."""
    await server.clear()
    await shop.run("update warehouses set capture_method = %s", capture)
    await shop.run("update step_settings set timeout_seconds = 5, backoff_seconds = 0")
    product = await shop.product("9.99", on_hand=100)
    tokens = cycle([GOOD, GOOD, BAD])
    orders = [await shop.order((product, 2), p_payment_token=next(tokens)) for _ in range(12)]
    await shop.cancel(orders[0])
    for path in ("/payment_intents", "/confirm", "/capture"):
        for _ in range(3):
            server.lose(path)
            server.fail(path, 503, message="trouble")

    listener = Listener(
        database.as_role(database_url, "darkpearl_listener"),
        gateway,
        limits_of(Settings(poll_seconds=0.05, payment_failures=1000)),
    )
    working = asyncio.create_task(listener.run())
    await done(shop)
    assert await shop.statuses() == {"fulfilled": 7, "cancelled": 5}
    await shop.run("select refund_order(%s, 5)", orders[1])
    await done(shop)
    # The listener closes the gateway, so the books are compared before it stops.
    since = datetime.now(UTC) - timedelta(minutes=10)
    assert await reconcile(database_url, gateway, since, timedelta(0)) == []
    listener.stop()
    await working
    held = await shop.values("select captured_amount - refunded_amount from payments")
    assert sum(held) == 7 * Decimal("19.98") - 5
