"""Payments of held orders that wait for their payer and are given up: voided first, then others."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, PENDING, UNKNOWN, Row, Shop, of_cell

HELD_SECONDS = 9000
METHODS = [
    ("at_payment", "automatic"),
    ("at_fulfilment", "automatic"),
    ("at_payment", "on_shipment"),
    ("at_fulfilment", "on_shipment"),
]
CHARGED = {"outcome": "approved", "gateway": "mock", "amount": "30.00", "captured": "30.00"}
VOIDED = {"outcome": "approved", "gateway": "mock", "captured": "30.00", "refunded": "30.00"}
"""The answer to a void that came after the charge was made."""
ATTEMPTS = """
    select idempotency_key as key, status, captured_amount as captured, refunded_amount as refunded
    from payment_attempts order by ended_at
"""


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units at 10.00."""
    return await shop.product(on_hand=10)


@pytest.fixture
async def pending(shop: Shop, product: UUID) -> UUID:
    """An order of three of them, held for hours, whose payer has something to do."""
    return await leave_pending(shop, product)


async def leave_pending(shop: Shop, product: UUID) -> UUID:
    """An order is placed and its first card waits for its payer."""
    pay_by = await shop.value("select clock() + %s * interval '1 second'", HELD_SECONDS)
    async with shop.acting_as("darkpearl_app"):
        order = await shop.order((product, 3), p_pay_by=pay_by, p_payment_token="tok_1")
    action = {"client_action": {"type": "redirect", "url": "https://bank.example"}}
    await shop.settle(await shop.advance(), PENDING | action)
    return order


async def pay(shop: Shop, order: UUID, token: str = "tok_2") -> str:
    """An application has an order paid; its status then."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.value("select status from pay_order(%s, %s)", order, token)


async def give_up(shop: Shop, order: UUID) -> str:
    """An application gives a payment up; the order's status then."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.value("select status from cancel_payment(%s)", order)


async def void(shop: Shop, order: UUID, answer: Row = APPROVED) -> list[Row]:
    """A payment is given up and its void answered; the requests that follow."""
    await give_up(shop, order)
    return await shop.settle(await shop.advance(), answer)


async def fulfil(shop: Shop, order: UUID, requests: list[Row]) -> None:
    """The last payment is approved, and what it is for leaves."""
    await shop.settle(await shop.settle(requests, APPROVED), APPROVED)
    if await shop.order_status(order) != "fulfilled":
        await shop.run("select ship_items(%s)", order)
        await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.payment(order))["captured_amount"] == 30


@pytest.mark.parametrize(("capture", "fulfilment"), METHODS)
async def test_a_payment_that_is_given_up_is_voided_and_another_tried(
    shop: Shop, product: UUID, capture: str, fulfilment: str
) -> None:
    """Its stock stays, the gateway is asked to undo the first, and the second has its own key."""
    await shop.run(
        "update warehouses set capture_method = %s, fulfilment_method = %s", capture, fulfilment
    )
    order = await leave_pending(shop, product)
    first = (await shop.payment(order))["idempotency_key"]
    assert await give_up(shop, order) == "payment_failed"
    (request,) = await shop.advance()
    assert (
        request["request"]
        | {
            "operation": "void",
            "idempotency_key": of_cell(f"{order}:void_payment"),
            "payment_key": first,
        }
        == request["request"]
    )
    assert await shop.settle([request], APPROVED) == []
    payment = await shop.payment(order)
    assert (payment["status"], payment["client_action"]) == ("voided", None)
    assert await shop.order_status(order) == "payment_failed"
    assert await shop.stock(product) == (10, 3)
    assert (await shop.saga(order))["status"] == "waiting"
    assert await shop.value(
        "select s.ready_at - o.pay_by < interval '1 second' from sagas as s, orders as o"
    )

    assert await pay(shop, order) == "payment_processing"
    (second,) = await shop.advance()
    assert second["request"]["token"] == "tok_2"
    assert second["request"]["idempotency_key"] == f"{first}:2"
    assert await shop.rows(ATTEMPTS) == [
        {"key": first, "status": "voided", "captured": 0, "refunded": 0}
    ]
    await fulfil(shop, order, [second])
    assert await shop.stock(product) == (7, 0)


