"""routines/38_sourcing.sql: which warehouses serve an order that names none."""

import json
from itertools import combinations
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, Row, Shop

PLACE = "select * from place_order(p_items => %s, p_order_id => %s)"
OFFER = "select * from offer_of_cell(%s)"
PARTS = (
    "select w.code, array_agg(i.product_id) as products, array_agg(i.quantity) as units"
    " from orders as o inner join warehouses as w on w.id = o.warehouse_id"
    " inner join order_items as i on i.order_id = o.id"
    " group by w.code, o.order_number order by o.order_number"
)


@pytest.fixture
async def shop(shop: Shop) -> Shop:
    """Lisbon comes first, then Rotterdam, then those of the tests."""
    await shop.run("update warehouses set priority = 1 where id = %s", shop.lisbon)
    await shop.run("update warehouses set priority = 2 where id = %s", shop.rotterdam)
    return shop


async def warehouse(shop: Shop, code: str) -> UUID:
    """Another warehouse, of the usual priority."""
    made: UUID = await shop.value(
        "insert into warehouses (code, name) values (%s, %s) returning id", code, code
    )
    return made


def items(*lines: tuple[UUID, int]) -> str:
    """Lines as place_order() takes them."""
    return json.dumps([{"product_id": str(product), "quantity": count} for product, count in lines])


