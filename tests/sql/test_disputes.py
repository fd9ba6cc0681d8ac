"""A disputed payment is marked and listed, and nobody gives its money back unknowingly."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, UNKNOWN, Row, Shop, of_cell

OPEN = {
    "outcome": "disputed",
    "gateway": "mock",
    "dispute": "open",
    "reference": "dp_1",
    "amount": "10.00",
    "currency": "USD",
    "code": "fraudulent",
}
WON, LOST = OPEN | {"dispute": "won"}, OPEN | {"dispute": "lost"}


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """A fulfilled order of 10.00."""
    return await shop.fulfilled((await shop.product("10", on_hand=9), 1))


async def told(shop: Shop, order: UUID, *news: Row) -> list[str]:
    """The gateway tells of disputes; the dispositions."""
    return [await shop.told(f"{order}:process_payment", each) for each in news]


async def test_a_dispute_is_marked_listed_and_counted(shop: Shop, order: UUID) -> None:
    """Since when, how much, why, and what became of it: in a view, in history and in health.

    A payment that nobody disputes is in none of them.
    """
    await shop.fulfilled((shop.products[0], 1))
    assert await told(shop, order, OPEN, OPEN) == ["applied", "stale"]
    dispute = await shop.row("select * from disputed_payments")
    assert (dispute["order_id"], dispute["status"], dispute["amount"]) == (order, "open", 10)
    assert (dispute["reference"], dispute["reason"]) == ("dp_1", "fraudulent")
    event = await shop.event(order, "reported")
    assert event["message"] == "dispute dp_1 of 10.00 USD is open: fraudulent"
    assert await shop.value("select open_disputes from engine_health") == 1
    assert await told(shop, order, LOST) == ["applied"]
    assert await shop.value("select status from disputed_payments") == "lost"
    assert await shop.value("select open_disputes from engine_health") == 0
    assert (await shop.saga(order))["status"] == "completed"


async def test_what_is_closed_is_not_opened_by_what_comes_late(shop: Shop, order: UUID) -> None:
    """Events come in any order; an appeal may still turn the end."""
    assert await told(shop, order, LOST, OPEN, WON) == ["applied", "stale", "applied"]
    assert await shop.value("select status from disputes") == "won"


@pytest.mark.parametrize("news", [OPEN, LOST])
async def test_a_disputed_payment_is_not_refunded_unless_told_otherwise(
    shop: Shop, order: UUID, news: Row
) -> None:
    """The payer's bank may have paid already; who knows that may say so, and is asked no more."""
    await told(shop, order, news)
    with shop.refused("DP027") as refusal:
        await shop.refund(order, 5)
    assert "p_despite_dispute" in refusal.hint
    async with shop.acting_as("darkpearl_app"):
        await shop.run("select refund_order(%s, 5, 'goodwill', p_despite_dispute => true)", order)
    (request,) = await shop.advance()
    await shop.settle([request], APPROVED)
    assert (await shop.payment(order))["refunded_amount"] == 5


async def test_a_dispute_that_is_won_is_over(shop: Shop, order: UUID) -> None:
    """Refunds are what they were."""
    await told(shop, order, OPEN, WON)
    await shop.refund(order, 5)


async def test_one_of_two_disputes_is_enough(shop: Shop, order: UUID) -> None:
    """Each has its own name and end."""
    await told(shop, order, WON, OPEN | {"reference": "dp_2", "amount": "3"})
    with shop.refused("DP027"):
        await shop.refund(order, 5)


async def test_a_refund_that_a_dispute_overtakes_waits_for_a_person(
    shop: Shop, order: UUID
) -> None:
    """Nobody is asked to pay; won, it is retried, and goes through."""
    refund = (await shop.refund(order, 5))["id"]
    await told(shop, order, OPEN)
    assert await shop.advance() == []
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["id"], stuck["last_error_code"]) == (refund, "DP027")
    await told(shop, order, WON)
    await shop.run("select retry_saga(%s, 'the dispute is won')", refund)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(order))["refunded_amount"] == 5


async def test_a_void_of_a_disputed_payment_waits_for_a_person(shop: Shop) -> None:
    """The order turns back, its money doesn't by itself; done by hand, the way back goes on."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.poison("fulfill_order", order, sqlstate="22012")
    await shop.give_up_after(0)
    await shop.settle(await shop.advance(), APPROVED)
    await told(shop, order, OPEN)
    for _ in range(2):
        assert await shop.ask_again() == []
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["current_step"], stuck["last_error_code"]) == ("void_payment", "DP027")
    assert (await shop.payment(order))["status"] == "captured"
    await shop.run("select skip_step(%s, 'the dispute gave it back')", order)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"


async def test_a_late_charge_that_is_disputed_waits_for_a_person(shop: Shop) -> None:
    """What the system gives back by itself asks first, too."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.told(f"{order}:process_payment", APPROVED)
    await told(shop, order, OPEN)
    assert await shop.advance() == []
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP027", 10)


@pytest.mark.parametrize(
    ("key", "news"),
    [
        (None, OPEN),
        (of_cell(f"{UUID(int=7)}:process_payment"), OPEN),
        ("{order}:process_payment", OPEN | {"dispute": "perhaps"}),
        ("{order}:process_payment", OPEN | {"reference": None}),
    ],
)
async def test_a_dispute_of_nothing_known_is_for_people(
    shop: Shop, order: UUID, key: Any, news: Row
) -> None:
    """It is kept, counted, and marks nothing."""
    assert await shop.told(key and key.format(order=order), news) == "unmatched"
    assert await shop.rows("select * from disputes") == []


async def test_a_dispute_of_an_odd_amount_is_one_all_the_same(shop: Shop, order: UUID) -> None:
    """Where it can't be read, all that was captured is at stake."""
    await told(shop, order, OPEN | {"amount": "NaN", "currency": "dollars"})
    dispute = await shop.row("select * from disputes")
    assert (dispute["amount"], dispute["currency"]) == (10, "USD")
