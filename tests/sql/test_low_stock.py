"""routines/80_views.sql: what runs out, by what can be sold, and how much of it to order."""

import json
from uuid import UUID

from shop import Shop

LOW = "select sku from low_stock order by sku"
SUGGESTED = "select sku, suggested_quantity from reorder_suggestions order by sku"


async def shelf(shop: Shop, sku: str, on_hand: int, point: int, quantity: int) -> UUID:
    """A product in Lisbon with its reorder settings."""
    product = await shop.product(on_hand=on_hand, sku=sku)
    await shop.run(
        "update inventory set reorder_point = %s, reorder_quantity = %s where product_id = %s",
        *(point, quantity, product),
    )
    return product


async def test_low_is_what_can_be_sold(shop: Shop) -> None:
    """Units that are promised don't count, and the reorder point itself is low."""
    product = await shelf(shop, "A", 12, 10, 5)
    await shelf(shop, "B", 11, 10, 5)
    assert await shop.values(LOW) == []
    await shop.order((product, 2))
    await shop.advance()
    assert await shop.values(LOW) == ["A"]
    row = await shop.row("select * from low_stock")
    assert (row["quantity_sellable"], row["quantity_reserved"], row["shortage"]) == (10, 2, 0)
    assert row["warehouse_code"] == "LIS"


async def test_a_suggestion_leads_above_the_reorder_point(shop: Shop) -> None:
    """In multiples of the reorder quantity, as few as do; of what is sold, and reordered at all."""
    for sku, on_hand, quantity in [("A", 10, 5), ("B", 6, 5), ("C", 5, 5), ("D", 1, 100)]:
        await shelf(shop, sku, on_hand, 10, quantity)
    await shelf(shop, "never reordered", 1, 10, 0)
    gone = await shelf(shop, "not sold", 1, 10, 5)
    await shop.run("update products set is_active = false where id = %s", gone)
    told = await shop.rows(SUGGESTED)
    assert [tuple(row.values()) for row in told] == [("A", 5), ("B", 5), ("C", 10), ("D", 100)]
    await shop.run("update inventory set reorder_point = 1000000000")
    assert await shop.value("select max(suggested_quantity) from reorder_suggestions") == 10**9


async def test_what_runs_out_is_one_look_at_the_shelves(shop: Shop) -> None:
    """However many shelves there are, each is read once; the catalogue isn't read for each."""
    await shop.shelves(3000)
    await shop.run("update inventory set reorder_point = 0")
    await shop.run("vacuum analyze")
    pages = await shop.value(
        "select (pg_relation_size('inventory') + pg_relation_size('products')) / 8192"
    )
    (plan,) = await shop.value(
        "explain (analyze, buffers, format json)"
        " select * from reorder_suggestions order by shortage desc, id desc limit 101"
    )
    read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert plan["Plan"]["Actual Rows"] == 101
    assert read < 2 * pages + 100, json.dumps(plan)
