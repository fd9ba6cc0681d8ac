"""`darkpearl stock`: looked at, received, counted and moved from a terminal."""

from uuid import uuid4

from shop import Shop
from terminal import Refused, Run


async def test_stock_is_received_counted_and_moved(shop: Shop, run: Run, refused: Refused) -> None:
    """Each is a movement of the ledger; one of an id is made once."""
    tea = await shop.product(sku="TEA")
    operation = uuid4()
    for _ in range(2):
        done = await run("stock", "receive", "LIS", "TEA", 5, "--id", operation, "--notes", "boat")
        assert done.code == 0, done.errors
    (counted,) = (await run("stock", "count", "LIS", "TEA", 7, "--json")).rows
    assert counted["quantity_available"] == 7
    moved = (await run("stock", "transfer", "LIS", "RTM", tea, 3, "--json")).rows
    assert sorted(row["movement_type"] for row in moved) == ["transfer_in", "transfer_out"]
    assert await shop.stock(tea) == (4, 0)
    assert await shop.stock(tea, shop.rotterdam) == (3, 0)
    assert "there is no product NONE" in await refused("stock", "receive", "LIS", "NONE", 1)
    assert "0" in await refused("stock", "receive", "LIS", "TEA", 0)
    assert await refused("stock", "transfer", "LIS", "RTM", "TEA", 99)
    assert await refused("stock", "count", "LIS", "TEA", 1, "--expected", 3)
    assert await shop.stock(tea) == (4, 0)


async def test_stock_is_shown(shop: Shop, run: Run) -> None:
    """By product, by warehouse, or all; the ledger by type and order; what runs out."""
    tea = await shop.product(sku="TEA", on_hand=5)
    await shop.product(sku="CUP", on_hand=5)
    await shop.receive(tea, 2, shop.rotterdam)
    order = await shop.fulfilled((tea, 4))
    await shop.run("update inventory set reorder_point = 1, reorder_quantity = 6")

    async def skus(*arguments: object) -> list[tuple[str, str]]:
        done = await run(*arguments, "--json")
        assert done.code == 0, done.errors
        return sorted((row["sku"], row["warehouse"]) for row in done.rows)

    assert await skus("stock", "show") == [("CUP", "LIS"), ("TEA", "LIS"), ("TEA", "RTM")]
    assert await skus("stock", "show", "TEA") == [("TEA", "LIS"), ("TEA", "RTM")]
    assert await skus("stock", "show", "--warehouse", "LIS") == [("CUP", "LIS"), ("TEA", "LIS")]
    assert "TEA" in (await run("stock", "show", tea)).said
    history = (await run("stock", "history", "TEA", "--warehouse", "LIS", "--json")).rows
    assert [(row["movement_type"], row["available_after"]) for row in history] == [
        ("fulfill", 1),
        ("reserve", 5),
        ("receive", 5),
    ]
    assert await skus("stock", "history", "--type", "receive", "--limit", 2) == [
        ("CUP", "LIS"),
        ("TEA", "RTM"),
    ]
    of_order = (await run("stock", "history", "--order", order, "--json")).rows
    assert {row["movement_type"] for row in of_order} == {"reserve", "fulfill"}
    (low,) = (await run("stock", "low", "--json")).rows
    assert (low["sku"], low["suggested_quantity"]) == ("TEA", 6)
    assert "TEA" in (await run("stock", "low", "--warehouse", "LIS")).said
    assert (await run("stock", "low", "--warehouse", "RTM", "--json")).rows == []