async def place(shop: Shop, *lines: tuple[UUID, int], order: UUID | None = None) -> Row:
    """An application places an order that names no warehouse; the first order of it."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.row(PLACE, items(*lines), order or uuid4())


async def parts(shop: Shop) -> list[tuple[str, dict[UUID, int]]]:
    """Which warehouse got how much of what."""
    return [
        (row["code"], dict(zip(row["products"], row["units"], strict=True)))
        for row in await shop.rows(PARTS)
    ]


async def test_the_first_that_can_serve_all_gets_it(shop: Shop) -> None:
    """By priority, of those that have all; it is an order like any, and in no group."""
    one, two = await shop.product(on_hand=5), await shop.product(on_hand=5)
    for product in (one, two):
        await shop.receive(product, 9, shop.rotterdam)
    for quantity, expected in [(5, shop.lisbon), (6, shop.rotterdam)]:
        name = uuid4()
        order = await place(shop, (one, quantity), (two, 1), order=name)
        assert (order["id"], order["warehouse_id"]) == (name, expected)
    assert await shop.rows("select from grouped_orders") == []
    await shop.run("update warehouses set priority = 0 where id = %s", shop.rotterdam)
    assert (await place(shop, (one, 1)))["warehouse_id"] == shop.rotterdam


async def test_what_none_has_whole_is_divided(shop: Shop) -> None:
    """One order for each warehouse, a line divided if need be, under the id of the first."""
    one, two = await shop.product("10", on_hand=3), await shop.product("1")
    await shop.receive(one, 9, shop.rotterdam)
    await shop.receive(two, 9, shop.rotterdam)
    await warehouse(shop, "IDLE")
    await shop.run("select adjust_stock(%s, %s, -7)", shop.rotterdam, one)
    name = uuid4()
    first = await place(shop, (one, 5), (two, 4), order=name)
    assert (first["id"], first["warehouse_id"], first["total_amount"]) == (name, shop.lisbon, 30)
    assert await parts(shop) == [("LIS", {one: 3}), ("RTM", {one: 2, two: 4})]
    group = await shop.row("select * from order_groups")
    assert (group["id"], group["total_amount"], len(group["orders"])) == (name, 54, 2)
    assert await shop.values("select group_id from order_details") == [name, name]
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.statuses() == {"fulfilled": 2}


async def test_units_that_are_promised_serve_nobody(shop: Shop) -> None:
    """Nor do those of a warehouse that takes no orders."""
    product = await shop.product(on_hand=5)
    await shop.receive(product, 5, shop.rotterdam)
    await shop.order((product, 5))
    await shop.advance()
    closed = await warehouse(shop, "CLOSED")
    await shop.receive(product, 50, closed)
    await shop.run("update warehouses set is_active = false where id = %s", closed)
    assert (await place(shop, (product, 5)))["warehouse_id"] == shop.rotterdam
    with shop.refused("DP006"):
        await place(shop, (product, 6))


async def test_as_few_as_can_serve_it(shop: Shop) -> None:
    """Two that complete each other, though a third has more than either, or comes first."""
    goods = [await shop.product() for _ in range(4)]
    stock = {"most": (2, 2, 2, 0), "left": (3, 3, 0, 0), "right": (0, 0, 3, 3)}
    for code, units in stock.items():
        there = await warehouse(shop, code)
        for product, count in zip(goods, units, strict=True):
            if count:
                await shop.receive(product, count, there)
    await place(shop, *((product, 3) for product in goods))
    assert [code for code, _ in await parts(shop)] == ["left", "right"]


async def test_many_serve_what_is_scattered(shop: Shop) -> None:
    """Of five products in five places each place sends its own."""
    goods = [await shop.product() for _ in range(5)]
    for number, product in enumerate(goods):
        await shop.receive(product, 2, await warehouse(shop, f"W{number}"))
    await place(shop, *((product, 2) for product in goods))
    assert await parts(shop) == [
        (f"W{number}", {product: 2}) for number, product in enumerate(goods)
    ]
    assert await shop.value("select count(*) from grouped_orders") == 5


async def test_what_nobody_has_is_refused_whole(shop: Shop) -> None:
    """It says what is missing and places nothing, and its id is free to be tried again."""
    plenty, few = await shop.product(on_hand=9), await shop.product(on_hand=2)
    await shop.receive(few, 1, shop.rotterdam)
    name = uuid4()
    with shop.refused("DP006") as refusal:
        await place(shop, (plenty, 1), (few, 4), order=name)
    assert f"Product {few}: 4 units asked for, 3 can be sold in all" in refusal.detail
    assert str(plenty) not in refusal.detail
    assert await shop.rows("select from orders") == []
    await shop.receive(few, 1)
    assert (await place(shop, (plenty, 1), (few, 4), order=name))["id"] == name


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ([], "DP001"),
        (None, "DP015"),
        ({}, "DP015"),
        ([{"product_id": "known", "quantity": 0}], "DP015"),
        (
            [{"product_id": "known", "quantity": -1}, {"product_id": "known", "quantity": 2}],
            "DP015",
        ),
        ([{"product_id": "unknown", "quantity": 1}], "DP003"),
        ([{"sku": "nobody's", "quantity": 1}], "DP003"),
        ([{"product_id": "known", "quantity": 1, "color": "red"}], "DP015"),
    ],
)
async def test_items_that_make_no_sense_are_refused(shop: Shop, wrong: Any, code: str) -> None:
    """As for an order that names its warehouse."""
    text = None if wrong is None else json.dumps(wrong)
    if text:
        text = text.replace("unknown", str(uuid4())).replace(
            "known", str(await shop.product(on_hand=1))
        )
    with shop.refused(code):
        await shop.run(PLACE, text, uuid4())
    assert await shop.rows("select from orders") == []


@pytest.mark.parametrize(
    ("first", "expected"),
    [(1, [(2, 7), (2, 7), (1, 10)]), (2, [(1, 7), (2, 7), (2, 10)]), (3, [(2, 7), (3, 10)])],
)
async def test_prices_stay_with_their_lines(
    shop: Shop, first: int, expected: list[tuple[int, int]]
) -> None:
    """Two lines of one product at prices of their own are divided each by itself.

    first: the units of the first line, of which the warehouse before has three.
    """
    product = await shop.product("10", on_hand=3)
    await shop.receive(product, 3, shop.rotterdam)
    lines = [
        {"product_id": str(product), "quantity": first, "unit_price": 10},
        {"product_id": str(product), "quantity": 5 - first, "unit_price": 7},
    ]
    async with shop.acting_as("service_role"):
        await shop.run(PLACE, json.dumps(lines), uuid4())
    told = await shop.rows("select quantity, unit_price from order_items")
    assert sorted(tuple(row.values()) for row in told) == sorted(expected)
    assert await shop.value("select total_amount from order_groups") == 35 + 3 * first


async def test_what_is_said_of_an_order_stays_said_when_it_is_divided(shop: Shop) -> None:
    """All are for the same, but the reference is the first's; an adjustment goes with its line."""
    one, two = await shop.product("10", on_hand=3), await shop.product("1")
    await shop.receive(one, 9, shop.rotterdam)
    await shop.receive(two, 9, shop.rotterdam)
    await shop.run("select adjust_stock(%s, %s, -7)", shop.rotterdam, one)
    lines = [
        {"product_id": str(one), "quantity": 5, "metadata": {"engraved": None}},
        {"product_id": str(two), "quantity": 4},
    ]
    particulars = {"reference": "W-1", "email": "ann@example.com", "metadata": {"gift": True}}
    adjustments = [
        {"kind": "shipping", "label": "Express", "amount": 5},
        {"kind": "discount", "label": "Ten", "amount": -3, "item": 0},
        {"kind": "tax", "label": "VAT", "amount": 2, "item": 1},
    ]
    call = (
        "select * from place_order(p_items => %s, p_customer_id => 'auth0|ann',"
        " p_particulars => %s, p_adjustments => %s)"
    )

    async def place_it(*, discount: int = -3, item: int = 1) -> Row:
        adjustments[1]["amount"], adjustments[2]["item"] = discount, item
        async with shop.acting_as("service_role"):
            return await shop.row(call, *map(json.dumps, (lines, particulars, adjustments)))

    with shop.refused("DP041"):
        await place_it(discount=-36)
    with shop.refused("DP015"):
        await place_it(item=2)
    assert await shop.rows("select from orders") == []
    await place_it()
    first, second = await shop.rows(
        "select o.*, w.code from order_details as o inner join warehouses as w"
        " on w.id = o.warehouse_id order by o.order_number"
    )
    assert [(each["code"], each["total_amount"]) for each in (first, second)] == [
        ("LIS", 32),
        ("RTM", 26),
    ]
    assert (first["reference"], second["reference"]) == ("W-1", None)
    for each in (first, second):
        assert (each["customer_id"], each["email"]) == ("auth0|ann", "ann@example.com")
        assert each["metadata"] == {"gift": True}
        assert each["items"][0]["metadata"] == {"engraved": None}
    assert [each["item_id"] for each in first["adjustments"]] == [None, first["items"][0]["id"]]
    assert [each["item_id"] for each in second["adjustments"]] == [second["items"][1]["id"]]
    assert await shop.value("select total_amount from order_groups") == 58


