"""routines/57_operators.sql: pause_external_steps() holds back calls, and nothing else."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, UNKNOWN, Shop


async def pause(shop: Shop, seconds: Any) -> None:
    """An operator pauses all calls."""
    async with shop.acting_as("service_role"):
        await shop.run("select pause_external_steps(%s, 'test')", seconds)


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """An order that is placed, and no more."""
    return await shop.order((await shop.product(on_hand=1), 1))


async def test_other_steps_go_on(shop: Shop, order: UUID) -> None:
    """Stock is reserved while nobody can pay; the saga waits before its payment."""
    await pause(shop, 60)
    assert await shop.advance() == []
    assert await shop.order_status(order) == "reserved"
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("running", 0)
    assert await shop.events(order) == ["saga_started", "step_completed reserve_stock"]
    assert await shop.values("select count(*) from payments") == [0]


async def test_nobody_is_refused_for_a_pause(shop: Shop) -> None:
    """Orders that can't be reserved are cancelled meanwhile, as ever."""
    await pause(shop, 60)
    order = await shop.order((await shop.product(), 1))
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"


async def test_sagas_go_on_when_it_is_over(shop: Shop, order: UUID) -> None:
    """At the end of the pause, and within a second after it, not before."""
    await pause(shop, 60)
    await shop.advance()
    await shop.turn_clock(58)
    await shop.advance()
    assert shop.claimed == 0
    await shop.turn_clock(3.5)
    (request,) = await shop.advance()
    assert request["attempt"] == 1
    await shop.settle([request], APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_sagas_go_on_when_it_is_ended_early(shop: Shop, order: UUID) -> None:
    """Zero seconds ends a pause for all who wait for it, however long it was to be."""
    await pause(shop, 60)
    await shop.advance()
    await pause(shop, 86400)
    assert await shop.advance() == []
    await pause(shop, 0)
    await shop.turn_clock(1.5)
    (request,) = await shop.advance()
    await shop.settle([request], APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_a_longer_pause_is_waited_for_by_all(shop: Shop, order: UUID) -> None:
    """Who waited for the end of the first waits for that of the second, and isn't looked at."""
    await pause(shop, 60)
    await shop.advance()
    await pause(shop, 600)
    await shop.turn_clock(599)
    await shop.advance()
    assert shop.claimed == 0
    await shop.turn_clock(3)
    assert [each["saga_id"] for each in await shop.advance()] == [str(order)]


async def test_a_shorter_pause_cuts_none_short(shop: Shop, order: UUID) -> None:
    """A listener's second doesn't end an operator's hour."""
    await pause(shop, 3600)
    await pause(shop, 1)
    await shop.turn_clock(10)
    assert await shop.advance() == []
    assert await shop.order_status(order) == "reserved"


async def test_a_pause_uses_up_no_attempts(shop: Shop, order: UUID) -> None:
    """Between two tries, too: what was tried once before has been tried once after."""
    await shop.settle(await shop.advance(), UNKNOWN)
    await pause(shop, 86400)
    for _ in range(10):
        await shop.ask_again()
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    await pause(shop, 0)
    (request,) = await shop.ask_again()
    assert request["attempt"] == 2


async def test_answers_to_calls_that_are_out_count(shop: Shop, order: UUID) -> None:
    """A lease is untouched: its answer is taken, and the rest of the way needs no call."""
    requests = await shop.advance()
    await pause(shop, 60)
    await shop.settle(requests, APPROVED)
    assert shop.stale == []
    assert await shop.order_status(order) == "fulfilled"


async def test_a_lease_runs_out_in_a_pause_as_ever(shop: Shop, order: UUID) -> None:
    """A call that nobody answers is a failed try; the next waits for the end of the pause."""
    await shop.advance()
    await pause(shop, 86400)
    await shop.turn_clock(40)
    await shop.advance()
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP013"
    assert await shop.ask_again() == []
    assert (await shop.saga(order))["attempts"] == 1


async def test_undos_outside_pause_too(shop: Shop, order: UUID) -> None:
    """A void is a call as well: the saga stays compensating, then asks."""
    requests = await shop.advance()
    await shop.cancel(order)
    await pause(shop, 60)
    assert await shop.settle(requests, APPROVED) == []
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("compensating", 0)
    await pause(shop, 0)
    await shop.turn_clock(1.5)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    assert (await shop.events(order))[-2:] == COMPENSATED


async def test_undos_inside_go_on(shop: Shop, order: UUID) -> None:
    """Stock of a declined order is released, pause or not."""
    requests = await shop.advance()
    await pause(shop, 60)
    await shop.settle(requests, DECLINED)
    assert await shop.order_status(order) == "cancelled"


async def test_refunds_pause_too(shop: Shop) -> None:
    """What goes to the gateway waits, whichever saga it belongs to."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    await pause(shop, 60)
    await shop.refund(order)
    assert await shop.advance() == []
    await shop.turn_clock(62)
    assert [each["step_name"] for each in await shop.advance()] == ["refund_payment"]


async def test_a_backoff_is_not_cut_short(shop: Shop, order: UUID) -> None:
    """Ending a pause wakes who waits for its end, and nobody else."""
    await shop.settle(await shop.advance(), UNKNOWN)
    before = (await shop.saga(order))["ready_at"]
    await pause(shop, 3600)
    await pause(shop, 0)
    assert (await shop.saga(order))["ready_at"] == before


async def test_a_pause_is_told(shop: Shop) -> None:
    """engine_health says until when; nothing once it is over."""
    told = "select extract(epoch from external_steps_paused_until - clock()) from engine_health"
    assert await shop.value(told) is None
    await pause(shop, 60)
    assert 50 < await shop.value(told) <= 60
    await shop.turn_clock(61)
    assert await shop.value(told) is None


@pytest.mark.parametrize("seconds", [None, -1, 86401, "NaN"])
async def test_a_pause_is_bounded(shop: Shop, seconds: Any) -> None:
    """At most a day at once, and not into the past."""
    with shop.refused("DP015"):
        await pause(shop, seconds)


@pytest.mark.parametrize(
    "role", ["anon", "authenticated", "darkpearl_app", "darkpearl_reader", "darkpearl_listener"]
)
async def test_not_everybody_pauses(shop: Shop, role: str) -> None:
    """Only staff hold back all payments: a listener stops asking by itself, and nobody else."""
    async with shop.acting_as(role):
        with shop.refused("42501"):
            await shop.run("select pause_external_steps(1, 'test')")
