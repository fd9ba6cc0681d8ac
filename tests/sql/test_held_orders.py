"""routines/66_held_orders.sql: stock is held until it is paid, and kept while money moves."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, KEY, LONG, PENDING, UNKNOWN, Row, Shop, of_cell

HOUR = 3600
METHODS = [
    ("at_payment", "automatic"),
    ("at_fulfilment", "automatic"),
    ("at_payment", "on_shipment"),
    ("at_fulfilment", "on_shipment"),
]
"""When the money is taken, and how the goods leave: each a plan of its own."""


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units at 10.00."""
    return await shop.product(on_hand=10)


@pytest.fixture
async def held(shop: Shop, product: UUID) -> UUID:
    """An order of three of them that is held for an hour."""
    order = await hold(shop, product)
    assert await shop.advance() == []
    return order


async def hold(shop: Shop, product: UUID, seconds: float = HOUR, **arguments: Any) -> UUID:
    """An application places an order of three that is to be paid within so many seconds."""
    pay_by = await shop.value("select clock() + %s * interval '1 second'", seconds)
    async with shop.acting_as("darkpearl_app"):
        return await shop.order((product, 3), p_pay_by=pay_by, **arguments)


async def pay(shop: Shop, order: UUID, token: str | None = "tok_1") -> str:
    """An application has an order paid; its status then."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.value("select status from pay_order(%s, %s)", order, token)


async def pay_by_hand(shop: Shop, order: UUID, amount: Any = 30, reference: str = "T-1") -> Row:
    """An application writes down a transfer; the payment."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.row(
            "select * from record_manual_payment(%s, %s, %s)", order, amount, reference
        )


async def decline(shop: Shop, order: UUID, token: str = "tok_bad") -> None:
    """A token is tried and declined."""
    await pay(shop, order, token)
    await shop.settle(await shop.advance(), DECLINED)
    assert await shop.order_status(order) == "payment_failed"


async def test_a_held_order_waits_with_its_stock(shop: Shop, held: UUID, product: UUID) -> None:
    """Nobody is asked for money; the units can't be sold to anybody else."""
    assert await shop.order_status(held) == "reserved"
    assert await shop.stock(product) == (10, 3)
    saga = await shop.saga(held)
    assert (saga["saga_type"], saga["status"]) == ("held_order_fulfilment", "waiting")
    assert saga["ready_at"] - await shop.value("select pay_by from orders") < (
        await shop.value("select interval '1 second'")
    )
    assert await shop.rows("select * from payments") == []
    health = await shop.row("select ready, waiting, stuck from engine_health")
    assert health == {"ready": 0, "waiting": 1, "stuck": 0}


@pytest.mark.parametrize(("capture", "fulfilment"), METHODS)
async def test_a_held_order_is_paid_later(
    shop: Shop, product: UUID, capture: str, fulfilment: str
) -> None:
    """From then on it goes as any order of its warehouse does."""
    await shop.run(
        "update warehouses set capture_method = %s, fulfilment_method = %s", capture, fulfilment
    )
    order = await hold(shop, product)
    await shop.advance()
    assert await pay(shop, order) == "payment_processing"
    requests = await shop.advance()
    assert [(each["request"]["token"], each["attempt"]) for each in requests] == [("tok_1", 1)]
    await shop.settle(await shop.settle(requests, APPROVED), APPROVED)
    if fulfilment == "on_shipment":
        await shop.run("select ship_items(%s)", order)
        await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (7, 0)
    assert (await shop.payment(order))["captured_amount"] == 30


async def test_who_pays_stands_in_the_history(shop: Shop, held: UUID) -> None:
    """But not with what."""
    await pay(shop, held)
    told = await shop.event(held, "signalled")
    assert (told["step_name"], told["message"]) == ("await_payment", None)
    assert told["actor"] == await shop.value("select session_user")


