"""routines/55_engine.sql: advance and settle, the ways a saga can go, cancelling."""

from typing import Any

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, LONG, UNKNOWN, Shop, of_cell

# The ways a saga can go.


async def test_the_happy_path(shop: Shop) -> None:
    """Reserved, paid, fulfilled: each step is an event, in order, with when it began and ended."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 2))
    (request,) = await shop.advance()
    assert await shop.order_status(order) == "payment_processing"
    assert await shop.stock(product) == (5, 2)
    assert await shop.settle([request], APPROVED) == []
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (3, 0)
    assert await shop.events(order) == [
        "saga_started",
        "step_completed reserve_stock",
        "step_waiting process_payment",
        "step_completed process_payment",
        "step_completed fulfill_order",
        "saga_completed",
    ]
    previous = None
    for event in await shop.rows("select * from saga_events order by id"):
        if event["step_name"]:
            assert event["started_at"] <= event["created_at"]
            assert event["attempt"] == 1
        assert event["error_code"] is None
        assert previous is None or previous <= event["created_at"]
        previous = event["created_at"]
    waiting, paid = await shop.rows(
        "select * from saga_events where step_name = 'process_payment' order by id"
    )
    assert waiting["started_at"] <= paid["started_at"] < paid["created_at"]
    saga = await shop.saga(order)
    assert (saga["status"], saga["ready_at"]) == ("completed", None)


async def test_a_request_says_all_that_a_gateway_needs(shop: Shop) -> None:
    """It names saga, token, lease, step, and the charge with its idempotency key."""
    order = await shop.order((await shop.product("10.50", on_hand=2), 2))
    (request,) = await shop.advance()
    saga = await shop.saga(order)
    assert request == {
        "saga_id": str(order),
        "warehouse_id": str(shop.lisbon),
        "lease_token": saga["lease_token"],
        "attempt": 1,
        "timeout_seconds": 30,
        "step_name": "process_payment",
        "request": {
            "operation": "authorize",
            "idempotency_key": of_cell(f"{order}:process_payment"),
            "payment_key": of_cell(f"{order}:process_payment"),
            "amount": "21.00",
            "currency": "USD",
            "capture": True,
            "token": None,
        },
    }


async def test_an_order_that_costs_nothing_asks_no_gateway(shop: Shop) -> None:
    """A total of zero is paid already: the order is fulfilled in the first pass."""
    order = await shop.order((await shop.product("0", on_hand=1), 1))
    assert await shop.advance() == []
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.payment(order))["status"] == "captured"


async def test_an_order_without_stock_is_cancelled(shop: Shop) -> None:
    """Too little of one product: nothing is reserved of any, and the event says what lacked."""
    plenty, short = await shop.product(on_hand=5), await shop.product(on_hand=1)
    order = await shop.order((plenty, 1), (short, 2))
    assert await shop.advance() == []
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(plenty) == (5, 0)
    assert await shop.stock(short) == (1, 0)
    assert await shop.events(order) == [
        "saga_started",
        "step_failed reserve_stock",
        "compensation_started",
        "saga_compensated",
    ]
    refusal = await shop.event(order, "step_failed")
    assert refusal["error_code"] == "DP006"
    assert f"not enough stock of product {short}: 2 asked for, 1 left" == refusal["message"]
    assert refusal["next_attempt_at"] is None
    assert await shop.rows("select from payments") == []


async def test_a_declined_payment_gives_the_stock_back(shop: Shop) -> None:
    """A decline is final: released, cancelled, and nothing is voided that was never charged."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 2))
    assert await shop.settle(await shop.advance(), DECLINED) == []
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (5, 0)
    assert (await shop.events(order))[3:] == [
        "step_failed process_payment",
        "compensation_started",
        *COMPENSATED,
    ]
    decline = await shop.event(order, "step_failed")
    assert decline["error_code"] == "DP014"
    assert "card_declined" in decline["message"]


# Cancelling, at each place.