@pytest.mark.parametrize("wrong", [{}, "none", 5, {"kind": "tax", "label": "VAT", "amount": 1}])
async def test_adjustments_of_a_divided_order_are_a_list_too(shop: Shop, wrong: Any) -> None:
    """What is no list is refused as for an order of one warehouse, with words that help."""
    product = await shop.product(on_hand=1)
    await shop.receive(product, 1, shop.rotterdam)
    call = "select * from place_order(p_items => %s, p_adjustments => %s)"
    async with shop.acting_as("service_role"):
        with shop.refused("DP015"):
            await shop.run(call, items((product, 2)), json.dumps(wrong))
    assert await shop.rows("select from orders") == []


async def test_a_reference_is_all_that_the_first_says(shop: Shop) -> None:
    """Of a divided order that has but a reference, the others say nothing, and have no row."""
    product = await shop.product(on_hand=1)
    await shop.receive(product, 1, shop.rotterdam)
    call = 'select id from place_order(p_items => %s, p_particulars => \'{"reference": "W-1"}\')'
    async with shop.acting_as("service_role"):
        first = await shop.value(call, items((product, 2)))
    assert len(await parts(shop)) == 2
    assert await shop.values("select order_id from order_particulars") == [first]


async def test_orders_are_grouped_when_they_are_placed(shop: Shop) -> None:
    """Not later, not with a stranger's, and never otherwise."""
    product = await shop.product(on_hand=9)
    old = await shop.order((product, 1))
    group = "insert into grouped_orders (order_id, warehouse_id, group_id) values (%s, %s, %s)"
    with shop.refused("DP015"):
        await shop.run(group, old, shop.lisbon, old)
    async with shop.connection.transaction():
        mine = await shop.order((product, 1), p_customer_id=str(uuid4()))
        with shop.refused("DP015"):
            async with shop.connection.transaction():
                await shop.run(group, mine, shop.lisbon, old)
        yours = await shop.order((product, 1), p_customer_id=str(uuid4()))
        with shop.refused("DP015"):
            async with shop.connection.transaction():
                await shop.run(group, yours, shop.lisbon, mine)
        await shop.run(group, mine, shop.lisbon, mine)
    for change in (
        "update grouped_orders set group_id = order_id",
        "delete from grouped_orders",
        "truncate grouped_orders",
    ):
        with shop.refused("DP005"):
            await shop.run(change)