async def test_an_order_that_is_not_paid_is_cancelled(
    shop: Shop, held: UUID, product: UUID
) -> None:
    """At its deadline, and not before; why is told under a code of its own."""
    await shop.turn_clock(HOUR - 10)
    await shop.advance()
    assert shop.claimed == 0
    await shop.turn_clock(11)
    assert await shop.advance() == []
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)
    assert await shop.event(held, "step_failed") | {
        "error_code": "DP034", "step_name": "await_payment",
    } == await shop.event(held, "step_failed")  # fmt: skip
    failure = await shop.value("select failure from order_summaries where id = %s", held)
    assert failure["code"] == "DP034"
    assert failure["message"].startswith("not paid by 2")
    with shop.refused("DP034"):
        await pay(shop, held)
    with shop.refused("DP034"):
        await pay_by_hand(shop, held)


async def test_nobody_pays_after_the_deadline(shop: Shop, held: UUID, product: UUID) -> None:
    """Though no listener has turned the order back yet; money that has come is welcome then."""
    await shop.turn_clock(HOUR + 1)
    with shop.refused("DP034"):
        await pay(shop, held)
    assert (await pay_by_hand(shop, held))["status"] == "captured"
    await shop.advance()
    assert await shop.order_status(held) == "fulfilled"
    assert await shop.stock(product) == (7, 0)


@pytest.mark.parametrize("answer", [APPROVED, DECLINED])
async def test_the_deadline_does_not_pass_while_money_moves(
    shop: Shop, held: UUID, product: UUID, answer: Row
) -> None:
    """The call is out when the time is over: its answer decides; nothing is released before."""
    await pay(shop, held)
    (request,) = await shop.advance()
    await shop.turn_clock(HOUR + 1)
    await shop.bring([await shop.lease(held) | {"answer": UNKNOWN}])
    assert await shop.order_status(held) == "payment_processing"
    assert await shop.stock(product) == (10, 3)
    (again,) = await shop.ask_again()
    assert again["request"] == request["request"]
    await shop.settle([again], answer)
    assert await shop.order_status(held) == ("fulfilled" if answer is APPROVED else "cancelled")
    assert await shop.stock(product) == ((7, 0) if answer is APPROVED else (10, 0))


async def test_a_payment_that_was_asked_for_in_time_is_tried(shop: Shop, product: UUID) -> None:
    """The deadline passes before any listener comes: whoever has paid in time isn't turned away."""
    order = await hold(shop, product)
    await shop.advance()
    await pay(shop, order)
    await shop.turn_clock(HOUR + 1)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


@pytest.mark.parametrize(("capture", "fulfilment"), METHODS)
async def test_a_second_card(shop: Shop, product: UUID, capture: str, fulfilment: str) -> None:
    """Declined, the order keeps its stock; another token is another charge, under its own key."""
    await shop.run(
        "update warehouses set capture_method = %s, fulfilment_method = %s", capture, fulfilment
    )
    order = await hold(shop, product, p_payment_token="tok_bad")
    (first,) = await shop.advance()
    assert await shop.settle([first], DECLINED) == []
    assert await shop.order_status(order) == "payment_failed"
    assert await shop.stock(product) == (10, 3)
    failure = await shop.value("select failure from order_summaries where id = %s", order)
    assert failure["code"] == "DP014"
    assert await pay(shop, order, "tok_good") == "payment_processing"
    (second,) = await shop.advance()
    assert second["request"]["token"] == "tok_good"
    assert second["request"]["idempotency_key"] == first["request"]["idempotency_key"] + ":2"
    assert second["request"]["payment_key"] == second["request"]["idempotency_key"]
    assert second["attempt"] == 1
    (capturing,) = await shop.settle([second], APPROVED) or [None]
    assert await shop.row(
        "select idempotency_key, status, gateway, decline_code from payment_attempts"
    ) == {
        "idempotency_key": first["request"]["idempotency_key"],
        "status": "declined",
        "gateway": "mock",
        "decline_code": "card_declined",
    }
    payment = await shop.payment(order)
    assert (payment["status"], payment["decline_code"]) == (
        "authorized" if capture == "at_fulfilment" and not capturing else payment["status"], None,
    )  # fmt: skip
    if capturing:
        assert capturing["request"]["payment_key"] == second["request"]["payment_key"]
        await shop.settle([capturing], APPROVED)
    if fulfilment == "on_shipment":
        await shop.run("select ship_items(%s)", order)
        await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_the_same_card_again(shop: Shop, held: UUID) -> None:
    """A payer who has filled up the account tries the same once more: that is another charge."""
    await decline(shop, held, "tok_1")
    await pay(shop, held, "tok_1")
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"].endswith(f":process_payment{KEY}:2")


