"""Somebody holds what a pass would change: it leaves that aside, and the others go on."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest
from psycopg.rows import dict_row
from shop import APPROVED, DECLINED, LONG, Shop

Connect = Callable[..., Awaitable[Any]]
Holds = Callable[..., Awaitable[Any]]

SOON_SECONDS = 10.0
"""In which a pass is through on a busy machine; who holds something never lets go."""
NOTE = "update orders set notes = 'call first' where id = %s"
LOCK_ORDER = "select from orders where id = %s for update"
SHARE_ORDER = "select from orders where id = %s for share"
LOCK_PAYMENT = "select from payments where order_id = %s for update"
LOCK_SHELF = "select from inventory where product_id = %s for update"
LOCK_SHELF_OF = "select from inventory where product_id = %s and warehouse_id = %s for update"
CANCEL = "select cancel_order(%s, 'changed my mind')"


@pytest.fixture
async def holds(connect: Connect) -> Holds:
    """Runs a statement in a transaction that is left open; returns its connection."""

    async def leave_open(statement: str, *parameters: Any, role: str | None = None) -> Any:
        session = await connect(role, autocommit=False)
        await session.execute(statement.encode(), parameters)
        return session

    return leave_open


@asynccontextmanager
async def soon() -> AsyncIterator[None]:
    """What is done inside takes no longer than that."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < SOON_SECONDS


async def test_an_order_that_is_held_keeps_no_other(shop: Shop, holds: Holds) -> None:
    """An application annotates an order and stays in its transaction: twenty others go on.

    The held one loses no attempt, has one event however long it takes, and goes on afterwards.
    """
    product = await shop.product(on_hand=100)
    orders = [await shop.order((product, 1)) for _ in range(21)]
    held = orders[7]
    holder = await holds(NOTE, held, role="darkpearl_app")
    async with soon():
        requests = await shop.advance()
        await shop.settle(requests, APPROVED)
    assert await shop.statuses() == {"fulfilled": 20, "pending": 1}
    for _ in range(5):
        await shop.turn_clock(60)
        assert await shop.advance() == []
        assert shop.claimed == 1
    saga = await shop.saga(held)
    assert (saga["status"], saga["attempts"], saga["lease_token"]) == ("running", 0, 0)
    assert (await shop.events(held))[1:] == ["step_deferred reserve_stock"]
    await holder.commit()
    await shop.turn_clock(60)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(held) == "fulfilled"


@pytest.mark.parametrize("what", ["return", "receipt", "row"])
async def test_a_shelf_that_is_held_keeps_no_other(shop: Shop, holds: Holds, what: str) -> None:
    """Goods come back or arrive in a transaction that stays open: other shelves are served."""
    product, elsewhere = await shop.product(on_hand=100), await shop.product(on_hand=100)
    sent = await shop.fulfilled((product, 2))
    if what == "return":
        holder = await holds("select return_items(%s)", sent, role="darkpearl_app")
    elif what == "receipt":
        receipt = "select receive_stock(%s, %s, 1)"
        holder = await holds(receipt, shop.lisbon, product, role="service_role")
    else:
        holder = await holds(LOCK_SHELF, product)
    held = [await shop.order((product, 1), (elsewhere, 1)) for _ in range(3)]
    others = [await shop.order((elsewhere, 1)) for _ in range(20)]
    async with soon():
        await shop.settle(await shop.advance(), APPROVED)
    assert {await shop.order_status(order) for order in others} == {"fulfilled"}
    assert {await shop.order_status(order) for order in held} == {"pending"}
    await holder.commit()
    await shop.turn_clock(60)
    await shop.settle(await shop.advance(), APPROVED)
    assert {await shop.order_status(order) for order in held} == {"fulfilled"}
    assert await shop.values("select distinct attempt from saga_events where attempt > 1") == []