async def test_a_group_goes_with_its_orders(shop: Shop) -> None:
    """Retention leaves no row of it."""
    product = await shop.product(on_hand=1)
    await shop.receive(product, 1, shop.rotterdam)
    await place(shop, (product, 2))
    await shop.settle(await shop.advance(), APPROVED)
    await shop.turn_clock(40 * 86400)
    await shop.run("update retention set keep_days = 30 where kind = 'orders'")
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select removed from apply_retention('orders')") == 2
    assert await shop.rows("select from grouped_orders") == []


def fewest(stock: list[list[int]], wanted: list[int]) -> int | None:
    """How many warehouses it takes at least, by trying all."""
    for size in range(1, len(stock) + 1):
        for some in combinations(stock, size):
            if all(
                sum(have) >= want
                for have, want in zip(zip(*some, strict=True), wanted, strict=True)
            ):
                return size
    return None


async def test_it_takes_as_many_as_trying_all_would(shop: Shop) -> None:
    """Of any stock, up to three warehouses; what is placed is what was ordered."""
    random = Random(28)
    goods = [await shop.product() for _ in range(3)]
    places = [shop.lisbon, shop.rotterdam, *[await warehouse(shop, f"W{n}") for n in range(3)]]
    placed = refused = 0
    for _ in range(40):
        stock = [[random.choice((0, 0, 1, 2, 3)) for _ in goods] for _ in places]
        wanted = [random.randint(1, 4) for _ in goods]
        expected = fewest(stock, wanted)
        async with shop.connection.transaction(force_rollback=True):
            for there, units in zip(places, stock, strict=True):
                for product, count in zip(goods, units, strict=True):
                    if count:
                        await shop.receive(product, count, there)
            offer = await shop.row(OFFER, items(*zip(goods, wanted, strict=True)))
            if expected is None:
                assert (offer["warehouses"], offer["code"]) == (None, None)
                refused += 1
                with shop.refused("DP006"):
                    await shop.run(PLACE, items(*zip(goods, wanted, strict=True)), uuid4())
                continue
            await shop.run(PLACE, items(*zip(goods, wanted, strict=True)), uuid4())
            told = await parts(shop)
            assert (offer["warehouses"], offer["code"]) == (len(told), told[0][0])
        placed += 1
        assert len(told) == expected or expected > 3, (stock, wanted)
        assert [sum(lines.get(product, 0) for _, lines in told) for product in goods] == wanted
    assert placed > 10
    assert refused > 3


async def test_an_offer_tells_what_there_is(shop: Shop) -> None:
    """Of each product what is wanted in all, and as much of that as can be sold; refused alike."""
    scarce, plenty = await shop.product(on_hand=3), await shop.product(on_hand=100)
    await shop.receive(scarce, 1, shop.rotterdam)
    offer = await shop.row(OFFER, items((scarce, 4), (plenty, 7), (scarce, 2)))
    assert offer["warehouses"] is None
    assert sorted((each["wanted"], each["sellable"]) for each in offer["goods"]) == [(6, 4), (7, 7)]
    assert {each["product_id"] for each in offer["goods"]} == {str(scarce), str(plenty)}
    offer = await shop.row(OFFER, items((plenty, 7)))
    assert (offer["warehouses"], offer["priority"], offer["code"]) == (1, 1, "LIS")
    for code, wrong in (
        ("DP001", "[]"),
        ("DP003", items((uuid4(), 1))),
        ("DP015", items((plenty, 0))),
    ):
        with shop.refused(code):
            await shop.run(OFFER, wrong)