async def test_a_declined_order_is_cancelled_at_its_deadline(
    shop: Shop, held: UUID, product: UUID
) -> None:
    """With nothing to void."""
    await decline(shop, held)
    await shop.turn_clock(HOUR + 1)
    assert await shop.advance() == []
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)


async def test_a_later_try_has_its_own_time(shop: Shop, held: UUID) -> None:
    """The hours since the first card was declined are no time in which the second was tried."""
    await decline(shop, held)
    await shop.turn_clock(HOUR / 2)
    await pay(shop, held, "tok_2")
    await shop.settle(await shop.advance(), UNKNOWN)
    assert (await shop.saga(held))["status"] == "running"
    await shop.turn_clock(60)
    (again,) = await shop.advance()
    assert again["request"]["idempotency_key"].endswith(":2")
    await shop.settle([again], APPROVED)
    assert await shop.order_status(held) == "fulfilled"


async def test_a_try_that_nobody_answers_is_voided(shop: Shop, held: UUID, product: UUID) -> None:
    """It may have been paid, so its void comes first; then another card is tried."""
    await shop.give_up_after(0)
    await pay(shop, held)
    (void,) = await shop.settle(await shop.advance(), UNKNOWN) or await shop.advance()
    assert void["request"]["operation"] == "void"
    assert await pay(shop, held, "tok_2") == "payment_failed"
    assert await shop.advance() == []
    (second,) = await shop.settle([void], APPROVED)
    assert second["request"]["token"] == "tok_2"
    await shop.settle([second], APPROVED)
    assert await shop.order_status(held) == "fulfilled"
    assert await shop.stock(product) == (7, 0)


async def test_paying_again_while_it_is_tried_changes_nothing(shop: Shop, held: UUID) -> None:
    """The same token; another is refused until the first has its answer."""
    for _ in range(2):
        assert await pay(shop, held) == "payment_processing"
    with shop.refused("DP033"):
        await pay(shop, held, "tok_2")
    with shop.refused("DP033"):
        await pay_by_hand(shop, held)
    (request,) = await shop.advance()
    assert await pay(shop, held) == "payment_processing"
    with shop.refused("DP033"):
        await pay(shop, held, "tok_2")
    await shop.settle([request], PENDING)
    assert await pay(shop, held) == "payment_processing"
    with shop.refused("DP033"):
        await pay_by_hand(shop, held)
    assert len(await shop.rows("select * from saga_events where event_type = 'signalled'")) == 1


async def test_what_is_paid_is_not_paid_again(shop: Shop, held: UUID) -> None:
    """Neither by a token nor by hand."""
    await pay(shop, held)
    await shop.settle(await shop.advance(), APPROVED)
    with shop.refused("DP033") as refusal:
        await pay(shop, held)
    assert refusal.message == "order is paid already"
    with shop.refused("DP033"):
        await pay_by_hand(shop, held)


async def test_an_order_that_is_paid_at_once_is_not_paid_later(shop: Shop, product: UUID) -> None:
    """Its saga asks by itself."""
    order = await shop.order((product, 1))
    for call in (pay, pay_by_hand):
        with shop.refused("DP033"):
            await call(shop, order)
        with shop.refused("DP010"):
            await call(shop, uuid4())


