"""A signal and whatever else happens to its saga at the same moment."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import anyio
import pytest
from psycopg.types.json import Jsonb
from shop import APPROVED, LONG, Shop

Connect = Callable[..., Awaitable[Any]]
Waits = Callable[[int], Awaitable[None]]

CHECKOUT = """
    select define_plan(
        'order_fulfilment',
        step('reserve_stock', p_function => 'reserve_stock',
            p_effect_function => 'move_goods', p_effect => 'reserve',
            p_undo => 'release_stock', p_undo_effect_function => 'move_goods',
            p_undo_effect => 'release', p_order_status_done => 'reserved'),
        step('process_payment', p_function => 'request_payment',
            p_settle_function => 'record_payment', p_undo => 'void_payment',
            p_undo_function => 'request_void', p_undo_settle_function => 'record_void',
            p_order_status_waiting => 'payment_processing', p_order_status_done => 'paid',
            p_order_status_refused => 'payment_failed'),
        step('handover', p_on_deadline => 'turn_back', p_timeout_seconds => 3600),
        step('fulfill_order', p_effect_function => 'move_goods', p_effect => 'fulfill',
            p_order_status_done => 'fulfilled')
    )
"""
"""Orders whose goods leave when somebody says that the parcel was handed over."""

SIGNAL = "select signal_saga(%s, 'handover', '{}', 'e1')"


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """An order of that plan."""
    await shop.run(CHECKOUT)
    return await shop.order((await shop.product(on_hand=10), 1))


@pytest.fixture
async def paid(shop: Shop, order: UUID) -> UUID:
    """An order that waits for its handover."""
    await shop.settle(await shop.advance(), APPROVED)
    await shop.advance()
    assert (await shop.saga(order))["status"] == "waiting"
    return order


def answers(request: Any) -> Jsonb:
    """The approving answer to a request."""
    answer = {key: request[key] for key in ("saga_id", "lease_token")}
    return Jsonb([{**answer, "answer": APPROVED}])


async def disposition(session: Any, saga: UUID, told: list[str]) -> None:
    """Signal a saga; what becomes of it is added to a list."""
    cursor = await session.execute(SIGNAL, [saga])
    told.extend(await cursor.fetchone())


async def test_a_signal_waits_for_the_pass_that_reaches_its_step(
    shop: Shop, connect: Connect, waits: Waits, order: UUID
) -> None:
    """The pass commits first: the signal finds the saga waiting, and is not lost."""
    (request,) = await shop.advance()
    listener = await connect("darkpearl_listener", autocommit=False)
    sender = await connect("darkpearl_app")
    await listener.execute("select * from settle(%s)", [answers(request)])
    told: list[str] = []

    async with anyio.create_task_group() as group:
        group.start_soon(disposition, sender, order, told)
        await waits(sender.info.backend_pid)
        await listener.commit()

    assert told == ["applied"]
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"


async def test_a_pass_that_waits_for_a_signal_hears_it(
    shop: Shop, connect: Connect, waits: Waits, order: UUID
) -> None:
    """The signal commits first: the pass that waited for it finds it when it reaches the step."""
    (request,) = await shop.advance()
    listener = await connect("darkpearl_listener")
    sender = await connect("darkpearl_app", autocommit=False)
    told: list[str] = []
    await disposition(sender, order, told)
    assert told == ["kept"]

    async with anyio.create_task_group() as group:
        group.start_soon(listener.execute, "select * from settle(%s)", [answers(request)])
        await waits(listener.info.backend_pid)
        await sender.commit()

    assert await shop.order_status(order) == "fulfilled"


async def test_a_pass_hears_no_signal_that_is_rolled_back(
    shop: Shop, connect: Connect, waits: Waits, order: UUID
) -> None:
    """A pass that waited for a sender who gives up leaves the saga waiting at its step."""
    (request,) = await shop.advance()
    listener = await connect("darkpearl_listener")
    sender = await connect("darkpearl_app", autocommit=False)
    await disposition(sender, order, [])

    async with anyio.create_task_group() as group:
        group.start_soon(listener.execute, "select * from settle(%s)", [answers(request)])
        await waits(listener.info.backend_pid)
        await sender.rollback()

    assert await shop.order_status(order) == "paid"
    assert (await shop.saga(order))["status"] == "waiting"


async def test_a_signal_that_loses_against_the_deadline_is_stale(
    shop: Shop, connect: Connect, waits: Waits, paid: UUID
) -> None:
    """The pass that turns the saga back commits first: the sender is told that it was too late."""
    await shop.turn_clock(LONG)
    listener = await connect("darkpearl_listener", autocommit=False)
    sender = await connect("darkpearl_app")
    await listener.execute("select * from advance()")
    told: list[str] = []

    async with anyio.create_task_group() as group:
        group.start_soon(disposition, sender, paid, told)
        await waits(sender.info.backend_pid)
        await listener.commit()

    assert told == ["stale"]
    await shop.settle([await shop.lease(paid)], APPROVED)
    assert await shop.order_status(paid) == "cancelled"


async def test_a_deadline_that_loses_against_a_signal_does_nothing(
    shop: Shop, connect: Connect, paid: UUID
) -> None:
    """While a sender speaks no pass claims the saga; the next one goes on with the signal."""
    await shop.turn_clock(LONG)
    sender = await connect("darkpearl_app", autocommit=False)
    await disposition(sender, paid, [])
    await shop.advance()
    assert shop.claimed == 0
    await sender.commit()
    await shop.advance()
    assert await shop.order_status(paid) == "fulfilled"


async def test_a_signal_that_loses_against_a_cancellation_is_stale(
    shop: Shop, connect: Connect, waits: Waits, paid: UUID
) -> None:
    """Who cancels first is heard: the order turns back, and the sender is told."""
    customer = await connect("darkpearl_app", autocommit=False)
    sender = await connect("darkpearl_app")
    await customer.execute("select cancel_order(%s)", [paid])
    told: list[str] = []

    async with anyio.create_task_group() as group:
        group.start_soon(disposition, sender, paid, told)
        await waits(sender.info.backend_pid)
        await customer.commit()

    assert told == ["stale"]
    (request,) = await shop.advance()
    assert request["step_name"] == "void_payment"
    await shop.settle([request], APPROVED)
    assert await shop.order_status(paid) == "cancelled"


async def test_a_cancellation_after_a_signal_is_honoured(
    shop: Shop, connect: Connect, waits: Waits, paid: UUID
) -> None:
    """A signal that no pass has heard yet doesn't keep an order from being cancelled."""
    sender = await connect("darkpearl_app", autocommit=False)
    customer = await connect("darkpearl_app")
    await disposition(sender, paid, [])

    async with anyio.create_task_group() as group:
        group.start_soon(customer.execute, "select cancel_order(%s)", [paid])
        await waits(customer.info.backend_pid)
        await sender.commit()

    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(paid) == "cancelled"
