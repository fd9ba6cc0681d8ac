"""The database's clock is set back, or jumps forward, under listeners at work."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from shop import Shop
from stand_in import StandIn

from darkpearl.gateways import Answer, Call
from darkpearl.gateways.mock import MockGateway

HOUR = 3600


class Awaited(StandIn):
    """Doesn't answer a charge before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.called = asyncio.Event()
        self.answer = asyncio.Event()

    async def authorize(self, call: Call) -> Answer:
        self.asked.append(call.idempotency_key)
        self.called.set()
        await self.answer.wait()
        return self.approve(call)


class Failing(StandIn):
    """Fails until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = False

    async def authorize(self, call: Call) -> Answer:
        self.asked.append(call.idempotency_key)
        if not self.mended:
            raise ConnectionResetError("peer went away")
        return self.approve(call)


async def is_fulfilled(shop: Shop, order: UUID) -> bool:
    """It came to its end."""
    return await shop.order_status(order) == "fulfilled"


@pytest.fixture
def ends(shop: Shop, until: Any) -> Callable[..., Awaitable[None]]:
    """Waits, a few seconds at most, until orders are fulfilled, each with its events in order."""

    async def fulfilled(*orders: UUID) -> None:
        async def all_are() -> bool:
            return await shop.statuses() == {"fulfilled": len(orders)}

        async with asyncio.timeout(8):
            await until(all_are)
        for order in orders:
            events = await shop.events(order)
            assert events[0] == "saga_started"
            assert events[-1] == "saga_completed"
        assert await shop.value("select bool_and(captured_amount = 10) from payments")

    return fulfilled


async def test_what_was_ready_is_worked_on_after_a_restart(
    shop: Shop, listening: Any, ends: Any
) -> None:
    """Orders that nobody had worked on when the clock was set back by an hour are, at once."""
    product = await shop.product(on_hand=10)
    before = [await shop.order((product, 1)) for _ in range(3)]
    await shop.turn_clock(-HOUR)
    after = await shop.order((product, 1))
    await listening(MockGateway(1.0))
    await ends(*before, after)


@pytest.mark.parametrize("poll_seconds", [0.2, 60.0])
async def test_a_backoff_is_no_longer_than_it_was(
    shop: Shop, listening: Any, until: Any, ends: Any, poll_seconds: float
) -> None:
    """The next try comes when it was to come, though the clock was set back; other work goes on.

    Whether the listener sleeps and polls, or single orders wake it again and again.
    """
    product = await shop.product(on_hand=1000)
    gateway = Failing()
    order = await shop.order((product, 1))
    await listening(gateway, poll_seconds=poll_seconds)

    async def is_backing_off() -> bool:
        failed = "select exists (select from saga_events where event_type = 'step_failed')"
        return bool(await shop.value(failed))

    await until(is_backing_off)
    await shop.turn_clock(-HOUR)
    gateway.mended = True
    orders = [order]
    async with asyncio.timeout(8):
        while await shop.order_status(order) != "fulfilled":
            if poll_seconds > 1:
                orders.append(await shop.order((product, 1)))
                await until(partial(is_fulfilled, shop, orders[-1]))
            await asyncio.sleep(0)
    await ends(*orders)


async def test_a_lease_runs_out_after_its_time(shop: Shop, listening: Any, ends: Any) -> None:
    """A call whose listener was lost is made again when its lease is over, not an hour later."""
    await shop.run("update step_settings set timeout_seconds = 1")
    order = await shop.order((await shop.product(on_hand=1), 1))
    assert len(await shop.advance()) == 1, "a listener asks, and is lost"
    await shop.turn_clock(-HOUR)
    await listening(MockGateway(1.0))
    await ends(order)


async def test_a_clock_that_jumps_charges_nobody_twice(
    shop: Shop, listening: Any, until: Any, ends: Any
) -> None:
    """Leases that run out early make calls be made again, under the same key: one charge."""
    gateway = Awaited()
    order = await shop.order((await shop.product(on_hand=1), 1))
    await listening(gateway, poll_seconds=0.2)
    await gateway.called.wait()
    await shop.turn_clock(HOUR)

    async def is_asked_again() -> bool:
        return len(gateway.asked) > 1

    await until(is_asked_again)
    gateway.answer.set()
    await ends(order)
    assert len(set(gateway.asked)) == 1
