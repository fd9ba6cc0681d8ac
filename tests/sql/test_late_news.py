"""What gateways tell after the answer: nothing that is owed is lost, nothing is paid twice."""

from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, UNKNOWN, Row, Shop, of_cell

CLOSED = {"outcome": "declined", "gateway": "mock", "code": "account_closed"}


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """A fulfilled order of 20.00."""
    return await shop.fulfilled((await shop.product("10", on_hand=9), 2))


@pytest.fixture
async def void(shop: Shop) -> UUID:
    """A cancelled order of 10.00 whose payment was said to be voided, and no more."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(order))["status"] == "voided"
    return order


async def paid_back(shop: Shop, order: UUID, amount: int) -> UUID:
    """A refund that the gateway has approved."""
    refund: UUID = (await shop.refund(order, amount))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    return refund


async def refund_of(shop: Shop, refund: UUID) -> Row:
    """A refund's row."""
    return await shop.row("select * from refunds where id = %s", refund)


async def test_a_refund_that_fails_late_frees_its_amount(shop: Shop, order: UUID) -> None:
    """It is failed, seen by people until another follows, and can be made again."""
    refund = await paid_back(shop, order, 20)
    assert (await shop.payment(order))["status"] == "refunded"
    key = of_cell(f"{refund}:refund_payment")
    assert await shop.told(key, CLOSED) == "applied"
    assert await shop.told(key, CLOSED) == "stale"
    row = await refund_of(shop, refund)
    assert (row["status"], row["decline_code"]) == ("failed", "account_closed")
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("captured", 0)
    told = await shop.event(refund, "reported")
    assert (told["error_code"], told["message"]) == (
        "DP028",
        "refund failed after all: account_closed",
    )
    seen = await shop.row("select * from failed_refunds")
    assert (seen["order_id"], seen["amount"]) == (order, 20)
    assert await shop.value("select failed_refunds from engine_health") == 1
    await paid_back(shop, order, 20)
    assert (await shop.payment(order))["status"] == "refunded"
    assert await shop.value("select failed_refunds from engine_health") == 0


async def test_a_part_that_fails_late_leaves_the_others(shop: Shop, order: UUID) -> None:
    """Only its own amount is free again, and nobody has to say why."""
    first, second = [await paid_back(shop, order, amount) for amount in (5, 7)]
    assert await shop.told(f"{first}:refund_payment", CLOSED) == "applied"
    assert (await shop.payment(order))["refunded_amount"] == 7
    with shop.refused("DP020"):
        await shop.refund(order, 14)
    for_no_reason = {"outcome": "declined", "gateway": "mock"}
    assert await shop.told(f"{second}:refund_payment", for_no_reason) == "applied"
    told = await shop.event(second, "reported")
    assert told["message"] == "refund failed after all: no reason given"
    await paid_back(shop, order, 20)


@pytest.mark.parametrize("less", [0, 4, 6, 11])
async def test_what_was_refunded_shrinks_by_nothing_else(
    shop: Shop, order: UUID, less: int
) -> None:
    """Neither without a refund that failed, nor by more or less than it, nor twice."""
    await paid_back(shop, order, 5)
    failed = await paid_back(shop, order, 6)
    shrink = "update payments set refunded_amount = %s where order_id = %s"
    with shop.refused("DP005"):
        await shop.run(shrink, 5, order)
    await shop.told(f"{failed}:refund_payment", CLOSED)
    with shop.refused("DP005"):
        await shop.run(shrink, less if less < 5 else 4.5, order)
    with shop.refused("DP005"):
        await shop.run("update refunds set status = 'refunded' where id = %s", failed)


async def test_a_late_yes_to_a_declined_refund_is_for_people(shop: Shop, order: UUID) -> None:
    """It may be older than the no: nobody is paid or charged for it, and somebody looks."""
    refund = (await shop.refund(order, 5))["id"]
    await shop.settle(await shop.advance(), DECLINED)
    assert await shop.told(f"{refund}:refund_payment", APPROVED) == "unmatched"
    assert (await refund_of(shop, refund))["status"] == "declined"


