"""routines/60_payments.sql: money that is held first, and captured before the goods leave."""

from uuid import UUID

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, UNKNOWN, Row, Shop, of_cell


@pytest.fixture
async def authorized(shop: Shop) -> tuple[UUID, Row]:
    """An order of 20.00 whose money is held, and the request to capture it."""
    await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product("10", on_hand=2), 2))
    (request,) = await shop.settle(await shop.advance(), APPROVED)
    assert request["step_name"] == "capture_payment"
    return order, request


async def test_money_is_held_first_and_taken_before_the_goods_leave(shop: Shop) -> None:
    """Captured at fulfilment: authorised, captured, shipped, each told by status and events."""
    await shop.capture_at_fulfilment()
    product = await shop.product("10", on_hand=2)
    order = await shop.order((product, 2))
    (authorize,) = await shop.advance()
    assert authorize["request"] == {
        "operation": "authorize",
        "idempotency_key": of_cell(f"{order}:authorize_payment"),
        "payment_key": of_cell(f"{order}:authorize_payment"),
        "amount": "20",
        "currency": "USD",
        "capture": False,
        "token": None,
    }
    assert await shop.order_status(order) == "payment_processing"

    (capture,) = await shop.settle([authorize], APPROVED)
    assert capture["request"] == {
        "operation": "capture",
        "idempotency_key": of_cell(f"{order}:capture_payment"),
        "payment_key": of_cell(f"{order}:authorize_payment"),
        "amount": "20",
        "currency": "USD",
        "reference": "ch_1",
    }
    held = await shop.payment(order)
    assert held["status"] == "capture_requested"
    assert (held["authorized_amount"], held["captured_amount"]) == (20, 0)
    assert await shop.order_status(order) == "payment_processing"
    assert await shop.stock(product) == (2, 2)

    assert await shop.settle([capture], APPROVED) == []
    payment = await shop.payment(order)
    assert (payment["status"], payment["captured_amount"]) == ("captured", 20)
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (0, 0)
    assert await shop.events(order) == [
        "saga_started",
        "step_completed reserve_stock",
        "step_waiting authorize_payment",
        "step_completed authorize_payment",
        "step_waiting capture_payment",
        "step_completed capture_payment",
        "step_completed fulfill_order",
        "saga_completed",
    ]


async def test_what_a_warehouse_captures_when_counts_for_new_orders(shop: Shop) -> None:
    """An order keeps the plan it was placed under."""
    product = await shop.product(on_hand=2)
    before = await shop.order((product, 1))
    await shop.capture_at_fulfilment()
    after = await shop.order((product, 1))
    assert (await shop.saga(before))["saga_type"] == "order_fulfilment"
    assert (await shop.saga(after))["saga_type"] == "order_fulfilment_with_capture"
    await shop.settle(await shop.settle(await shop.advance(), APPROVED), APPROVED)
    assert await shop.statuses() == {"fulfilled": 2}


async def test_an_authorisation_that_is_declined_holds_nothing(shop: Shop) -> None:
    """Nothing was held, so nothing is voided: the stock is released and that is all."""
    await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product(on_hand=1), 1))
    assert await shop.settle(await shop.advance(), DECLINED) == []
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.payment(order))["status"] == "declined"
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP014"


@pytest.mark.parametrize("told", [{}, {"amount": "20"}])
async def test_a_capture_that_is_declined_is_voided(
    shop: Shop, authorized: tuple[UUID, Row], told: Row
) -> None:
    """What can't be taken is let go of, and the stock with it, also when told of what amount."""
    order, capture = authorized
    (void,) = await shop.settle([capture], DECLINED | told)
    assert void["request"]["operation"] == "void"
    assert await shop.order_status(order) == "payment_failed"
    payment = await shop.payment(order)
    assert (payment["status"], payment["captured_amount"]) == ("void_requested", 0)
    assert await shop.settle([void], APPROVED) == []
    payment = await shop.payment(order)
    assert (payment["status"], payment["voided_amount"]) == ("voided", 20)
    assert payment["captured_amount"] == 0
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.events(order))[-6:] == [
        "step_failed capture_payment",
        "compensation_started",
        "step_waiting void_payment",
        "step_compensated void_payment",
        *COMPENSATED,
    ]