async def test_a_shelf_that_is_held_is_of_one_warehouse(shop: Shop, holds: Holds) -> None:
    """It keeps no order of its product elsewhere, nor one that no shelf of its warehouse is for."""
    product, absent = await shop.product(on_hand=9), await shop.product()
    for each in (product, absent):
        await shop.receive(each, 9, shop.rotterdam)
    held = await shop.order((product, 1), warehouse=shop.rotterdam)
    here, short = await shop.order((product, 1)), await shop.order((absent, 1))
    await holds(LOCK_SHELF_OF, product, shop.rotterdam)
    async with soon():
        await shop.settle(await shop.advance(), APPROVED)
    statuses = [await shop.order_status(order) for order in (held, here, short)]
    assert statuses == ["pending", "fulfilled", "cancelled"]


@pytest.mark.parametrize("statement", [LOCK_ORDER, SHARE_ORDER, NOTE])
async def test_three_of_a_thousand_are_left_aside(shop: Shop, holds: Holds, statement: str) -> None:
    """A thousand orders in one claim, three of them held by three sessions: 997 go on at once."""
    product = await shop.product(on_hand=5000)
    orders = await shop.values(
        "select (place_order(%s, %s)).id from generate_series(1, 1000)",
        shop.lisbon,
        json.dumps([{"product_id": str(product), "quantity": 1}]),
    )
    for held in (orders[0], orders[500], orders[999]):
        await holds(statement, held)
    async with soon():
        requests = await shop.advance(1000)
    assert (len(requests), shop.claimed) == (997, 1000)
    assert await shop.statuses() == {"payment_processing": 997, "pending": 3}


async def test_what_several_hold_is_left_aside_at_once(shop: Shop, holds: Holds) -> None:
    """Orders, shelves and payments of different orders in one claim, each held by another."""
    product, shelf = await shop.product(on_hand=100), await shop.product(on_hand=100)
    asked_again = await shop.order((product, 1))
    await shop.advance()
    await shop.turn_clock(31)
    await shop.advance()  # The lease has run out: the next request comes after a backoff.
    await shop.turn_clock(2)
    noted, short = await shop.order((product, 1)), await shop.order((shelf, 1))
    others = [await shop.order((product, 1)) for _ in range(5)]
    for statement, key in [(NOTE, noted), (LOCK_SHELF, shelf), (LOCK_PAYMENT, asked_again)]:
        await holds(statement, key)
    before = await shop.saga(asked_again)
    async with soon():
        await shop.settle(await shop.advance(), APPROVED)
    assert {await shop.order_status(order) for order in others} == {"fulfilled"}
    after = await shop.saga(asked_again)
    assert after["ready_at"] > before["ready_at"]
    assert (after["status"], after["attempts"]) == (before["status"], before["attempts"])
    assert {await shop.order_status(order) for order in (noted, short)} == {"pending"}


@pytest.mark.parametrize("statement", [CANCEL, NOTE, LOCK_PAYMENT])
async def test_an_answer_whose_saga_is_held_is_given_back(
    shop: Shop, holds: Holds, statement: str
) -> None:
    """Nineteen answers are recorded, the twentieth is to be brought again, and isn't lost.

    Its lease lasts until then, and it counts as the answer to the first request.
    """
    product = await shop.product(on_hand=100)
    orders = [await shop.order((product, 1)) for _ in range(20)]
    requests = await shop.advance()
    held = orders[3]
    holder = await holds(statement, held)
    await shop.turn_clock(31)
    answers = [{**each, "answer": APPROVED} for each in requests]
    async with soon():
        rows = await shop.bring(answers)
        await shop.advance()
    given_back = [(row["saga_id"], row["error_code"]) for row in rows if row["error_code"]]
    assert given_back == [(held, "55P03")]
    assert (await shop.statuses())["fulfilled"] == 19
    await holder.rollback()
    again = [each for each in answers if each["saga_id"] == str(held)]
    assert [row["error_code"] for row in await shop.bring(again)] == []
    assert await shop.order_status(held) == "fulfilled"
    assert (await shop.events(held)).count("step_waiting process_payment") == 1


