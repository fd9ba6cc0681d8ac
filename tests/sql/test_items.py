"""Items in JSON: what callers name goods by, and what is refused with its place and a way out."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import Shop

ODD: dict[str, tuple[Any, str]] = {
    "null": (None, "is a JSON null"),
    "a number": (7, "is a JSON number"),
    "an array": ([], "is a JSON array"),
    "empty": ({}, "has neither product_id nor sku"),
    "no product": ({"quantity": 1}, "has neither product_id nor sku"),
    "a null product": ({"product_id": None, "quantity": 1}, "has neither product_id nor sku"),
    "two names": ({"product_id": str(UUID(int=7)), "sku": "P", "quantity": 1}, "both"),
    "no uuid": ({"product_id": "pearl", "quantity": 1}, "product_id pearl, which is no UUID"),
    "no quantity": ({"sku": "P"}, "has no quantity"),
    "a null quantity": ({"sku": "P", "quantity": None}, "has no quantity"),
    "half a unit": ({"sku": "P", "quantity": 1.5}, "quantity 1.5, which is no number of units"),
    "a word": ({"sku": "P", "quantity": "one"}, "quantity one, which is no number of units"),
    "too many": ({"sku": "P", "quantity": 10**10}, "which is no number of units"),
    "misspelt": ({"sku": "P", "quantity": 1, "qty": 2}, 'what no item has: {"qty": 2}'),
}


@pytest.mark.parametrize("name", ODD)
async def test_an_item_that_makes_no_sense_is_named(shop: Shop, name: str) -> None:
    """place_order() says which item is none, counted from 0, what is wrong, and what keys are."""
    item, fault = ODD[name]
    await shop.product(sku="P")
    sound = {"sku": "P", "quantity": 1}
    with shop.refused("DP015") as refusal:
        await shop.run("select place_order(%s, %s)", shop.lisbon, json.dumps([sound, item]))
    assert refusal.detail.startswith("items[1] ")
    assert fault in refusal.detail
    assert "product_id, sku, quantity, unit_price" in refusal.hint
    assert await shop.rows("select from orders") == []


@pytest.mark.parametrize("name", ODD)
async def test_a_return_is_as_strict(shop: Shop, name: str) -> None:
    """return_items() refuses the same items, and a price too; nothing has come back then."""
    product = await shop.product(sku="P", on_hand=5)
    order = await shop.fulfilled((product, 2))
    item, fault = ODD[name]
    for odd, said in (item, fault), ({"sku": "P", "quantity": 1, "unit_price": 1}, "unit_price"):
        with shop.refused("DP015") as refusal:
            await shop.run("select return_items(%s, %s)", order, json.dumps([odd]))
        assert refusal.detail.startswith("items[0] ")
        assert said in refusal.detail
        assert "product_id, sku, quantity." in refusal.hint
    assert await shop.stock(product) == (3, 0)


@pytest.mark.parametrize("price", ["cheap", True, {}])
async def test_a_price_that_is_none_is_named(shop: Shop, price: object) -> None:
    """A unit_price that is no number is refused by its place, before anything is inserted."""
    await shop.product(sku="P")
    items = json.dumps([{"sku": "P", "quantity": 1, "unit_price": price}])
    with shop.refused("DP015") as refusal:
        await shop.run("select place_order(%s, %s)", shop.lisbon, items)
    assert refusal.detail.startswith("items[0] has unit_price ")


async def test_goods_are_named_by_sku_or_by_id(shop: Shop) -> None:
    """A line is the same whichever of the two names its product, in orders and in returns."""
    one, two = await shop.product(sku="ONE", on_hand=9), await shop.product(sku="TWO", on_hand=9)
    items = [
        {"sku": "TWO", "quantity": 2},
        {"product_id": str(one), "quantity": "3", "unit_price": "1.5e1"},
    ]
    order = await shop.value("select id from place_order(%s, %s)", shop.lisbon, json.dumps(items))
    lines = await shop.rows(
        "select product_id, quantity, unit_price from order_items where order_id = %s order by id",
        order,
    )
    assert [(r["product_id"], r["quantity"], int(r["unit_price"])) for r in lines] == [
        (two, 2, 10),
        (one, 3, 15),
    ]
    await shop.settle(await shop.advance(), {"outcome": "approved", "gateway": "mock"})
    back = json.dumps([{"sku": "TWO", "quantity": 1}])
    moved = await shop.row("select product_id, quantity from return_items(%s, %s)", order, back)
    assert (moved["product_id"], moved["quantity"]) == (two, 1)


async def test_an_unknown_sku_is_named(shop: Shop) -> None:
    """Of several SKUs the first that no product has is named with its place."""
    await shop.product(sku="P")
    items = json.dumps([{"sku": sku, "quantity": 1} for sku in ("P", "Q", "R")])
    with shop.refused("DP003") as refusal:
        await shop.run("select place_order(%s, %s)", shop.lisbon, items)
    assert refusal.detail == "items[1] has the SKU Q, which no product has."


async def test_a_return_names_units(shop: Shop) -> None:
    """None, or fewer than none, come back by no item, and an empty array is no return."""
    product = await shop.product(sku="P", on_hand=5)
    order = await shop.fulfilled((product, 2))
    for quantity in 0, -1:
        items = json.dumps([{"sku": "P", "quantity": 1}, {"sku": "P", "quantity": quantity}])
        with shop.refused("DP015") as refusal:
            await shop.run("select return_items(%s, %s)", order, items)
        assert refusal.detail == f"items[1] names {quantity} units."
    for items in "[]", "{}":
        with shop.refused("DP015"):
            await shop.run("select return_items(%s, %s)", order, items)


async def test_a_line_without_a_product_says_so(shop: Shop) -> None:
    """A plain insert of a line that names no product is told what is missing."""
    order = uuid4()
    with shop.refused("DP003") as refusal:
        async with shop.connection.transaction():
            await shop.run(
                "insert into orders (id, warehouse_id) values (%s, %s)", order, shop.lisbon
            )
            await shop.run(
                "insert into order_items (order_id, warehouse_id, quantity) values (%s, %s, 1)",
                order,
                shop.lisbon,
            )
    assert refusal.detail == "A line has no product_id."