@pytest.mark.parametrize("captured", [0, 20])
async def test_a_capture_that_stays_unknown_is_voided_by_what_the_gateway_says(
    shop: Shop, authorized: tuple[UUID, Row], captured: int
) -> None:
    """Whether the money had been taken is the gateway's to say: then it counts as refunded."""
    order, capture = authorized
    await shop.give_up_after(0.5)
    assert await shop.settle([capture], UNKNOWN) == []
    (again,) = await shop.ask_again()
    assert again["request"] == capture["request"]
    (void,) = await shop.settle([again], UNKNOWN)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED | {"captured": str(captured)})
    payment = await shop.payment(order)
    assert payment["status"] == ("refunded" if captured else "voided")
    assert payment["captured_amount"] == payment["refunded_amount"] == captured
    assert payment["voided_amount"] == 20 - captured
    assert await shop.order_status(order) == "cancelled"


async def test_a_saga_that_has_captured_only_goes_forward(
    shop: Shop, authorized: tuple[UUID, Row]
) -> None:
    """Goods that can't leave for now leave the saga stuck with its money; a retry ships them."""
    order, capture = authorized
    await shop.give_up_after(7.2, "fulfill_order")
    await shop.poison("fulfill_order", order)
    await shop.settle([capture], APPROVED)
    for _ in range(6):
        await shop.ask_again()
    assert (await shop.saga(order))["status"] == "stuck"
    assert await shop.order_status(order) == "paid"
    assert (await shop.payment(order))["status"] == "captured"
    assert "compensation_started" not in await shop.events(order)
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["current_step"], stuck["amount_held"]) == ("fulfill_order", 20)
    with shop.refused("DP018"):
        await shop.run("select skip_step(%s, 'carried out by hand')", order)

    await shop.cure("fulfill_order")
    saga = await shop.row("select * from retry_saga(%s, 'door mended')", order)
    assert (saga["status"], saga["attempts"]) == ("running", 0)
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.events(order))[-3:] == [
        "retried fulfill_order",
        "step_completed fulfill_order",
        "saga_completed",
    ]


async def test_an_order_that_costs_nothing_asks_nobody(shop: Shop) -> None:
    """Gateways refuse to charge zero, so they aren't asked, in either plan."""
    product = await shop.product("0", on_hand=2)
    await shop.order((product, 1))
    await shop.capture_at_fulfilment()
    await shop.order((product, 1))
    assert await shop.advance() == []
    assert await shop.statuses() == {"fulfilled": 2}


async def test_an_outage_is_told_where_nothing_is_undone(shop: Shop) -> None:
    """A saga that is put off on its way back, at a step without an undo, says why."""
    await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product(on_hand=1), 1))
    authorize = await shop.advance()
    await shop.poison("request_capture", order, sqlstate="42883")
    await shop.settle(authorize, APPROVED)
    await shop.advance()
    assert (await shop.saga(order))["status"] == "stuck"
    await shop.run("select turn_back_saga(%s, 'not to be mended')", order)
    await shop.poison("request_void", order, sqlstate="40P01")
    assert await shop.advance() == []
    assert (await shop.event(order, "step_deferred"))["error_code"] == "40P01"
    await shop.cure("request_void")
    await shop.settle(await shop.ask_again(), APPROVED)
    assert await shop.order_status(order) == "cancelled"


async def test_what_could_not_be_taken_is_held_still(
    shop: Shop, authorized: tuple[UUID, Row]
) -> None:
    """Until it is voided, which a pause puts off here, it is authorised and not captured."""
    order, capture = authorized
    await shop.run("select pause_external_steps(60, 'maintenance')")
    assert await shop.settle([capture], DECLINED) == []
    payment = await shop.payment(order)
    assert (payment["status"], payment["captured_amount"]) == ("authorized", 0)