async def test_another_card_gives_the_first_up(shop: Shop, pending: UUID) -> None:
    """It is tried as soon as the first is voided; the last that was named is."""
    assert await pay(shop, pending) == "payment_failed"
    (request,) = await shop.advance()
    assert request["request"]["operation"] == "void"
    for token in ("tok_2", "tok_3", "tok_3"):
        assert await pay(shop, pending, token) == "payment_failed"
    assert await shop.advance() == []
    (second,) = await shop.settle([request], APPROVED)
    assert second["request"]["token"] == "tok_3"
    assert await shop.order_status(pending) == "payment_processing"
    await fulfil(shop, pending, [second])


async def test_the_same_card_while_it_is_pending_changes_nothing(shop: Shop, pending: UUID) -> None:
    """A page that is sent twice is no second payment."""
    assert await pay(shop, pending, "tok_1") == "payment_processing"
    assert (await shop.payment(pending))["status"] == "pending"
    assert await shop.advance() == []


async def test_the_gateways_deadline_gives_a_payment_up(
    shop: Shop, pending: UUID, product: UUID
) -> None:
    """It is asked once more, then voided; the order keeps its stock for the rest of its time."""
    assert await shop.ask_again() == []
    (again,) = await shop.ask_again()
    assert again["request"]["operation"] == "authorize"
    (request,) = await shop.settle([again], PENDING)
    assert request["request"]["operation"] == "void"
    await shop.settle([request], APPROVED)
    assert await shop.order_status(pending) == "payment_failed"
    assert await shop.stock(product) == (10, 3)
    failure = await shop.value("select failure from order_summaries where id = %s", pending)
    assert failure["code"] == "DP013"
    await pay(shop, pending)
    await fulfil(shop, pending, await shop.advance())


async def test_each_void_has_its_own_key(shop: Shop, pending: UUID) -> None:
    """The gateway answers an old key as it did; a webhook finds the one that it is of."""
    await void(shop, pending)
    await pay(shop, pending)
    await shop.settle(await shop.advance(), PENDING)
    await give_up(shop, pending)
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == of_cell(f"{pending}:void_payment:2")
    assert request["request"]["payment_key"] == of_cell(f"{pending}:process_payment:2")
    assert await shop.told(f"{pending}:void_payment", APPROVED) == "stale"
    assert await shop.told(f"{pending}:void_payment:7", APPROVED) == "unmatched"
    assert await shop.told(f"{pending}:void_payment:2", APPROVED) == "applied"
    await shop.advance()
    assert await shop.order_status(pending) == "payment_failed"
    assert await shop.values("select status from payment_attempts") == ["voided"]


async def test_a_charge_that_is_made_while_it_is_voided(shop: Shop, pending: UUID) -> None:
    """The payer acts after all: the void gives it back, and the order isn't paid by it."""
    await give_up(shop, pending)
    (request,) = await shop.advance()
    assert await shop.told(f"{pending}:process_payment", CHARGED) == "applied"
    assert await shop.order_status(pending) == "payment_failed"
    assert await shop.settle([request], VOIDED) == []
    payment = await shop.payment(pending)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 30)
    await pay(shop, pending)
    requests = await shop.advance()
    assert await shop.rows(ATTEMPTS) == [
        {
            "key": of_cell(f"{pending}:process_payment"),
            "status": "refunded",
            "captured": 30,
            "refunded": 30,
        }
    ]
    assert await shop.told(f"{pending}:process_payment", CHARGED) == "stale"
    await fulfil(shop, pending, requests)
    assert (await shop.payment(pending))["refunded_amount"] == 0


async def test_a_void_that_leaves_money_needs_a_person(shop: Shop, pending: UUID) -> None:
    """No other card is tried before; then the order goes on to wait for one."""
    await give_up(shop, pending)
    await pay(shop, pending)
    await shop.settle(await shop.advance(), VOIDED | {"refunded": "10.00"})
    assert (await shop.saga(pending))["status"] == "stuck"
    with shop.refused("DP033"):
        await pay(shop, pending)
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'sent back')", pending)
    (second,) = await shop.advance()
    assert second["request"]["token"] == "tok_2"
    await fulfil(shop, pending, [second])


