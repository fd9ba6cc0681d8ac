"""routines/60_payments.sql: answers that are still to come, and those that are none."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, PENDING, UNKNOWN, Row, Shop


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
    assert again["request"]["idempotency_key"] == f"{requested}:process_payment"
    await shop.settle([again], APPROVED)
    assert await shop.order_status(requested) == "fulfilled"


async def test_what_is_pending_for_ever_is_voided(shop: Shop, requested: UUID) -> None:
    """Every deadline uses up a try; after the last the payment is voided, whatever it is."""
    await shop.run("update step_settings set max_attempts = 2")
    await shop.settle([await shop.lease(requested)], PENDING)
    assert await shop.ask_again() == []
    (again,) = await shop.ask_again()
    await shop.settle([again], PENDING)
    (void,) = await shop.ask_again()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    assert (await shop.payment(requested))["voided_amount"] == 20
    assert await shop.order_status(requested) == "cancelled"


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


@pytest.mark.parametrize("captured", ["20.01", "much"])
async def test_a_void_whose_amount_makes_no_sense_needs_a_person(
    shop: Shop, requested: UUID, captured: str
) -> None:
    """More than was asked for can't have been captured: never written, in the end stuck."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], UNKNOWN) or await shop.ask_again()
    for _ in range(10):
        if (await shop.saga(requested))["status"] == "stuck":
            break
        await shop.settle([void], APPROVED | {"captured": captured})
        void = next(iter(await shop.ask_again()), void)
    payment = await shop.payment(requested)
    assert (payment["status"], payment["captured_amount"]) == ("void_requested", 0)
    assert (await shop.row("select * from stuck_sagas"))["amount_owed"] == 20


async def test_an_answer_that_cant_be_written_is_one_try(shop: Shop, requested: UUID) -> None:
    """A void that was answered nonsense once has been tried once."""
    await shop.cancel(requested)
    (void,) = await shop.settle([await shop.lease(requested)], APPROVED)
    await shop.settle([void], APPROVED | {"captured": "much"})
    assert (await shop.saga(requested))["attempts"] == 1
    (again,) = await shop.ask_again()
    assert again["attempt"] == 2
    await shop.settle([again], APPROVED)
    assert (await shop.payment(requested))["status"] == "refunded"