async def test_paid_before_its_stock_is_there(shop: Shop, product: UUID) -> None:
    """A token waits for the stock; where there is none, nobody is charged."""
    one = await hold(shop, product)
    none = await shop.order(
        (product, 8), p_pay_by=await shop.value("select clock() + interval '1 hour'")
    )
    for order in (one, none):
        assert await pay(shop, order) == "pending"
        assert await pay(shop, order) == "pending"
        with shop.refused("DP033"):
            await pay(shop, order, "tok_2")
    (request,) = await shop.advance()
    assert request["saga_id"] == str(one)
    assert await shop.order_status(none) == "cancelled"
    with shop.refused("DP033"):
        await pay(shop, none)


async def test_cancelling_a_held_order(shop: Shop, held: UUID, product: UUID) -> None:
    """Its stock is free at once, before and after a card was declined; then nobody pays it."""
    await decline(shop, held)
    await shop.cancel(held)
    with shop.refused("DP033"):
        await pay(shop, held)
    assert await shop.advance() == []
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)
    with shop.refused("DP033"):
        await pay(shop, held)


async def test_cancelling_while_a_second_card_is_asked_about(
    shop: Shop, held: UUID, product: UUID
) -> None:
    """What may have been paid is voided under the second's key."""
    await decline(shop, held)
    await pay(shop, held, "tok_2")
    await shop.cancel(held)
    (void,) = await shop.advance()
    assert void["request"]["operation"] == "void"
    assert void["request"]["payment_key"].endswith(f":process_payment{KEY}:2")
    await shop.settle([void], APPROVED)
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)


async def test_a_held_order_that_costs_nothing_goes_at_once(shop: Shop, product: UUID) -> None:
    """There is nothing to wait for."""
    adjustments = [{"kind": "discount", "label": "gift", "amount": -30}]
    order = await hold(shop, product, p_adjustments=json.dumps(adjustments))
    assert await shop.advance() == []
    assert await shop.order_status(order) == "fulfilled"


@pytest.mark.parametrize(("capture", "fulfilment"), METHODS)
@pytest.mark.parametrize("declined", [0, 1])
async def test_money_that_came_by_other_means(
    shop: Shop, product: UUID, capture: str, fulfilment: str, declined: int
) -> None:
    """It counts as captured, no gateway is asked, and the order goes on as any that is paid."""
    await shop.run(
        "update warehouses set capture_method = %s, fulfilment_method = %s", capture, fulfilment
    )
    order = await hold(shop, product)
    await shop.advance()
    if declined:
        await decline(shop, order)
    payment = await pay_by_hand(shop, order)
    assert (payment["gateway"], payment["gateway_reference"]) == ("manual", "T-1")
    assert (payment["status"], payment["captured_amount"]) == ("captured", 30)
    assert await pay_by_hand(shop, order) == payment
    assert await shop.order_status(order) == (
        "paid" if capture == "at_payment" else "payment_processing"
    )
    assert await shop.advance() == []
    if fulfilment == "on_shipment":
        await shop.run("select ship_items(%s)", order)
        assert await shop.advance() == []
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (7, 0)
    assert await shop.value("select count(*) from payment_attempts") == declined
    assert await shop.values("select order_id from find_payments('T-1')") == [order]
    assert await shop.value(
        "select subject from action_log where action = 'record_manual_payment'"
    ) == str(order)


@pytest.mark.parametrize("amount", ["29.99", "30.01", "0", "-30", None])
async def test_only_what_is_due_is_written_down(shop: Shop, held: UUID, amount: Any) -> None:
    """Neither a part nor more; the refusal says what is due."""
    with shop.refused("DP041") as refusal:
        await pay_by_hand(shop, held, amount)
    assert "30" in refusal.detail
    assert await shop.order_status(held) == "reserved"