@pytest.mark.parametrize("tried", ["nothing", "waits", "asked", "fulfilled", "cancelled"])
async def test_a_charge_that_is_made_after_its_void(
    shop: Shop, pending: UUID, product: UUID, tried: str
) -> None:
    """It is voided anew, whatever the order is at by then, and pays for nothing."""
    key = of_cell(f"{pending}:process_payment")
    await void(shop, pending)
    second: list[Row] = []
    if tried in {"asked", "fulfilled"}:
        await pay(shop, pending)
        second = await shop.advance()
    elif tried == "cancelled":
        await shop.cancel(pending)
        await shop.advance()
    if tried == "fulfilled":
        await fulfil(shop, pending, second)
    assert await shop.told(key, CHARGED) == "applied"
    assert await shop.told(key, CHARGED) == "stale"
    if tried == "waits":
        await pay(shop, pending)
    requests = {each["request"]["operation"]: each for each in await shop.advance()}
    assert requests["void"]["request"]["payment_key"] == key
    await shop.settle([requests["void"]], VOIDED)
    if tried == "cancelled":
        assert (await shop.payment(pending))["refunded_amount"] == 30
        assert await shop.stock(product) == (10, 0)
        return
    attempts = await shop.rows(ATTEMPTS)
    assert attempts[0] == {"key": key, "status": "refunded", "captured": 30, "refunded": 30}
    if tried == "nothing":
        assert await shop.order_status(pending) == "payment_failed"
        await pay(shop, pending)
        second = await shop.advance()
    second = second or [requests["authorize"]]
    if tried != "fulfilled":
        await fulfil(shop, pending, second)
    payment = await shop.payment(pending)
    assert (payment["captured_amount"], payment["refunded_amount"]) == (30, 0)


@pytest.mark.parametrize("tried", [False, True])
async def test_a_void_that_comes_to_nothing_after_all(
    shop: Shop, pending: UUID, *, tried: bool
) -> None:
    """What it had given back is given back anew; the payment beside it stays."""
    await void(shop, pending, VOIDED)
    second: list[Row] = []
    if tried:
        await pay(shop, pending)
        second = await shop.advance()
    assert await shop.told(f"{pending}:void_payment", DECLINED) == "applied"
    assert await shop.told(f"{pending}:void_payment", DECLINED) == "stale"
    (again,) = await shop.advance()
    assert again["request"]["payment_key"] == of_cell(f"{pending}:process_payment")
    await shop.settle([again], DECLINED)
    stuck = await shop.row("select last_error_code, amount_owed from stuck_sagas")
    assert stuck == {"last_error_code": "DP028", "amount_owed": 30}
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'sent back')", again["saga_id"])
    if not tried:
        await pay(shop, pending)
        second = await shop.advance()
    await fulfil(shop, pending, second)
    assert (await shop.rows(ATTEMPTS))[0]["refunded"] == 30


async def test_a_void_that_gave_nothing_back_is_no_news(shop: Shop, pending: UUID) -> None:
    """A gateway that declines what it had approved is looked at by a person."""
    await void(shop, pending)
    await pay(shop, pending)
    await shop.advance()
    assert await shop.told(f"{pending}:void_payment", DECLINED) == "unmatched"


async def test_a_refund_of_a_given_up_charge_that_fails(shop: Shop, pending: UUID) -> None:
    """It is listed, and no money of the order's payment."""
    await void(shop, pending)
    await pay(shop, pending)
    second = await shop.advance()
    await shop.told(f"{pending}:process_payment", CHARGED)
    (again,) = await shop.advance()
    await shop.settle([again], VOIDED)
    assert await shop.told(again["request"]["idempotency_key"], DECLINED) == "applied"
    assert (await shop.row("select order_id, amount from failed_refunds"))["order_id"] == pending
    assert (await shop.rows(ATTEMPTS))[0]["refunded"] == 0
    await fulfil(shop, pending, second)
    assert (await shop.payment(pending))["refunded_amount"] == 0


async def test_a_refund_of_the_order_is_another_matter(shop: Shop, pending: UUID) -> None:
    """What goes back of an earlier charge leaves all of the payment to be refunded, once."""
    await void(shop, pending)
    await pay(shop, pending)
    await fulfil(shop, pending, await shop.advance())
    await shop.told(f"{pending}:process_payment", CHARGED)
    await shop.refund(pending, 30)
    with shop.refused("DP020"):
        await shop.refund(pending, 1)
    requests = {each["request"]["operation"]: each for each in await shop.advance()}
    assert requests["refund"]["request"]["payment_key"] == of_cell(f"{pending}:process_payment:2")
    await shop.settle([requests["refund"]], APPROVED)
    await shop.settle([requests["void"]], VOIDED)
    assert (await shop.payment(pending))["refunded_amount"] == 30
    assert [each["refunded"] for each in await shop.rows(ATTEMPTS)] == [30]


