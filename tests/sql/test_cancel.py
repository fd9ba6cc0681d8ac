"""cancel_order() at every moment of an order: what was taken goes back, or it is refused."""

from uuid import UUID

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, PENDING, UNKNOWN, Row, Shop, of_cell


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Two units at 10.00 in Lisbon."""
    return await shop.product("10", on_hand=2)


@pytest.fixture
async def order(shop: Shop, product: UUID) -> UUID:
    """An order of 20.00 for all of them."""
    return await shop.order((product, 2))


async def ends_cancelled(shop: Shop, order: UUID, product: UUID, payment: str | None) -> None:
    """The order is cancelled, the shelf is as before, and the payment is as it is said to be."""
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (2, 0)
    statuses = await shop.values("select status::text from payments where order_id = %s", order)
    assert statuses == ([payment] if payment else [])


async def asked_again(shop: Shop) -> list[Row]:
    """The next requests, once leases and backoffs are over."""
    while not (requests := await shop.ask_again()):
        pass
    return requests


async def test_before_it_is_reserved(shop: Shop, order: UUID, product: UUID) -> None:
    """Nothing was taken, so nothing is asked for and nothing moves."""
    assert await shop.cancel(order) == "pending"
    assert await shop.advance() == []
    await ends_cancelled(shop, order, product, None)
    assert await shop.events(order) == [
        "saga_started",
        "cancelled",
        "compensation_started",
        "saga_compensated",
    ]
    event = await shop.event(order, "cancelled")
    assert event["message"] == "changed my mind"
    assert event["actor"] == await shop.value("select session_user")


async def test_when_it_is_reserved(shop: Shop, order: UUID, product: UUID) -> None:
    """Held back before its payment, it turns back at once and the gateway is never asked."""
    await shop.run("select pause_external_steps(3600, 'test')")
    assert await shop.advance() == []
    assert await shop.cancel(order) == "reserved"
    assert await shop.advance() == []
    await ends_cancelled(shop, order, product, None)


@pytest.mark.parametrize(
    ("answer", "payment"),
    [(APPROVED, "refunded"), (UNKNOWN, "voided"), (PENDING, "voided")],
    ids=["approved", "unknown", "pending"],
)
async def test_while_the_payment_is_in_flight(
    shop: Shop, order: UUID, product: UUID, answer: Row, payment: str
) -> None:
    """The answer that is due is waited for, for what it took has to be given back."""
    requests = await shop.advance()
    assert await shop.cancel(order) == "payment_processing"
    assert await shop.advance() == []
    (void,) = await shop.settle(requests, answer) or await asked_again(shop)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, payment)
    assert await shop.values("select refunded_amount + voided_amount from payments") == [20]


async def test_what_is_pending_is_voided_at_once(shop: Shop, order: UUID, product: UUID) -> None:
    """The payer's confirmation isn't waited for: no call is out, and a void declines it."""
    await shop.settle(await shop.advance(), PENDING)
    await shop.cancel(order)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")
    assert "step_failed process_payment" not in await shop.events(order)


async def test_what_turns_out_pending_is_voided_at_once(
    shop: Shop, order: UUID, product: UUID
) -> None:
    """Cancelled while the call was out, the answer "pending" ends the wait."""
    requests = await shop.advance()
    await shop.cancel(order)
    (void,) = await shop.settle(requests, PENDING)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")


async def test_a_call_that_is_out_again_is_waited_for(
    shop: Shop, order: UUID, product: UUID
) -> None:
    """Asked once more after its deadline, a pending payment is no different from another."""
    await shop.settle(await shop.advance(), PENDING)
    requests = await asked_again(shop)
    assert (await shop.payment(order))["status"] == "pending"
    await shop.cancel(order)
    assert await shop.advance() == []
    (void,) = await shop.settle(requests, APPROVED)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "refunded")


@pytest.mark.parametrize("when", ["before the void is answered", "afterwards"])
async def test_a_late_approval_of_what_was_voided_ends_with_the_money_back(
    shop: Shop, order: UUID, product: UUID, when: str
) -> None:
    """The payer confirmed in the same moment: the void, or a refund after it, gives it back."""
    await shop.settle(await shop.advance(), PENDING)
    await shop.cancel(order)
    (void,) = await shop.advance()
    key = of_cell(f"{order}:process_payment")
    if when == "afterwards":
        await shop.settle([void], APPROVED)
        assert await shop.told(key, APPROVED) == "applied"
        (refund,) = await shop.advance()
        await shop.settle([refund], APPROVED)
    else:
        await shop.told(key, APPROVED)
        await shop.settle([void], APPROVED | {"captured": "20"})
    await ends_cancelled(shop, order, product, "refunded")
    assert await shop.values("select captured_amount - refunded_amount from payments") == [0]


async def test_while_the_payment_is_being_declined(shop: Shop, order: UUID, product: UUID) -> None:
    """A payment that was declined took nothing: there is nothing to void."""
    requests = await shop.advance()
    await shop.cancel(order)
    assert await shop.settle(requests, DECLINED) == []
    await ends_cancelled(shop, order, product, "declined")


async def test_while_nobody_answers(shop: Shop, order: UUID, product: UUID) -> None:
    """An answer that never comes is waited for until its lease ends, then it is voided."""
    await shop.advance()
    await shop.cancel(order)
    (void,) = await asked_again(shop)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")


async def test_between_two_tries(shop: Shop, order: UUID, product: UUID) -> None:
    """It turns back without waiting for the backoff, and voids what the try may have taken.

    Where the charge was never answered, the void's answer says at which gateway it was.
    """
    await shop.settle(await shop.advance(), UNKNOWN)
    assert (await shop.saga(order))["status"] == "running"
    await shop.cancel(order)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")
    payment = await shop.payment(order)
    assert (payment["gateway"], payment["gateway_reference"]) == ("mock", "ch_1")


async def test_when_the_money_is_held(shop: Shop, product: UUID) -> None:
    """Authorised, not yet being captured: what is held is let go of."""
    await shop.capture_at_fulfilment()
    order = await shop.order((product, 2))
    requests = await shop.advance()
    await shop.run("select pause_external_steps(3600, 'test')")
    await shop.settle(requests, APPROVED)
    assert (await shop.payment(order))["status"] == "authorized"
    await shop.cancel(order)
    await shop.run("select pause_external_steps(0, 'test')")
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")


@pytest.mark.parametrize("answer", [None, UNKNOWN, PENDING], ids=["asked", "unknown", "pending"])
async def test_not_once_a_capture_was_asked_for(
    shop: Shop, product: UUID, answer: Row | None
) -> None:
    """Behind the pivot there is no way back, whatever the gateway has said so far."""
    await shop.capture_at_fulfilment()
    order = await shop.order((product, 2))
    captures = await shop.settle(await shop.advance(), APPROVED)
    if answer:
        await shop.settle(captures, answer)
    with shop.refused("DP007"):
        await shop.cancel(order)
    captures = captures if not answer else await asked_again(shop)
    await shop.settle(captures, APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert "cancelled" not in await shop.events(order)


async def test_a_capture_that_failed_is_cancelled_already(shop: Shop, product: UUID) -> None:
    """What turns back by itself needs no cancelling, and says so by doing nothing."""
    await shop.capture_at_fulfilment()
    order = await shop.order((product, 2))
    captures = await shop.settle(await shop.advance(), APPROVED)
    (void,) = await shop.settle(captures, DECLINED)
    assert await shop.cancel(order) == "payment_failed"
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")
    assert "cancelled" not in await shop.events(order)


async def test_when_the_money_is_taken(shop: Shop, order: UUID, product: UUID) -> None:
    """Captured at payment, the goods still here: all of it is given back."""
    await shop.poison("fulfill_order", order)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(order))["status"] == "captured"
    await shop.cancel(order)
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "refunded")


async def test_while_it_turns_back(shop: Shop, order: UUID, product: UUID) -> None:
    """Compensating is being cancelled: asking for it changes nothing."""
    await shop.give_up_after(0, "process_payment")
    (void,) = await shop.settle(await shop.advance(), UNKNOWN)
    before = await shop.saga(order)
    assert await shop.cancel(order) == "payment_failed"
    assert await shop.saga(order) == before
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")


async def test_when_its_request_was_given_back(shop: Shop, order: UUID, product: UUID) -> None:
    """What was written down for a call that was never made is undone, and voided to be sure."""
    await shop.advance()
    lease = await shop.lease(order)
    await shop.bring([{**lease, "deferred_seconds": 60, "answer": {"message": "not asked"}}])
    await shop.cancel(order)
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    await ends_cancelled(shop, order, product, "voided")


async def test_when_it_is_stuck(shop: Shop, order: UUID) -> None:
    """A person has to look at it first, and is told where."""
    await shop.give_up_after(0)
    (void,) = await shop.settle(await shop.advance(), UNKNOWN)
    await shop.settle([void], DECLINED)
    assert (await shop.saga(order))["status"] == "stuck"
    with shop.refused("DP007") as refusal:
        await shop.cancel(order)
    assert "stuck_sagas" in refusal.hint


async def test_when_it_is_fulfilled(shop: Shop, product: UUID) -> None:
    """What has left can only come back, and the refusal says how."""
    order = await shop.fulfilled((product, 2))
    with shop.refused("DP007") as refusal:
        await shop.cancel(order)
    assert "return_items()" in refusal.hint
    assert "refund_order()" in refusal.hint


async def test_twice_is_once(shop: Shop, order: UUID, product: UUID) -> None:
    """Asked for again, at any time, it is the same cancellation."""
    requests = await shop.advance()
    await shop.cancel(order)
    await shop.cancel(order)
    (void,) = await shop.settle(requests, APPROVED)
    assert await shop.cancel(order) == "paid"
    await shop.settle([void], APPROVED)
    assert await shop.cancel(order) == "cancelled"
    await ends_cancelled(shop, order, product, "refunded")
    assert (await shop.events(order)).count("cancelled") == 1
    assert (await shop.events(order))[-2:] == COMPENSATED