async def test_a_yes_that_is_older_than_the_failure_changes_nothing(
    shop: Shop, order: UUID
) -> None:
    """Events may come in any order; failed is the end."""
    refund = await paid_back(shop, order, 5)
    await shop.told(f"{refund}:refund_payment", CLOSED)
    assert await shop.told(f"{refund}:refund_payment", APPROVED) == "stale"
    assert (await refund_of(shop, refund))["status"] == "failed"


async def late_charge(shop: Shop, void: UUID) -> Row:
    """The charge of a voided payment is told of; the call that asks what is back."""
    assert await shop.told(f"{void}:process_payment", APPROVED) == "applied"
    assert await shop.audit() == []
    (request,) = await shop.advance()
    assert request["request"]["operation"] == "void"
    return request


async def test_a_late_charge_that_is_back_already_moves_nothing(shop: Shop, void: UUID) -> None:
    """The gateway is asked to void, which gives back what isn't back: here nothing."""
    request = await late_charge(shop, void)
    await shop.settle([request], APPROVED | {"captured": "10.00", "refunded": "10.00"})
    payment = await shop.payment(void)
    assert (payment["captured_amount"], payment["refunded_amount"]) == (10, 10)
    assert payment["status"] == "refunded"
    assert await shop.audit() == []


async def test_a_charge_that_is_told_before_its_void_is_answered_is_not_forgotten(
    shop: Shop,
) -> None:
    """The void was there first and found nothing: what it leaves with us is for a person."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    requests = await shop.advance()
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert (await shop.payment(order))["captured_amount"] == 10
    assert await shop.told(f"{order}:process_payment", APPROVED) == "stale"
    await shop.settle(requests, APPROVED | {"captured": "0", "refunded": "0"})
    stuck = await shop.row("select * from stuck_sagas")
    assert stuck["last_error_code"] == "DP026"
    await shop.run("select skip_step(%s, 'refunded in the dashboard')", order)
    await shop.advance()
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 10)
    assert await shop.audit() == []


async def test_a_late_charge_of_nothing_moves_nothing(shop: Shop, void: UUID) -> None:
    """A voided payment of which no money was taken stays voided: there is nothing to give back."""
    assert await shop.told(f"{void}:process_payment", APPROVED | {"captured": "0"}) == "stale"
    assert (await shop.payment(void))["status"] == "voided"
    assert await shop.rows("select from refunds") == []


async def test_a_charge_told_after_its_void_was_done_by_hand_moves_nothing(shop: Shop) -> None:
    """Whoever undid it in the dashboard and skipped the step is not undone by a late webhook."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    await shop.settle(await shop.advance(), DECLINED)
    await shop.run("select skip_step(%s, 'voided in the dashboard')", order)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    request = await late_charge(shop, order)
    await shop.settle([request], APPROVED | {"captured": "10.00", "refunded": "10.00"})
    assert (await shop.payment(order))["status"] == "refunded"
    assert await shop.rows("select * from stuck_sagas") == []
    assert await shop.audit() == []


@pytest.mark.parametrize("way", ["retry", "skip", "webhook"])
async def test_what_a_cancelled_order_is_owed_is_never_declined(
    shop: Shop, void: UUID, way: str
) -> None:
    """A no is stuck, with what is owed to whom; it leads out by each way there is."""
    request = await late_charge(shop, void)
    await shop.settle([request], DECLINED)
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP028", 10)
    assert stuck["order_id"] == void
    assert await shop.audit() == []
    refund = UUID(request["saga_id"])
    if way == "retry":
        await shop.run("select retry_saga(%s, 'the gateway is mended')", refund)
        await shop.settle(await shop.advance(), APPROVED)
    elif way == "skip":
        await shop.run("select skip_step(%s, 'refunded in the dashboard')", refund)
    else:
        assert await shop.told(f"{refund}:refund_payment", APPROVED) == "applied"
        await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.saga(refund))["status"] == "completed"
    assert (await shop.payment(void))["refunded_amount"] == 10
    assert await shop.audit() == []


async def test_a_late_charge_of_a_part_is_owed_as_that(shop: Shop, void: UUID) -> None:
    """The books have what was taken, not what was asked for."""
    assert await shop.told(f"{void}:process_payment", APPROVED | {"captured": "4.00"}) == "applied"
    assert (await shop.row("select amount from refunds"))["amount"] == 4
    payment = await shop.payment(void)
    assert (payment["captured_amount"], payment["voided_amount"]) == (4, 6)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(void))["refunded_amount"] == 4