@pytest.mark.parametrize("reference", ["", " ", "x" * 256, "a\u200bb ", None])
async def test_money_by_other_means_has_a_reference(shop: Shop, held: UUID, reference: Any) -> None:
    """By which it is found."""
    with shop.refused("DP015"):
        await pay_by_hand(shop, held, 30, reference)


async def test_money_by_other_means_waits_for_stock(shop: Shop, product: UUID) -> None:
    """Of an order that may be refused nobody says yet that it is paid."""
    order = await hold(shop, product)
    with shop.refused("DP033"):
        await pay_by_hand(shop, order)


@pytest.mark.parametrize("paused", [0, 600])
async def test_cancelling_what_was_paid_by_hand_needs_a_person(
    shop: Shop, held: UUID, product: UUID, paused: int
) -> None:
    """The gateway has nothing to give back: the order is listed with what is owed, and to whom."""
    await shop.run("select pause_external_steps(%s, 'maintenance')", paused)
    await pay_by_hand(shop, held)
    await shop.cancel(held)
    assert await shop.advance() == []
    await shop.turn_clock(paused + 2)
    assert await shop.advance() == []
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["id"], stuck["current_step"]) == (held, "void_payment")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP028", 30)
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'sent back')", held)
    await shop.advance()
    payment = await shop.payment(held)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 30)
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)


async def test_refunds_of_what_was_paid_by_hand_need_a_person(shop: Shop, held: UUID) -> None:
    """No gateway is asked: it waits to be skipped, or is written down at once."""
    await pay_by_hand(shop, held)
    await shop.advance()
    refund = await shop.refund(held, 10)
    assert await shop.advance() == []
    assert await shop.row("select id, amount_owed, last_error_code from stuck_sagas") == {
        "id": refund["id"], "amount_owed": 10, "last_error_code": "DP028",
    }  # fmt: skip
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'sent back')", refund["id"])
        await shop.run("select record_manual_refund(%s, 20, 'cash')", held)
    payment = await shop.payment(held)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 30)


async def test_the_payer_is_told_what_to_do(shop: Shop, held: UUID) -> None:
    """While the payment is pending the order has it; then it is gone."""
    action = {"type": "redirect", "url": "https://bank.example/1"}
    await pay(shop, held)
    await shop.settle(await shop.advance(), PENDING | {"client_action": action})
    told = "select payment ->> 'client_action' from order_details where id = %s"
    assert json.loads(await shop.value(told, held)) == action
    await shop.told(f"{held}:process_payment", APPROVED)
    await shop.advance()
    assert await shop.order_status(held) == "fulfilled"
    assert await shop.value(told, held) is None


@pytest.mark.parametrize("action", ["https://bank.example", ["a"], {"a": "x" * 8193}, None])
async def test_an_action_that_can_not_be_kept_is_left_out(
    shop: Shop, held: UUID, action: Any
) -> None:
    """The payment is pending all the same."""
    await pay(shop, held)
    await shop.settle(await shop.advance(), PENDING | {"client_action": action})
    payment = await shop.payment(held)
    assert (payment["status"], payment["client_action"]) == ("pending", None)


@pytest.mark.parametrize("answer", [DECLINED, APPROVED, UNKNOWN])
async def test_an_action_is_over_with_its_payment(shop: Shop, held: UUID, answer: Row) -> None:
    """Whatever becomes of it: declined, approved, or turned back."""
    await shop.give_up_after(0)
    await pay(shop, held)
    await shop.settle(await shop.advance(), PENDING | {"client_action": {"type": "redirect"}})
    assert (await shop.payment(held))["client_action"] == {"type": "redirect"}
    await shop.turn_clock(601)
    await shop.settle(await shop.advance() or await shop.ask_again(), answer)
    await shop.advance()
    payment = await shop.payment(held)
    assert payment["status"] != "pending"
    assert payment["client_action"] is None