async def test_nothing_is_released_while_a_void_is_out(
    shop: Shop, pending: UUID, product: UUID
) -> None:
    """The deadline passes before its answer: then the order is cancelled, and not before."""
    await give_up(shop, pending)
    (request,) = await shop.advance()
    await shop.turn_clock(HELD_SECONDS + 1)
    (again,) = await shop.advance()
    assert again["request"] == request["request"]
    assert await shop.stock(product) == (10, 3)
    with shop.refused("DP034"):
        await pay(shop, pending)
    await shop.settle([again], APPROVED)
    assert await shop.order_status(pending) == "cancelled"
    assert await shop.stock(product) == (10, 0)
    failure = await shop.value("select failure from order_summaries where id = %s", pending)
    assert failure["code"] == "DP034"


async def test_who_pays_in_time_is_tried_though_the_void_is_late(shop: Shop, pending: UUID) -> None:
    """Whoever has named another card before the deadline isn't turned away."""
    await pay(shop, pending)
    await shop.turn_clock(HELD_SECONDS + 1)
    (second,) = await shop.settle(await shop.advance(), APPROVED)
    await fulfil(shop, pending, [second])


@pytest.mark.parametrize("queued", [False, True])
async def test_cancelling_while_a_payment_is_voided(
    shop: Shop, pending: UUID, product: UUID, *, queued: bool
) -> None:
    """The order goes all the way back, in one go; a card that waits for its turn isn't tried."""
    if queued:
        await pay(shop, pending)
    else:
        await give_up(shop, pending)
    (request,) = await shop.advance()
    await shop.cancel(pending)
    with shop.refused("DP033"):
        await pay(shop, pending)
    assert await shop.settle([request], APPROVED) == []
    assert await shop.order_status(pending) == "cancelled"
    assert await shop.stock(product) == (10, 0)
    events = await shop.events(pending)
    assert (events.count("compensation_started"), events.count("compensation_ended")) == (1, 0)


async def test_giving_up_again_changes_nothing(shop: Shop, pending: UUID) -> None:
    """Nor does it where nothing is under way; a card that waits for its turn is forgotten."""
    await pay(shop, pending)
    assert await give_up(shop, pending) == "payment_failed"
    (request,) = await shop.advance()
    assert await give_up(shop, pending) == "payment_failed"
    assert await shop.settle([request], APPROVED) == []
    assert await give_up(shop, pending) == "payment_failed"
    assert await shop.advance() == []
    await pay(shop, pending)
    await shop.settle(await shop.advance(), DECLINED)
    assert await give_up(shop, pending) == "payment_failed"
    events = await shop.events(pending)
    assert events.count("compensation_started") == events.count("compensation_ended") == 1


async def test_a_card_that_is_not_tried_yet_is_forgotten(shop: Shop, product: UUID) -> None:
    """The order waits for another once its stock is there."""
    pay_by = await shop.value("select clock() + interval '1 hour'")
    order = await shop.order((product, 3), p_pay_by=pay_by, p_payment_token="tok_1")
    assert await give_up(shop, order) == "pending"
    assert await shop.advance() == []
    assert await shop.order_status(order) == "reserved"
    assert await give_up(shop, order) == "reserved"


async def test_what_has_no_answer_is_not_given_up(shop: Shop, pending: UUID) -> None:
    """Neither while it is asked for, nor while it is asked again; nor is what is paid."""
    assert await shop.ask_again() == []
    for call in (give_up, pay):
        with shop.refused("DP033"):
            await call(shop, pending)
    requests = await shop.ask_again()
    with shop.refused("DP033"):
        await give_up(shop, pending)
    await shop.settle(requests, APPROVED)
    with shop.refused("DP033") as refusal:
        await give_up(shop, pending)
    assert refusal.message == "order is paid already"


async def test_a_gateway_that_does_not_answer_a_void(shop: Shop, pending: UUID) -> None:
    """Nothing is tried until a person has seen to it; then the order waits again."""
    await shop.give_up_after(0)
    await give_up(shop, pending)
    await pay(shop, pending)
    await shop.settle(await shop.advance(), UNKNOWN)
    while (await shop.saga(pending))["status"] != "stuck":
        assert {each["request"]["operation"] for each in await shop.ask_again()} <= {"void"}
    (stuck,) = await shop.rows("select current_step from stuck_sagas")
    assert stuck["current_step"] == "void_payment"
    with shop.refused("DP007"):
        await shop.run("select turn_back_saga(%s, 'why')", pending)
    await shop.run("select retry_saga(%s, 'mended')", pending)
    (second,) = await shop.settle(await shop.advance(), APPROVED)
    assert second["request"]["token"] == "tok_2"