async def test_cancelled_before_the_first_step(shop: Shop) -> None:
    """Nothing is reserved for an order that was cancelled before it was looked at."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.cancel(order)
    assert await shop.advance() == []
    assert await shop.events(order) == [
        "saga_started",
        "cancelled",
        "compensation_started",
        "saga_compensated",
    ]
    assert (await shop.event(order, "compensation_started"))["message"] == "cancelled on request"
    assert await shop.order_status(order) == "cancelled"
    assert await shop.value("select count(*) from stock_movements") == 1


async def test_cancelled_while_the_first_step_backs_off(shop: Shop) -> None:
    """A cancelled saga doesn't wait for its next attempt."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("reserve_stock", order)
    await shop.advance()
    assert (await shop.saga(order))["attempts"] == 1
    await shop.cancel(order)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "payment"), [(APPROVED, "refunded"), (UNKNOWN, "voided"), (DECLINED, "declined")]
)
async def test_cancelled_while_an_answer_is_due(shop: Shop, answer: Any, payment: str) -> None:
    """The answer is waited for, and then what was charged, or may have been, is given back."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    requests = await shop.advance()
    await shop.cancel(order)
    assert await shop.advance() == []
    assert (await shop.saga(order))["status"] == "waiting"
    voids = await shop.settle(requests, answer)
    if answer == UNKNOWN:
        await shop.cancel(order)
        await shop.run("update sagas set ready_at = clock()")
        voids = await shop.advance()
    await shop.settle(voids, APPROVED)
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    row = await shop.payment(order)
    assert row["status"] == payment
    assert row["captured_amount"] == row["refunded_amount"]
    assert "fulfill_order" not in " ".join(await shop.events(order))


async def test_cancelled_while_a_dead_listener_held_the_lease(shop: Shop) -> None:
    """When the answer never comes the charge is not asked for again, but voided."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.advance()
    await shop.cancel(order)
    names = []
    for _ in range(3):
        await shop.turn_clock(LONG)
        requests = await shop.advance()
        names += [each["step_name"] for each in requests]
        await shop.settle(requests, APPROVED)
    assert names == ["void_payment"]
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.payment(order))["status"] == "voided"


async def test_cancelled_between_two_attempts_to_pay(shop: Shop) -> None:
    """A saga that backs off from the gateway turns back at once, and voids what it asked for."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    assert await shop.order_status(order) == "cancelled"


async def test_cancelled_between_payment_and_fulfilment(shop: Shop) -> None:
    """What was paid is refunded and what was reserved released, as long as nothing has left."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("fulfill_order", order)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "paid"
    await shop.cancel(order)
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.payment(order))["refunded_amount"] == 10


async def test_cancelling_hits_only_its_order(shop: Shop) -> None:
    """In one batch the cancelled order turns back and the others go on."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    requests = await shop.advance()
    await shop.cancel(orders[1])
    (void,) = await shop.settle(requests, APPROVED)
    await shop.settle([void], APPROVED)
    statuses = [await shop.order_status(order) for order in orders]
    assert statuses == ["fulfilled", "cancelled", "fulfilled"]
    assert await shop.stock(product) == (7, 0)


async def test_some_warehouses_are_left_out_of_a_claim(shop: Shop) -> None:
    """A listener that has enough of theirs to do takes what the others have, and nothing else."""
    here, there = await shop.product(on_hand=9), await shop.product()
    await shop.receive(there, 9, shop.rotterdam)
    left = await shop.order((here, 1))
    taken = await shop.order((there, 1), warehouse=shop.rotterdam)
    async with shop.acting_as("darkpearl_listener"):
        rows = await shop.rows("select * from advance_elsewhere(10, %s)", [shop.lisbon])
        assert sum(row["claimed"] for row in rows) == 1
        everywhere = [shop.lisbon, shop.rotterdam]
        rows = await shop.rows("select * from advance_elsewhere(10, %s)", everywhere)
        assert sum(row["claimed"] for row in rows) == 0
    assert [await shop.order_status(each) for each in (left, taken)] == [
        "pending",
        "payment_processing",
    ]