async def test_a_refund_of_a_cancelled_order_that_fails_late_is_owed(
    shop: Shop, void: UUID
) -> None:
    """Whoever sees it gives it back, all of it, by the gateway or by other means."""
    request = await late_charge(shop, void)
    await shop.settle([request], APPROVED)
    assert await shop.told(f"{request['saga_id']}:refund_payment", CLOSED) == "applied"
    assert (await shop.row("select * from failed_refunds"))["order_status"] == "cancelled"
    assert await shop.audit() == []
    with shop.refused("DP015"):
        await shop.refund(void, 4)
    await shop.refund(void)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(void))["refunded_amount"] == 10
    with shop.refused("DP019"):
        await shop.refund(void)


async def test_a_void_that_fails_late_is_asked_for_anew(shop: Shop) -> None:
    """The money that went back didn't: a refund of its own brings it, once."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.cancel(order)
    await shop.settle(await shop.advance(), APPROVED)
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    requests = await shop.advance()
    await shop.cancel(order)
    await shop.settle(await shop.settle(requests, APPROVED), APPROVED)
    assert (await shop.payment(order))["refunded_amount"] == 10
    assert await shop.told(f"{order}:void_payment", CLOSED) == "applied"
    assert await shop.told(f"{order}:void_payment", CLOSED) == "stale"
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("captured", 0)
    assert (await shop.event(order, "reported"))["error_code"] == "DP028"
    assert await shop.audit() == []
    (request,) = await shop.advance()
    assert request["request"]["operation"] == "void"
    await shop.settle([request], APPROVED | {"captured": "10", "refunded": "10"})
    assert (await shop.payment(order))["refunded_amount"] == 10


async def test_a_yes_that_comes_after_the_no_of_a_void_is_asked_about(shop: Shop) -> None:
    """Webhooks come in any order: the yes may be what the no has ended, so nothing goes by it."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    requests = await shop.advance()
    await shop.cancel(order)
    await shop.settle(await shop.settle(requests, APPROVED), UNKNOWN)
    key = of_cell(f"{order}:void_payment")
    assert await shop.told(key, CLOSED) == "applied"
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP028", 10)
    assert await shop.told(key, APPROVED) == "applied"
    assert (await shop.saga(order))["status"] == "compensating"
    assert (await shop.payment(order))["refunded_amount"] == 0
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == key
    assert await shop.told(key, APPROVED) == "applied"
    assert (await shop.payment(order))["refunded_amount"] == 0
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == key
    await shop.settle([request], CLOSED)
    assert (await shop.row("select amount_owed from stuck_sagas"))["amount_owed"] == 10
    assert await shop.told(key, APPROVED) == "applied"
    await shop.settle(await shop.advance(), APPROVED | {"captured": "10", "refunded": "10"})
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.payment(order))["refunded_amount"] == 10


async def test_a_no_after_the_hold_was_let_go_is_for_people(shop: Shop, void: UUID) -> None:
    """A void that says no after yes: the hold may still be there, and somebody looks."""
    assert await shop.told(f"{void}:void_payment", DECLINED) == "unmatched"
    assert (await shop.payment(void))["status"] == "voided"


# By other means.


async def record(shop: Shop, order: UUID, amount: int | None, reason: str | None) -> Row:
    """An operator says that money went back by other means."""
    async with shop.acting_as("service_role"):
        return await shop.row(
            "select * from record_manual_refund(%s, %s, %s, "
            "'01890000-0000-7000-8000-000000000001')",
            order,
            amount,
            reason,
        )


async def test_an_operator_records_what_went_back_by_other_means(shop: Shop, order: UUID) -> None:
    """It is refunded at once, asks nobody, is written once, and says who and why."""
    failed = await paid_back(shop, order, 20)
    await shop.told(f"{failed}:refund_payment", CLOSED)
    for _ in range(2):
        made = await record(shop, order, None, "bank transfer 4711")
        assert (made["status"], made["amount"], made["gateway"]) == ("refunded", 20, "other means")
    assert await shop.advance() == []
    assert (await shop.payment(order))["status"] == "refunded"
    assert await shop.value("select failed_refunds from engine_health") == 0
    assert (await shop.saga(made["id"]))["status"] == "completed"
    action = await shop.row("select * from action_log")
    assert (action["action"], action["reason"]) == ("record_manual_refund", "bank transfer 4711")
    assert await shop.audit() == []


