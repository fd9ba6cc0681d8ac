"""routines/50_payments.sql: money adds up, and never goes back."""

from uuid import UUID

import pytest
from shop import DECLINED, Shop


@pytest.fixture
async def requested(shop: Shop) -> UUID:
    """An order of 20.00 that waits for the gateway."""
    order = await shop.order((await shop.product("10", on_hand=2), 2))
    await shop.advance()
    return order


async def test_the_intent_is_written_before_the_call(shop: Shop, requested: UUID) -> None:
    """A payment stands there with its amount and its key before anybody asks the gateway."""
    payment = await shop.payment(requested)
    assert payment["status"] == "requested"
    assert (payment["requested_amount"], payment["captured_amount"]) == (20, 0)
    assert payment["idempotency_key"] == f"{requested}:process_payment"


@pytest.mark.parametrize(
    "amounts",
    [
        "authorized_amount = 20.01",
        "authorized_amount = -1",
        "captured_amount = 1",
        "authorized_amount = 5, captured_amount = 6",
        "authorized_amount = 5, captured_amount = 5, refunded_amount = 6",
        "refunded_amount = 1",
        "voided_amount = 20.01",
        "authorized_amount = 20, captured_amount = 20, voided_amount = 1",
        "captured_amount = 'NaN'",
    ],
)
async def test_amounts_stay_within_each_other(shop: Shop, requested: UUID, amounts: str) -> None:
    """0 <= refunded <= captured <= authorised <= requested, and voided is of the rest."""
    with shop.refused("23514"):
        await shop.run(f"update payments set {amounts} where order_id = %s", requested)


@pytest.mark.parametrize("amount", ["captured_amount", "refunded_amount", "voided_amount"])
async def test_money_that_moved_stays_moved(shop: Shop, requested: UUID, amount: str) -> None:
    """What was captured, refunded or voided never shrinks."""
    shop.audited = False
    await shop.run(
        "update payments set authorized_amount = 20, captured_amount = 10, refunded_amount = 10,"
        " voided_amount = 10"
    )
    with shop.refused("DP005"):
        await shop.run(f"update payments set {amount} = 9.99 where order_id = %s", requested)


@pytest.mark.parametrize(
    "change",
    [
        "requested_amount = 19",
        "requested_amount = 21",
        "currency = 'EUR'",
        "idempotency_key = 'another'",
        "order_id = gen_random_uuid()",
        "warehouse_id = gen_random_uuid()",
    ],
)
async def test_what_was_asked_stays_asked(shop: Shop, requested: UUID, change: str) -> None:
    """The request behind an idempotency key never changes."""
    with shop.refused("DP005"):
        await shop.run(f"update payments set {change} where order_id = %s", requested)


async def test_an_approval_captures_the_total(shop: Shop) -> None:
    """What was authorised and captured is the order's total; gateway and reference are kept."""
    order = await shop.fulfilled((await shop.product("7.5", on_hand=3), 3))
    payment = await shop.payment(order)
    assert payment["status"] == "captured"
    assert payment["authorized_amount"] == payment["captured_amount"]
    assert str(payment["captured_amount"]) == "22.5"
    assert (payment["gateway"], payment["gateway_reference"]) == ("mock", "ch_1")


async def test_a_decline_captures_nothing(shop: Shop) -> None:
    """A declined payment holds no money and says why."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), DECLINED)
    payment = await shop.payment(order)
    assert (payment["status"], payment["decline_code"]) == ("declined", "card_declined")
    assert payment["authorized_amount"] == payment["captured_amount"] == 0


async def test_nobody_but_the_engine_writes_payments(shop: Shop, requested: UUID) -> None:
    """No role of ours inserts or changes a payment."""
    assert requested
    for role in ("service_role", "darkpearl_app", "darkpearl_listener", "darkpearl_reader"):
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run("update payments set status = 'captured'")
            with shop.refused("42501"):
                await shop.run("insert into payments default values")