async def test_a_charge_that_was_declined_and_made(shop: Shop, held: UUID, product: UUID) -> None:
    """While the order waits for another card it is the payment after all."""
    await decline(shop, held)
    assert await shop.told(f"{held}:process_payment", APPROVED) == "applied"
    assert await shop.advance() == []
    assert await shop.order_status(held) == "fulfilled"
    assert await shop.stock(product) == (7, 0)


async def test_a_charge_that_nobody_has_asked_for(shop: Shop, held: UUID) -> None:
    """It is no payment of an order that has not tried any: nothing is said to have come of it."""
    assert await shop.told(f"{held}:process_payment", APPROVED) == "stale"
    assert await shop.order_status(held) == "reserved"


async def test_another_amount_of_a_declined_charge(shop: Shop, held: UUID) -> None:
    """It isn't the payment: a person looks."""
    await decline(shop, held)
    wrong = APPROVED | {"amount": "1.00", "currency": "USD"}
    assert await shop.told(f"{held}:process_payment", wrong) == "unmatched"
    assert await shop.order_status(held) == "payment_failed"


async def test_a_charge_of_an_earlier_card(shop: Shop, held: UUID) -> None:
    """Made although another was tried since: a person looks, and the second goes its way."""
    await decline(shop, held)
    await pay(shop, held, "tok_2")
    (request,) = await shop.advance()
    assert await shop.told(f"{held}:process_payment", APPROVED) == "unmatched"
    assert await shop.told(f"{held}:process_payment", DECLINED) == "stale"
    assert await shop.told(f"{held}:process_payment:7", DECLINED) == "unmatched"
    assert await shop.order_status(held) == "payment_processing"
    assert await shop.told(request["request"]["idempotency_key"], APPROVED) == "applied"
    await shop.advance()
    assert await shop.order_status(held) == "fulfilled"
    assert await shop.told(f"{held}:process_payment", APPROVED) == "unmatched"


async def test_a_declined_charge_keeps_its_key(shop: Shop, held: UUID) -> None:
    """No payment changes its key while it may be paid, and none takes one that was declined."""
    await decline(shop, held)
    await pay(shop, held, "tok_2")
    with shop.refused("DP005"):
        await shop.run("update payments set idempotency_key = 'x'")
    await shop.settle(await shop.advance(), DECLINED)
    with shop.refused("DP005"):
        await shop.run(
            "update payments set idempotency_key = %s", of_cell(f"{held}:process_payment")
        )
    for statement in ("update payment_attempts set gateway = 'x'", "delete from payment_attempts"):
        with shop.refused("DP005"):
            await shop.run(statement)


async def test_twenty_cards_are_enough(shop: Shop, held: UUID) -> None:
    """Who tries more than that tries cards out."""
    for number in range(20):
        await decline(shop, held, f"tok_{number}")
    with shop.refused("DP033"):
        await pay(shop, held, "tok_21")
    assert await shop.value("select count(*) from payment_attempts") == 19


async def test_the_audit_sees_who_sleeps_past_the_deadline(shop: Shop, held: UUID) -> None:
    """A saga that will look at it too late holds stock that nobody pays."""
    async with shop.unguarded():
        await shop.run("update sagas set ready_at = ready_at + interval '1 day'")
    (found,) = await shop.rows("select * from audit")
    assert (found["finding"], found["subject"]) == ("held order sleeps past its deadline", held)


async def test_who_is_cancelled_late_does_not_sleep(shop: Shop, held: UUID) -> None:
    """Cancelled long after a deadline that nobody was there to see, it is ready from then on."""
    await shop.turn_clock(2 * HOUR)
    await shop.run("select cancel_order(%s)", held)
    assert await shop.rows("select * from audit") == []
    await shop.advance()
    assert await shop.statuses() == {"cancelled": 1}


