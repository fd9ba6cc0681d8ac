"""Movements that are inserted while others move the same shelves."""

from typing import Any
from uuid import UUID

import anyio
from shop import Shop

INSERT = (
    "insert into stock_movements (warehouse_id, product_id, movement_type, quantity)"
    " values (%s, %s, 'adjust', -1), (%s, %s, 'adjust', -1)"
)


async def test_shelves_of_an_insert_are_locked_in_order(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Whatever the order of its rows, an insert that waits for a shelf holds none behind it."""
    low, high = sorted([await shop.product(on_hand=5), await shop.product(on_hand=5)])
    holder, writer = await connect(autocommit=False), await connect("darkpearl_app")
    await holder.execute("select from inventory where product_id = %s for update", [low])

    async with anyio.create_task_group() as group:
        group.start_soon(writer.execute, INSERT, [shop.lisbon, high, shop.lisbon, low])
        await waits(writer.info.backend_pid)
        await holder.execute(
            "select from inventory where product_id = %s for update nowait", [high]
        )
        await holder.commit()

    assert await shop.stock(low) == await shop.stock(high) == (4, 0)


async def test_who_had_the_shelf_first_comes_first_in_the_ledger(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """A movement that was made while an insert waited for its shelf has the lower id."""
    quick, other = await shop.product(on_hand=5), await shop.product(on_hand=5)
    one, writer = await connect(autocommit=False), await connect("darkpearl_app")
    await one.execute("select from inventory where product_id = %s for update", [quick])

    async with anyio.create_task_group() as group:
        group.start_soon(writer.execute, INSERT, [shop.lisbon, other, shop.lisbon, quick])
        await waits(writer.info.backend_pid)
        await one.execute("select adjust_stock(%s, %s, -2)", [shop.lisbon, quick])
        await one.commit()

    async def story(product: UUID) -> list[int]:
        return await shop.values(
            "select available_after from stock_movements where product_id = %s order by id", product
        )

    assert await story(quick) == [5, 3, 2]
    assert await story(other) == [5, 4]