async def test_money_is_recorded_while_the_shelf_is_held(shop: Shop, holds: Holds) -> None:
    """An answer needs no shelf: it is kept, and the goods leave when they can, however late."""
    product, elsewhere = await shop.product(on_hand=9), await shop.product(on_hand=9)
    held, other = await shop.order((product, 1)), await shop.order((elsewhere, 1))
    requests = await shop.advance()
    holder = await holds(LOCK_SHELF, product)
    async with soon():
        await shop.settle(requests, APPROVED)
        await shop.advance()
    assert await shop.order_status(other) == "fulfilled"
    for _ in range(7):
        assert await shop.order_status(held) == "paid"
        await shop.turn_clock(LONG)
        assert await shop.advance() == []
    await holder.commit()
    await shop.turn_clock(LONG)
    await shop.advance()
    assert await shop.order_status(held) == "fulfilled"


async def test_a_refund_whose_payment_is_held_keeps_no_other(shop: Shop, holds: Holds) -> None:
    """The answer to a refund waits for the payment of its order; that to another doesn't."""
    product = await shop.product(on_hand=9)
    orders = [await shop.fulfilled((product, 1)) for _ in range(2)]
    refunds = [(await shop.refund(order))["id"] for order in orders]
    requests = await shop.advance()
    await holds(LOCK_PAYMENT, orders[0])
    async with soon():
        rows = await shop.bring([{**each, "answer": APPROVED} for each in requests])
    assert [row["saga_id"] for row in rows] == [refunds[0]]
    status = "select status from refunds where id = %s"
    assert [await shop.value(status, each) for each in refunds] == ["requested", "refunded"]


async def test_a_saga_on_its_way_back_waits_for_its_shelf(shop: Shop, holds: Holds) -> None:
    """What was reserved is released when the shelf can be had: no undo is counted as failed."""
    product = await shop.product(on_hand=9)
    order = await shop.order((product, 1))
    requests = await shop.advance()
    holder = await holds(LOCK_SHELF, product)
    await shop.settle(requests, DECLINED)
    for _ in range(7):
        await shop.advance()
        await shop.turn_clock(LONG)
    assert (await shop.saga(order))["status"] == "compensating"
    assert (await shop.events(order)).count("step_failed release_stock") == 0
    await holder.commit()
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (9, 0)


async def test_two_passes_over_the_last_units_serve_each_order_once(
    shop: Shop, connect: Connect, waits: Any
) -> None:
    """A pass that promised what another has taken meanwhile is done once more, and refuses.

    Nobody fails for it.
    """
    product = await shop.product(on_hand=5)
    for _ in range(6):
        await shop.order((product, 1))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_listener")
    await one.execute("select advance(3)")

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select advance(3)")
        await waits(other.info.backend_pid)
        await one.commit()

    assert await shop.statuses() == {"payment_processing": 5, "cancelled": 1}
    assert await shop.values(
        "select distinct error_code from saga_events where error_code <> ''"
    ) == ["DP006"]


async def test_a_pass_holds_no_shelf_before_its_end(shop: Shop, holds: Holds) -> None:
    """Units that are scarce are promised on a look: shelves are locked once, all at the end."""
    product = await shop.product(on_hand=3)
    order = await shop.order((product, 3))
    await holds(LOCK_SHELF, product)
    async with soon():
        await shop.run("select reserve_stock(array[%s], array[%s])", shop.lisbon, order)