@pytest.mark.parametrize("seconds", [-1, 0, 367 * 86400])
async def test_a_deadline_makes_sense(shop: Shop, product: UUID, seconds: float) -> None:
    """It is to come, within a year; by function and by INSERT."""
    with shop.refused("DP015"):
        await hold(shop, product, seconds)
    with shop.refused("DP015"):
        await shop.run(
            "insert into orders (warehouse_id, pay_by)"
            " values (%s, clock() + %s * interval '1 second')",
            *(shop.lisbon, seconds),
        )


async def test_a_deadline_stays(shop: Shop, held: UUID) -> None:
    """Nobody moves it."""
    with shop.refused("DP005"):
        await shop.run("update orders set pay_by = pay_by + interval '1 hour' where id = %s", held)


async def test_an_inserted_order_is_held(shop: Shop, product: UUID) -> None:
    """An application that writes SQL says so in the row."""
    async with shop.acting_as("darkpearl_app"):
        await shop.run("begin")
        order = await shop.value(
            "insert into orders (warehouse_id, pay_by)"
            " values (%s, now() + interval '1 hour') returning id",
            shop.lisbon,
        )
        await shop.run(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " values (%s, %s, %s, 1)",
            *(order, shop.lisbon, product),
        )
        await shop.run("commit")
    await shop.advance()
    assert await shop.order_status(order) == "reserved"


async def test_orders_of_several_warehouses_are_held_together(shop: Shop, product: UUID) -> None:
    """Each until the same moment, and each is paid by itself."""
    await shop.receive(product, 5, shop.rotterdam)
    pay_by = await shop.value("select clock() + interval '1 hour'")
    items = json.dumps([{"product_id": str(product), "quantity": 12}])
    await shop.run("select place_order(p_items => %s, p_pay_by => %s)", items, pay_by)
    await shop.advance()
    orders = await shop.rows("select id, pay_by, status from orders")
    assert [(each["pay_by"], each["status"]) for each in orders] == [(pay_by, "reserved")] * 2


async def test_held_and_plain_orders_in_one_pass(shop: Shop, product: UUID) -> None:
    """Each goes its way."""
    held = await hold(shop, product)
    plain = await shop.order((product, 1))
    late = await hold(shop, product, p_payment_token="tok_bad")
    requests = await shop.advance()
    assert {each["saga_id"] for each in requests} == {str(plain), str(late)}
    await shop.settle(requests, DECLINED)
    assert [await shop.order_status(each) for each in (held, plain, late)] == [
        "reserved", "cancelled", "payment_failed",
    ]  # fmt: skip


async def test_signals_do_not_pay(shop: Shop, held: UUID) -> None:
    """Whoever signals the wait has it look, and there is nothing."""
    async with shop.acting_as("service_role"):
        assert await shop.value("select signal_saga(%s, 'await_payment')", held) == "applied"
    assert await shop.advance() == []
    assert await shop.order_status(held) == "reserved"
    await shop.turn_clock(LONG)
    await shop.advance()
    assert await shop.order_status(held) == "cancelled"


async def test_customers_pay_their_own_orders(shop: Shop, product: UUID, as_customer: Any) -> None:
    """Those of others aren't there; how long stock is held is the shop's to say."""
    order = await hold(shop, product, p_customer_id="ann")
    await shop.advance()
    with shop.refused("DP010"):
        await as_customer("bob", "select pay_order(%s, 'tok_1')", order)
    (row,) = await as_customer("ann", "select status from pay_order(%s, 'tok_1')", order)
    assert row["status"] == "payment_processing"
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    with shop.refused("42501"):
        await as_customer(
            "ann",
            "select place_order(%s, %s, p_pay_by => now() + interval '1 hour')",
            *(shop.lisbon, items),
        )
    with shop.refused("42501"):
        await as_customer("ann", "select record_manual_payment(%s, 30, 'T-1')", order)
    with shop.refused("42501"):
        await as_customer("ann", "select * from payment_attempts")