async def test_what_is_given_up_is_told(shop: Shop, pending: UUID) -> None:
    """Once, as a payment that has failed; who did it stands in the history."""
    await void(shop, pending)
    told = await shop.rows("select topic::text, error_code from feed where topic <> 'order.placed'")
    assert told == [{"topic": "payment.failed", "error_code": "DP046"}]
    failure = await shop.value("select failure from order_summaries where id = %s", pending)
    assert (failure["code"], failure["message"]) == ("DP046", "given up by its payer")
    assert (await shop.event(pending, "signalled"))["actor"] == await shop.value(
        "select session_user"
    )
    assert (await shop.events(pending))[-5:] == [
        "compensation_started", "step_waiting void_payment", "step_compensated void_payment",
        "compensation_ended", "step_waiting await_payment",
    ]  # fmt: skip


async def test_another_amount_is_voided_and_another_card_tried(shop: Shop, pending: UUID) -> None:
    """What the gateway took instead of what was asked goes back first."""
    half = CHARGED | {"amount": "15.00", "captured": "15.00"}
    assert await shop.told(f"{pending}:process_payment", half) == "applied"
    await pay(shop, pending)
    back = {"outcome": "approved", "captured": "15.00", "refunded": "15.00"}
    (second,) = await shop.settle(await shop.advance(), back)
    await fulfil(shop, pending, [second])
    assert (await shop.rows(ATTEMPTS))[0] | {"captured": 15, "refunded": 15} == (
        await shop.rows(ATTEMPTS)
    )[0]


async def test_a_hold_that_could_not_be_captured(shop: Shop, product: UUID) -> None:
    """Its void comes first, then another card may be tried."""
    await shop.capture_at_fulfilment()
    order = await leave_pending(shop, product)
    await shop.told(f"{order}:authorize_payment", APPROVED)
    (request,) = await shop.settle(await shop.advance(), DECLINED)
    assert request["request"]["operation"] == "void"
    await pay(shop, order)
    (second,) = await shop.settle([request], APPROVED)
    await fulfil(shop, order, [second])


async def test_customers_give_up_their_own(shop: Shop, product: UUID, as_customer: Any) -> None:
    """Those of others aren't there."""
    pay_by = await shop.value("select clock() + interval '1 hour'")
    order = await shop.order(
        (product, 3), p_pay_by=pay_by, p_payment_token="tok_1", p_customer_id="ann"
    )
    await shop.settle(await shop.advance(), PENDING)
    with shop.refused("DP010"):
        await as_customer("bob", "select cancel_payment(%s)", order)
    (row,) = await as_customer("ann", "select status from cancel_payment(%s)", order)
    assert row["status"] == "payment_failed"


async def test_an_operator_who_turns_a_saga_back_has_it_wait_for_nobody(
    shop: Shop, pending: UUID, product: UUID
) -> None:
    """It goes all the way, with a second card as well."""
    await shop.run(
        "create or replace function record_payment("
        "p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])"
        " returns outcome_group[] language sql return outcome_for_all('stuck', p_saga_ids)"
    )
    await shop.told(f"{pending}:process_payment", CHARGED)
    await shop.run("select turn_back_saga(%s, 'mended')", pending)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(pending) == "cancelled"
    assert await shop.stock(product) == (10, 0)


async def test_what_a_person_undid_is_not_tried_again_by_itself(shop: Shop, pending: UUID) -> None:
    """A wrong charge that is disputed is undone by hand; then the payer is waited for.

    The card that paid wrongly would have been charged again, and nobody had asked for it.
    """
    key = of_cell(f"{pending}:process_payment")
    dispute = {"outcome": "disputed", "dispute": "open", "reference": "dp_1", "amount": "1.00"}
    assert await shop.told(key, CHARGED | {"amount": "15.00", "captured": "15.00"}) == "applied"
    assert await shop.told(key, dispute | {"currency": "USD", "gateway": "mock"}) == "applied"
    assert await shop.advance() == []
    assert (await shop.saga(pending))["status"] == "stuck"
    await shop.run("select skip_step(%s, 'given back by hand')", pending)
    assert await shop.advance() == []
    assert await shop.statuses() == {"payment_failed": 1}
    assert await pay(shop, pending, "tok_2") == "payment_processing"
    (request,) = await shop.advance()
    assert request["request"]["token"] == "tok_2"
