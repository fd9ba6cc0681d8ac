"""routines/60_payments.sql: answers that are still to come, and those that are none."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, PENDING, UNKNOWN, Row, Shop, of_cell


@pytest.fixture
async def requested(shop: Shop) -> UUID:
    """An order of 20.00 that waits for the gateway."""
    order = await shop.order((await shop.product("10", on_hand=2), 2))
    await shop.advance()
    return order


async def test_a_pending_answer_is_waited_for_until_its_deadline(
    shop: Shop, requested: UUID
) -> None:
    """Pending is no answer: nobody is asked before the deadline, then under the same key."""
    await shop.settle([await shop.lease(requested)], PENDING)
    saga, payment = await shop.saga(requested), await shop.payment(requested)
    assert (saga["status"], saga["attempts"]) == ("waiting", 1)
    assert (payment["status"], payment["gateway_reference"]) == ("pending", "ch_1")
    assert await shop.order_status(requested) == "payment_processing"
    await shop.turn_clock(590)
    assert await shop.advance() == []
    await shop.turn_clock(20)
    assert await shop.advance() == []
    assert (await shop.event(requested, "step_failed"))["error_code"] == "DP013"
    (again,) = await shop.ask_again()
    assert again["request"]["idempotency_key"] == of_cell(f"{requested}:process_payment")
    await shop.settle([again], APPROVED)
    assert await shop.order_status(requested) == "fulfilled"


async def test_what_nobody_confirms_is_voided_after_one_deadline(
    shop: Shop, requested: UUID
) -> None:
    """The gateway is asked once more at the deadline, then the payment is given up, saying when."""
    await shop.settle([await shop.lease(requested)], PENDING)
    await shop.turn_clock(601)
    assert await shop.advance() == []
    await shop.turn_clock(1)
    (again,) = await shop.advance()
    (void,) = await shop.settle([again], PENDING)
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    assert (await shop.payment(requested))["voided_amount"] == 20
    assert await shop.order_status(requested) == "cancelled"
    failures = await shop.rows(
        "select error_code, message from saga_events where event_type = 'step_failed' order by id"
    )
    assert [(each["error_code"], each["message"]) for each in failures] == [
        ("DP013", "still pending after 600 s"),
        ("DP013", "not confirmed within 600 s"),
    ]


async def test_the_deadline_counts_from_the_first_pending_answer(
    shop: Shop, requested: UUID
) -> None:
    """A first try that was unknown and a second that is pending: it has all of its deadline."""
    await shop.settle([await shop.lease(requested)], UNKNOWN)
    (again,) = await shop.ask_again()
    assert await shop.settle([again], PENDING | {"deadline_seconds": 4}) == []
    assert (await shop.saga(requested))["status"] == "waiting"
    await shop.turn_clock(5)
    assert await shop.advance() == []
    (last,) = await shop.ask_again()
    (void,) = await shop.settle([last], PENDING | {"deadline_seconds": 4})
    assert void["step_name"] == "void_payment"
    message = "select message from saga_events where event_type = 'step_failed' order by id desc"
    assert (await shop.values(message))[0] == "not confirmed within 4 s"


async def test_of_those_that_are_pending_each_has_its_own_deadline(shop: Shop) -> None:
    """Answered alike in one batch, who has been pending before is given up, and no other."""
    product = await shop.product("10", on_hand=9)
    old = await shop.order((product, 1))
    await shop.settle(await shop.advance(), PENDING)
    await shop.turn_clock(601)
    new = await shop.order((product, 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    asked = await shop.ask_again()
    assert {each["saga_id"] for each in asked} == {str(old), str(new)}
    (void,) = await shop.settle(asked, PENDING)
    assert void["saga_id"] == str(old)
    assert (await shop.saga(new))["status"] == "waiting"


async def test_a_refund_that_is_pending_is_waited_for(shop: Shop) -> None:
    """Nothing turns back there: after its deadline it is looked up for hours, then stuck."""
    order = await shop.fulfilled((await shop.product("10", on_hand=1), 1))
    refund = (await shop.refund(order, 10))["id"]
    (request,) = await shop.advance()
    for _ in range(2):
        await shop.settle([request], PENDING)
        assert (await shop.saga(refund))["status"] == "waiting"
        assert await shop.ask_again() == []
        (request,) = await shop.ask_again()
    await shop.settle([request], PENDING)
    assert (await shop.saga(refund))["status"] == "stuck"
    assert (await shop.row("select last_error from stuck_sagas"))["last_error"] == (
        "not confirmed within 14400 s"
    )


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [(None, 30), (0, 1), (-5, 1), (1.5, 1.5), (10**9, 604_800), ("NaN", 604_800)],
)
async def test_a_deadline_is_kept_within_bounds(
    shop: Shop, requested: UUID, deadline: Any, seconds: float
) -> None:
    """A pending answer is waited for a second at least and a week at most."""
    await shop.settle([await shop.lease(requested)], PENDING | {"deadline_seconds": deadline})
    waits = await shop.value("select extract(epoch from ready_at - clock()) from sagas")
    assert seconds - 1 < waits <= seconds


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ({"outcome": "pending"}, 300),  # the step's own time
        ({"outcome": "unknown"}, 40),  # its backoff
        ({"outcome": "unknown", "deadline_seconds": 3000}, 40),
    ],
)
async def test_who_names_no_deadline_has_the_steps(
    shop: Shop, requested: UUID, answer: Row, seconds: float
) -> None:
    """An answer says how long it is waited for only where it is pending, and names a time."""
    await shop.run("update step_settings set timeout_seconds = 300, backoff_seconds = 40")
    await shop.settle([await shop.lease(requested)], answer)
    waits = await shop.value("select extract(epoch from ready_at - clock()) from sagas")
    assert 0.4 * seconds < waits <= 1.5 * seconds


async def test_a_deadline_that_is_none_is_a_failed_try(shop: Shop, requested: UUID) -> None:
    """An answer that can't be read is no answer: it is asked again."""
    assert (
        await shop.settle([await shop.lease(requested)], PENDING | {"deadline_seconds": "soon"})
        == []
    )
    saga = await shop.saga(requested)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    (again,) = await shop.ask_again()
    await shop.settle([again], APPROVED)
    assert await shop.order_status(requested) == "fulfilled"


