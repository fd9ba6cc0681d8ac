"""Two sessions and one payment."""

from typing import Any
from uuid import UUID

import anyio
import psycopg
import pytest
from psycopg.types.json import Jsonb
from shop import APPROVED, Shop, of_cell


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """A fulfilled order of 30.00 for three units."""
    return await shop.fulfilled((await shop.product("10", on_hand=3), 3))


async def race(
    connect: Any, waits: Any, first: str, second: str, *about: Any, role: str = "darkpearl_app"
) -> list[Any]:
    """Two sessions at once: the second waits for the first; its row, or its SQLSTATE."""
    one = await connect(role, autocommit=False)
    other = await connect(role)
    await one.execute(first, about)
    found: list[Any] = []

    async def go_second() -> None:
        try:
            found.extend(await (await other.execute(second, about)).fetchall())
        except psycopg.Error as error:
            found.append(error.sqlstate)

    async with anyio.create_task_group() as group:
        group.start_soon(go_second)
        await waits(other.info.backend_pid)
        await one.commit()
    return found


async def test_two_refunds_at_once_stay_within_what_was_captured(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """The second refund waits for the first and counts with it: it is refused, not paid."""
    refund = "select (refund_order(%s, 20)).amount"
    assert await race(connect, waits, refund, refund, order) == ["DP020"]
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(order))["refunded_amount"] == 20


async def test_a_refund_takes_what_another_has_left(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """All that is left is what is left once the one before has committed."""
    found = await race(
        connect,
        waits,
        "select refund_order(%s, 20)",
        "select (refund_order(%s)).amount::text",
        order,
    )
    assert found == [("10",)]
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(order))["status"] == "refunded"


async def test_the_same_refund_twice_at_once_is_made_once(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """Two sessions that repeat one refund at once are both told of the one that was made."""
    refund = "select (refund_order(%s, 20, null, '01890000-0000-7000-8000-000000000001')).amount"
    assert await race(connect, waits, refund, refund, order) == [(20,)]
    assert await shop.value("select count(*) from refunds") == 1


async def test_a_refund_waits_for_the_dispute_that_is_just_told(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """Told and asked for at once: the refund knows of the dispute, and is refused."""
    dispute = (
        "select record_gateway_event('mock', 'evt_1', concat(%s::text, ':process_payment'),"
        ' \'{"outcome": "disputed", "dispute": "open", "reference": "dp_1"}\')'
    )
    refund = "select refund_order(%s, 20)"
    found = await race(connect, waits, dispute, refund, order, role="service_role")
    assert found == ["DP027"]
    assert await shop.value("select count(*) from refunds") == 0


async def test_two_hands_that_pay_a_failed_refund_at_once_pay_it_once(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """Who records a bank transfer waits for who refunds by the gateway, and is refused."""
    refund = (await shop.refund(order))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    failed = {"outcome": "declined", "code": "account_closed"}
    assert await shop.told(f"{refund}:refund_payment", failed) == "applied"
    record = "select record_manual_refund(%s, null, 'bank transfer')"
    pay = "select refund_order(%s)"
    assert await race(connect, waits, pay, record, order, role="service_role") == ["DP020"]


async def test_two_returns_at_once_stay_within_what_was_sent(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """The second return waits for the first and counts with it: it is refused, not booked."""
    returned = (
        "select return_items(%s, jsonb_build_array("
        "jsonb_build_object('product_id', %s::uuid, 'quantity', 2)))"
    )
    (product,) = shop.products
    assert await race(connect, waits, returned, returned, order, product) == ["DP021"]
    assert await shop.stock(product) == (2, 0)


async def test_the_same_return_twice_at_once_is_booked_once(
    shop: Shop, order: UUID, connect: Any, waits: Any
) -> None:
    """Two sessions that repeat one return at once are both told what it moved."""
    returned = (
        "select quantity from return_items(%s, null, null, '01890000-0000-7000-8000-000000000001')"
    )
    assert await race(connect, waits, returned, returned, order) == [(3,)]
    assert await shop.stock(shop.products[0]) == (3, 0)


EVENT = "select record_gateway_event('mock', 'evt_1', %s, '{\"outcome\": \"approved\"}')"


async def test_an_event_delivered_twice_at_once_is_taken_once(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """The second delivery waits for the first, and finds that it was one."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.advance()
    one, other = await connect("service_role", autocommit=False), await connect("service_role")
    key = of_cell(f"{order}:process_payment")
    first = await (await one.execute(EVENT, [key])).fetchone()
    found: list[Any] = []

    async def deliver_again() -> None:
        found.append(await (await other.execute(EVENT, [key])).fetchone())

    async with anyio.create_task_group() as group:
        group.start_soon(deliver_again)
        await waits(other.info.backend_pid)
        await one.commit()

    assert (first, found) == (("applied",), [("duplicate",)])
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"


async def test_an_event_waits_for_the_answer_that_is_being_settled(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Answer and webhook at once: the second waits for the first and changes nothing."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    (request,) = await shop.advance()
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("service_role")
    lease = {"saga_id": str(order), "lease_token": request["lease_token"]}
    await one.execute("select settle(%s)", [Jsonb([lease | {"answer": APPROVED}])])
    found: list[Any] = []

    async def tell() -> None:
        found.append(
            await (await other.execute(EVENT, [of_cell(f"{order}:process_payment")])).fetchone()
        )

    async with anyio.create_task_group() as group:
        group.start_soon(tell)
        await waits(other.info.backend_pid)
        await one.commit()

    assert found == [("stale",)]
    assert (await shop.events(order)).count("step_completed process_payment") == 1


async def test_the_end_of_a_pause_finds_who_begins_to_wait_for_it(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Who ends a pause waits for a pass that is just holding sagas back, and wakes those too."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.run("select pause_external_steps(3600, 'test')")
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("service_role")
    await one.execute("select advance()")

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select pause_external_steps(0, 'test')")
        await waits(other.info.backend_pid)
        await one.commit()

    await shop.turn_clock(2)
    assert [each["saga_id"] for each in await shop.advance()] == [str(order)]


async def test_refunds_lock_their_payments_in_order(shop: Shop, connect: Any, waits: Any) -> None:
    """Whatever the order of the answers, who waits for a payment holds none behind it."""
    product = await shop.product(on_hand=9)
    orders = sorted([await shop.fulfilled((product, 1)) for _ in range(4)])
    refunds = [(await shop.refund(order))["id"] for order in reversed(orders)]
    holder, recorder = await connect(autocommit=False), await connect()
    lock = "select from payments where order_id = %s for update nowait"
    await holder.execute(lock, [orders[0]])

    async with anyio.create_task_group() as group:
        group.start_soon(
            recorder.execute,
            "select record_refund(array[%s], %s, %s)",
            [shop.lisbon, refunds, [Jsonb(APPROVED)] * len(refunds)],
        )
        await waits(recorder.info.backend_pid)
        for order in orders[1:]:
            await holder.execute(lock, [order])
        await holder.commit()
    shop.audited = False  # the sagas know nothing of it