async def test_what_went_back_by_other_means_is_owed(shop: Shop, order: UUID) -> None:
    """No more than is left, of an order that there is, and with a reason."""
    for amount, reason, code in (
        (21, "too much", "DP020"),
        (0, "nothing", "DP015"),
        (1, " ", "DP015"),
    ):
        with shop.refused(code):
            await record(shop, order, amount, reason)
    with shop.refused("DP010"):
        await record(shop, UUID(int=0), 1, "nobody's")
    pending = await shop.order((shop.products[0], 1))
    with shop.refused("DP019"):
        await record(shop, pending, 1, "too early")


async def test_what_went_back_by_other_means_does_not_go_back_by_the_gateway_too(
    shop: Shop, void: UUID
) -> None:
    """Of what a cancelled order is owed a part was paid past the gateway: it gives back the rest.

    A void would give back all, for the gateway knows nothing of the part.
    """
    request = await late_charge(shop, void)
    await shop.settle([request], APPROVED | {"captured": "10", "refunded": "10"})
    assert await shop.told(f"{request['saga_id']}:refund_payment", CLOSED) == "applied"
    await record(shop, void, 4, "in cash")
    refund = (await shop.refund(void))["id"]
    (request,) = await shop.advance()
    asked = request["request"]
    assert (asked["operation"], asked["amount"]) == ("refund", "6")
    half = APPROVED | {"amount": "3", "captured": "10", "refunded": "3"}
    await shop.settle([request], half)
    assert (await shop.saga(refund))["status"] == "stuck"
    await shop.run("select retry_saga(%s, 'the gateway is mended')", refund)
    whole = APPROVED | {"amount": "6", "captured": "10", "refunded": "6"}
    await shop.settle(await shop.advance(), whole)
    assert (await shop.payment(void))["refunded_amount"] == 10
    assert await shop.audit() == []


async def test_what_a_person_gave_back_is_not_taken_back_by_the_gateway(
    shop: Shop, order: UUID
) -> None:
    """A call was declined, somebody paid by hand and skipped it, and the no is told once more."""
    refund = (await shop.refund(order, 5))["id"]
    await shop.give_up_after(0)
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.run("select skip_step(%s, 'refunded in the dashboard')", refund)
    assert await shop.told(f"{refund}:refund_payment", DECLINED) == "stale"
    assert (await refund_of(shop, refund))["status"] == "refunded"
    assert (await shop.payment(order))["refunded_amount"] == 5
    assert await shop.rows("select * from failed_refunds") == []


# Of sagas that are stuck.


async def test_a_stuck_void_takes_its_answer(shop: Shop) -> None:
    """A webhook that comes after the last try does what nobody has to do by hand any more."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.cancel(order)
    await shop.give_up_after(0)
    await shop.settle(await shop.advance(), UNKNOWN)
    assert (await shop.saga(order))["status"] == "stuck"
    assert await shop.told(f"{order}:process_payment", DECLINED) == "stale"
    assert await shop.told(f"{order}:void_payment", DECLINED) == "applied"
    assert (await shop.saga(order))["status"] == "stuck"
    assert await shop.told(f"{order}:void_payment", APPROVED) == "applied"
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "cancelled"


async def test_a_stuck_refund_takes_its_answer(shop: Shop, order: UUID) -> None:
    """Forward as well as back."""
    refund = (await shop.refund(order, 5))["id"]
    await shop.give_up_after(0)
    await shop.settle(await shop.advance(), UNKNOWN)
    assert (await shop.saga(refund))["status"] == "stuck"
    assert await shop.told(f"{refund}:refund_payment", APPROVED) == "applied"
    assert (await refund_of(shop, refund))["status"] == "refunded"
    assert (await shop.saga(refund))["status"] == "completed"


async def test_a_charge_that_met_a_defect_takes_its_answer(shop: Shop) -> None:
    """Set aside on its way forward, it goes on with what the gateway tells."""
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    requests = await shop.advance()
    await shop.poison("record_payment", order, sqlstate="P0001")
    await shop.settle(requests, APPROVED)
    assert (await shop.saga(order))["status"] == "stuck"
    await shop.cure("record_payment")
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