@pytest.mark.parametrize("answer", [{}, {"outcome": None}, {"outcome": "perhaps"}, None, [], "yes"])
async def test_an_answer_without_an_outcome_is_unknown(
    shop: Shop, requested: UUID, answer: Any
) -> None:
    """What isn't approved, declined or pending is never taken for either."""
    assert await shop.settle([await shop.lease(requested)], answer) == []
    saga = await shop.saga(requested)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    assert (await shop.payment(requested))["status"] == "requested"


async def test_an_approval_after_pending_keeps_what_was_known(shop: Shop, requested: UUID) -> None:
    """A reference that the gateway gave while pending isn't forgotten by a terse approval."""
    await shop.settle([await shop.lease(requested)], PENDING)
    await shop.told(f"{requested}:process_payment", {"outcome": "approved"})
    payment = await shop.payment(requested)
    assert (payment["status"], payment["gateway_reference"]) == ("captured", "ch_1")
    assert await shop.value("select bool_and(started_at <= created_at) from saga_events")


async def test_a_void_that_is_pending_is_waited_for(shop: Shop, requested: UUID) -> None:
    """A void may take its time, too: the saga stays compensating until it is told."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], APPROVED)
    await shop.settle([void], PENDING)
    await shop.turn_clock(590)
    assert await shop.advance() == []
    await shop.turn_clock(20)
    (again,) = await shop.advance()
    assert again["request"] == void["request"]
    await shop.settle([again], APPROVED)
    assert (await shop.payment(requested))["refunded_amount"] == 20


async def test_a_void_that_stays_pending_is_looked_up_for_hours(
    shop: Shop, requested: UUID
) -> None:
    """Money that is owed isn't given up when the deadline of a gateway's answer is over."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], APPROVED)
    for _ in range(2):
        await shop.settle([void], PENDING | {"deadline_seconds": 4})
        assert (await shop.saga(requested))["status"] == "compensating"
        await shop.turn_clock(10)
        (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    assert (await shop.payment(requested))["refunded_amount"] == 20


async def void_of_an_unknown_charge(shop: Shop, requested: UUID, captured: str) -> Row:
    """It was charged so much after all, as the void says; the payment then."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], UNKNOWN) or await shop.ask_again()
    await shop.settle([void], APPROVED | {"captured": captured})
    return await shop.payment(requested)


async def test_a_void_whose_amount_makes_no_sense_needs_a_person(
    shop: Shop, requested: UUID
) -> None:
    """What is no amount is never written; what may be owed is told."""
    payment = await void_of_an_unknown_charge(shop, requested, "much")
    assert (payment["status"], payment["captured_amount"]) == ("void_requested", 0)
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP026", 20)


async def test_a_void_of_more_than_was_asked_for_is_written(shop: Shop, requested: UUID) -> None:
    """A gateway that had taken too much and gave it back is believed."""
    payment = await void_of_an_unknown_charge(shop, requested, "20.01")
    assert (payment["status"], str(payment["captured_amount"])) == ("refunded", "20.01")
    assert payment["captured_amount"] == payment["refunded_amount"]


async def test_an_answer_that_cant_be_written_is_one_try(shop: Shop, requested: UUID) -> None:
    """A void whose answer met an error once has been tried once."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], APPROVED)
    await shop.poison("record_void", requested)
    await shop.settle([void], APPROVED)
    await shop.cure("record_void")
    assert (await shop.saga(requested))["attempts"] == 1
    (again,) = await shop.ask_again()
    assert again["attempt"] == 2
    await shop.settle([again], APPROVED)
    assert (await shop.payment(requested))["status"] == "refunded"