async def test_an_event_of_a_gateway_waits_for_a_saga_two_seconds(shop: Shop, holds: Holds) -> None:
    """Then it is refused as one to be sent again, and takes nothing with it."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.advance()
    holder = await holds(CANCEL, order)
    with shop.refused("55P03"):
        await shop.told(f"{order}:process_payment", APPROVED, "e1")
    await holder.rollback()
    assert await shop.told(f"{order}:process_payment", APPROVED, "e1") == "applied"


PAUSE = "select pause_external_steps(%s, 'maintenance')"


async def test_a_pause_that_is_prolonged_and_a_pass_do_not_deadlock(
    shop: Shop, connect: Connect, waits: Any
) -> None:
    """The operator waits for the sagas of a pass, which waits for no pause in return."""
    await shop.run(PAUSE, 60)
    product = await shop.product(on_hand=9)
    waiting = await shop.order((product, 1))
    await shop.advance()
    operator = await connect("service_role")
    listener = await connect("darkpearl_listener", autocommit=False)
    # The operator has the row of the step when the pass comes there, and waits for a saga.
    reached = await connect(autocommit=False)
    await reached.execute("select from sagas where id = %s for update", [waiting])
    newcomer = await shop.order((product, 1))

    async with anyio.create_task_group() as group:
        group.start_soon(operator.execute, PAUSE, [120])
        await waits(operator.info.backend_pid)
        await listener.execute("select advance()")
        await listener.commit()
        await reached.commit()

    (ready_at,) = await shop.values("select ready_at from sagas where id = %s", waiting)
    (soon_again,) = await shop.values("select ready_at from sagas where id = %s", newcomer)
    now = await shop.value("select clock()")
    assert 100 < (ready_at - now).total_seconds() < 130
    assert (soon_again - now).total_seconds() < 3
    await shop.turn_clock(4)
    assert await shop.advance() == []
    (later,) = await shop.values("select ready_at from sagas where id = %s", newcomer)
    assert (later - now).total_seconds() > 100


async def test_a_pause_that_ends_finds_those_that_a_pass_has_just_parked(
    shop: Shop, connect: Connect, waits: Any
) -> None:
    """The end of a pause waits for a pass that has seen it, and wakes what that has parked."""
    await shop.run(PAUSE, 3600)
    order = await shop.order((await shop.product(on_hand=9), 1))
    operator = await connect("service_role")
    listener = await connect("darkpearl_listener", autocommit=False)
    await listener.execute("select advance()")

    async with anyio.create_task_group() as group:
        group.start_soon(operator.execute, PAUSE, [0])
        await waits(operator.info.backend_pid)
        await listener.commit()

    await shop.turn_clock(1.5)  # they come one after the other
    (request,) = await shop.advance()
    assert UUID(request["saga_id"]) == order


async def test_who_edits_a_step_holds_back_nothing(shop: Shop, holds: Holds) -> None:
    """Settings that somebody is just changing stop no call, as long as they are no pause."""
    product = await shop.product(on_hand=9)
    for _ in range(2):
        await shop.order((product, 1))
    await holds("update step_settings set timeout_seconds = 60")
    async with soon():
        assert len(await shop.advance()) == 2


async def test_who_is_in_the_way_is_named(shop: Shop, connect: Connect, holds: Holds) -> None:
    """Readers see the session that holds an order: who it is, since when, and whom it blocks now.

    Whoever holds nothing of the engine's, or only reads, is no name there.
    """
    order = await shop.order((await shop.product(on_hand=1), 1))
    holder = await holds(NOTE, order, role="darkpearl_app")
    dump = await holds("select count(*) from orders, inventory, sagas", role="darkpearl_reader")
    waiter = await connect("darkpearl_app")
    pid = holder.info.backend_pid
    assert await shop.values("select pid from blocking_sessions()") in ([], [pid])

    async with anyio.create_task_group() as group:
        group.start_soon(waiter.execute, NOTE, [order])
        reader = await connect("darkpearl_reader", row_factory=dict_row)
        row: Any = None
        while not (row and row["blocks"]):
            row = await (await reader.execute("select * from blocking_sessions()")).fetchone()
        health = await (await reader.execute("select blocked_by from engine_health")).fetchone()
        await holder.rollback()

    assert (row["pid"], row["state"], row["holds"]) == (pid, "idle in transaction", ["orders"])
    assert row["blocks"] == [waiter.info.backend_pid]
    assert row["since"] is not None
    assert len(health["blocked_by"]) == 1
    assert health["blocked_by"][0].startswith(f"pid {pid} ")
    assert dump


async def test_who_is_in_the_way_is_named_without_rights_on_statistics(
    shop: Shop, connect: Connect, holds: Holds, waits: Any
) -> None:
    """Where the owner may not see what sessions do, it names those that somebody waits for."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    holder = await holds(NOTE, order, role="darkpearl_app")
    waiter = await connect("darkpearl_app")
    await shop.run("revoke pg_read_all_stats from darkpearl_owner")
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(waiter.execute, NOTE, [order])
            await waits(waiter.info.backend_pid)
            row = await shop.row("select * from blocking_sessions()")
            await holder.rollback()
    finally:
        await shop.run("grant pg_read_all_stats to darkpearl_owner")
    assert row["pid"] == holder.info.backend_pid
    assert (row["state"], row["since"]) == (None, None)
