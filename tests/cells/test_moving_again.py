"""A move over something that is broken: told before it begins, or begun anew."""

from collections.abc import Awaitable, Callable

import pytest
from moving import Moving, new_warehouse
from places import Place
from shop import APPROVED, Shop
from terminal import Run

from darkpearl import cells, schema
from darkpearl.cells import replication
from darkpearl.cells.joining import without_secrets

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
async def moving(pair: Pair, until: Until) -> Moving:
    """A warehouse of home that is about to move, of which north knows; and a product."""
    return await new_warehouse(pair, until)


async def test_a_cell_that_does_not_hear_gets_no_warehouse(
    pair: Pair, moving: Moving, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would never know that it is its own: told before anything is closed."""
    here, there = pair
    code, warehouse, product = moving
    await there.run("alter subscription darkpearl_catalogue disable")
    with monkeypatch.context() as patch:
        patch.setattr(replication, "CATCH_UP_SECONDS", 1.0)
        refused = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert (refused.code, refused.errors.count("cell 2 doesn't hear from home")) == (2, 1)
    assert (
        await there.values("select from moved_warehouses where warehouse_id = %s", warehouse) == []
    )
    await here.order((product, 1), warehouse=warehouse)
    await there.run("alter subscription darkpearl_catalogue enable")
    moved = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert moved.code == 0, moved
    await there.settle(await there.advance(), APPROVED)


async def test_a_copy_whose_slot_is_gone_begins_anew(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """What has changed between a failover of the old server and the next run arrives, too."""
    here, there = pair
    home, _ = places
    code, warehouse, product = moving
    async for line in cells.move(home.url, code, "north"):
        assert "copied" in line
        break
    async with schema.connect(home.url) as at_home:
        await replication.drop_slot(at_home, f"darkpearl_move_{warehouse.hex}")
    await here.run("update inventory set reorder_point = 77 where warehouse_id = %s", warehouse)
    async for _ in cells.move(home.url, code, "north"):
        pass
    shelf = "select reorder_point from inventory where product_id = %s and warehouse_id = %s"
    assert await there.value(shelf, product, warehouse) == 77


async def test_the_password_is_where_the_command_has_found_it(
    pair: Pair, places: Places, moving: Moving, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server doesn't look there, and gets it along with the address."""
    home, _ = places
    code, _, _ = moving
    assert pair
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(home.url))
    moved = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert moved.code == 0, moved
