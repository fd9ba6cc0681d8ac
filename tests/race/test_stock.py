"""Many sessions and few units."""

from typing import Any

import anyio
import psycopg
import pytest
from shop import Shop

CLIENTS = 50


async def test_fifty_clients_for_the_last_unit(shop: Shop, connect: Any) -> None:
    """Of fifty orders for one unit, placed and advanced at once, exactly one gets it.

    Passes that the others kept waiting too long have left their order for later.
    """
    product = await shop.product(on_hand=1)

    async def buy_and_advance() -> None:
        connection = await connect()
        await connection.execute(
            "select place_order(%s, jsonb_build_array("
            "jsonb_build_object('product_id', %s::uuid, 'quantity', 1)))",
            [shop.lisbon, product],
        )
        await connection.execute("select advance()")

    async with anyio.create_task_group() as group:
        for _ in range(CLIENTS):
            group.start_soon(buy_and_advance)

    await shop.turn_clock(60)
    await shop.advance()
    assert await shop.statuses() == {"payment_processing": 1, "cancelled": CLIENTS - 1}
    assert await shop.stock(product) == (1, 1)
    assert await shop.value("select quantity_sellable from inventory") == 0


async def test_reservations_of_one_product_queue_behind_each_other(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """A second pass over the same product waits for the first to commit, then counts with it."""
    product = await shop.product(on_hand=5)
    first, second = await shop.order((product, 3)), await shop.order((product, 3))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_listener")
    await one.execute("select advance(1)")

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select advance(1)")
        await waits(other.info.backend_pid)
        await one.commit()

    assert await shop.order_status(first) == "payment_processing"
    assert await shop.order_status(second) == "cancelled"


@pytest.mark.parametrize("busy", ["another product", "another warehouse"])
async def test_what_is_done_to_one_shelf_keeps_no_other(
    shop: Shop, connect: Any, busy: str
) -> None:
    """A shelf that somebody is at is its own business: others are moved meanwhile."""
    product, other = await shop.product(on_hand=9), await shop.product(on_hand=9)
    await shop.receive(product, 9, shop.rotterdam)
    one = await connect(autocommit=False)
    place = (shop.lisbon, other) if busy == "another product" else (shop.rotterdam, product)
    await one.execute("select count_stock(%s, %s, 8)", place)
    await shop.run("set lock_timeout = '200ms'")
    await shop.run("select adjust_stock(%s, %s, -1)", shop.lisbon, product)
    assert await shop.stock(product) == (8, 0)
    await one.rollback()


async def test_a_reservation_is_written_over_the_one_it_waited_for(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """The ledger of a pass that waited begins where the pass before it ended."""
    product = await shop.product(on_hand=10)
    await shop.order((product, 3))
    await shop.order((product, 4))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_listener")
    await one.execute("select advance(1)")

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select advance(1)")
        await waits(other.info.backend_pid)
        await one.commit()

    assert await shop.values(
        "select reserved_after from stock_movements where movement_type = 'reserve' order by id"
    ) == [3, 7]


async def test_a_shelf_made_meanwhile_is_the_one_that_is_filled(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Who waits while another session makes a shelf moves that one, and no neighbour of it."""
    held, near, made = sorted([await shop.product() for _ in range(3)])
    for product in held, near:
        await shop.receive(product, 5)
    one = await connect(autocommit=False)
    await one.execute("select adjust_stock(%s, %s, 1)", [shop.lisbon, held])

    async with anyio.create_task_group() as group:
        group.start_soon(
            shop.run,
            "select apply_movements('receive', array_fill(new_id(), array[2]),"
            " array_fill(%s::uuid, array[2]), %s, array[3, 4])",
            shop.lisbon,
            [held, made],
        )
        await waits(shop.connection.info.backend_pid)
        await one.execute("select receive_stock(%s, %s, 1)", [shop.lisbon, made])
        await one.commit()

    stock = [await shop.stock(product) for product in (held, near, made)]
    assert stock == [(9, 0), (5, 0), (5, 0)]


async def test_a_promise_that_lost_a_race_is_taken_back(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Goods taken after a pass has looked and before it takes them: it looks again, and refuses."""
    product = await shop.product(on_hand=10)
    order = await shop.order((product, 3))
    thief = await connect(autocommit=False)
    listener = await connect("darkpearl_listener")
    await thief.execute("select adjust_stock(%s, %s, -9)", [shop.lisbon, product])

    async with anyio.create_task_group() as group:
        group.start_soon(listener.execute, "select advance()")
        await waits(listener.info.backend_pid)
        await thief.commit()

    assert await shop.order_status(order) == "cancelled"
    failure = await shop.event(order, "step_failed")
    assert failure["error_code"] == "DP006"
    assert await shop.stock(product) == (1, 0)


async def test_a_pass_locks_all_its_shelves_at_once(shop: Shop, connect: Any, waits: Any) -> None:
    """What leaves and what goes back are locked together in key order, not one after the other."""
    low, high = sorted([await shop.product(on_hand=5), await shop.product(on_hand=5)])
    leaves = await shop.order((low, 1))
    returns = await shop.order((high, 1))
    await shop.advance()
    holder = await connect(autocommit=False)
    mover = await connect()
    await holder.execute("select from inventory where product_id = %s for update", [low])

    async with anyio.create_task_group() as group:
        group.start_soon(
            mover.execute,
            "select move_goods(array[%s], %s, array['fulfill_unpaid', 'release'])",
            [shop.lisbon, [leaves, returns]],
        )
        await waits(mover.info.backend_pid)
        await holder.execute(
            "select from inventory where product_id = %s for update nowait", [high]
        )
        await holder.commit()
    shop.audited = False


async def test_a_pass_locks_its_shelves_in_key_order(shop: Shop, connect: Any, waits: Any) -> None:
    """Whatever the order of the lines, a pass that waits for a shelf holds none behind it."""
    low, high = sorted([await shop.product(on_hand=5), await shop.product(on_hand=5)])
    orders = [await shop.order((high, 1), (low, 1)), await shop.order((high, 1))]
    holder = await connect(autocommit=False)
    mover = await connect()
    await holder.execute("select from inventory where product_id = %s for update", [low])

    async with anyio.create_task_group() as group:
        group.start_soon(
            mover.execute,
            "select move_goods(array[%s], %s, array['reserve', 'reserve'])",
            [shop.lisbon, orders],
        )
        await waits(mover.info.backend_pid)
        await holder.execute(
            "select from inventory where product_id = %s for update nowait", [high]
        )
        await holder.commit()
    shop.audited = False


async def test_opposite_transfers_do_not_deadlock(shop: Shop, connect: Any, waits: Any) -> None:
    """Transfers lock both shelves in key order, whichever way the goods go."""
    product = await shop.product(on_hand=10)
    await shop.receive(product, 10, shop.rotterdam)
    one = await connect(autocommit=False)
    other = await connect()
    transfer = "select transfer_stock(%s, %s, %s, 4)"
    await one.execute(transfer, [shop.lisbon, shop.rotterdam, product])

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, transfer, [shop.rotterdam, shop.lisbon, product])
        await waits(other.info.backend_pid)
        await one.commit()

    assert await shop.values("select quantity_available from inventory") == [10, 10]


async def test_the_same_receipt_twice_at_once_is_booked_once(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Two sessions that repeat one operation at once book it once, and both are told the same."""
    product = await shop.product(on_hand=1)
    receipt = "select (receive_stock(%s, %s, 7, '01890000-0000-7000-8000-000000000001')).id"
    one = await connect(autocommit=False)
    other = await connect()
    booked = await (await one.execute(receipt, [shop.lisbon, product])).fetchone()
    told: list[Any] = []

    async def repeat() -> None:
        cursor = await other.execute(receipt, [shop.lisbon, product])
        told.append(await cursor.fetchone())

    async with anyio.create_task_group() as group:
        group.start_soon(repeat)
        await waits(other.info.backend_pid)
        await one.commit()

    assert told == [booked]
    assert await shop.stock(product) == (8, 0)


async def test_a_dispatch_cannot_take_what_a_reservation_in_flight_has_promised(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Stock that an uncommitted reservation holds can't be adjusted away under it."""
    product = await shop.product(on_hand=5)
    await shop.order((product, 4))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect()
    await one.execute("select advance()")
    refused: list[str | None] = []

    async def adjust() -> None:
        with pytest.raises(psycopg.Error) as raised:
            await other.execute("select adjust_stock(%s, %s, -2)", [shop.lisbon, product])
        refused.append(raised.value.sqlstate)

    async with anyio.create_task_group() as group:
        group.start_soon(adjust)
        await waits(other.info.backend_pid)
        await one.commit()

    assert refused == ["DP006"]
