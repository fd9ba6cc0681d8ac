"""routines/38_adjustments.sql: what an order costs beside its lines, and what goes back of it."""

import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb
from shop import APPROVED, Row, Shop

ADJUSTMENTS = [
    {"kind": "shipping", "label": "Express", "amount": 4.90},
    {"kind": "discount", "label": "Spring", "amount": -3, "item": 0},
    {"kind": "tax", "label": "VAT 23 %", "amount": 5.15},
    {"kind": "fee", "label": "Gift wrapping", "amount": "2.00", "item": 1},
    {"kind": "discount", "label": "Voucher", "amount": -1},
]
INSERT = (
    "insert into order_adjustments (order_id, warehouse_id, kind, label, amount)"
    " values (%s, %s, %s, 'A', %s)"
)


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Fifty units at 10.00 in Lisbon."""
    return await shop.product("10", on_hand=50)


async def costs(shop: Shop, order: UUID) -> Row:
    """What an order costs, as its resource tells it."""
    names = "subtotal, shipping_total, discount_total, tax_total, fee_total, total_amount"
    return await shop.row(f"select {names} from order_details where id = %s", order)


async def test_the_database_adds_up(shop: Shop, product: UUID) -> None:
    """Lines and adjustments are the total, kind by kind; that is what is paid."""
    async with shop.acting_as("darkpearl_app"):
        order = await shop.order((product, 1), (product, 2), p_adjustments=Jsonb(ADJUSTMENTS))
    assert await costs(shop, order) == {
        "subtotal": 30,
        "shipping_total": Decimal("4.90"),
        "discount_total": -4,
        "tax_total": Decimal("5.15"),
        "fee_total": 2,
        "total_amount": Decimal("38.05"),
    }
    (shown, items) = (await shop.row("select adjustments, items from order_confirmations")).values()
    lines = [line["id"] for line in items]
    assert [(each["label"], each["item_id"]) for each in shown] == [
        ("Express", None), ("Spring", lines[0]), ("VAT 23 %", None), ("Gift wrapping", lines[1]),
        ("Voucher", None),
    ]  # fmt: skip
    (request,) = await shop.advance()
    assert request["request"]["amount"] == "38.05"
    await shop.settle([request], APPROVED)
    assert (await shop.payment(order))["captured_amount"] == Decimal("38.05")


async def test_a_plain_order_costs_its_lines(shop: Shop, product: UUID) -> None:
    """Without adjustments each of their totals is nothing, and an empty array is none."""
    for none in None, Jsonb([]):
        order = await shop.order((product, 2), p_adjustments=none)
        totals = list((await costs(shop, order)).values())
        assert totals == [20, 0, 0, 0, 0, 20]
    assert await shop.value("select count(*) from order_adjustments") == 0


async def test_inserts_add_up_in_sets(shop: Shop, product: UUID) -> None:
    """One statement adjusts many orders, and several adjust one."""
    async with shop.acting_as("darkpearl_app"), shop.connection.transaction():
        orders = [await shop.order((product, number)) for number in (1, 2, 3)]
        await shop.run(
            "insert into order_adjustments (order_id, warehouse_id, kind, label, amount)"
            " select o.id, o.warehouse_id, k.kind::adjustment_kind, k.kind, k.amount"
            " from orders as o cross join (values ('shipping', 5), ('discount', -2)) as k (kind,"
            " amount)"
        )
        await shop.run(INSERT, orders[0], shop.lisbon, "fee", 1)
    totals = await shop.values("select total_amount from orders order by order_number")
    assert totals == [14, 23, 33]


async def test_a_free_order_is_fulfilled_unpaid(shop: Shop, product: UUID) -> None:
    """A discount of all that it costs leaves nothing to ask the gateway for."""
    everything = [{"kind": "discount", "label": "On us", "amount": -20}]
    order = await shop.order((product, 2), p_adjustments=Jsonb(everything))
    assert await shop.advance() == []
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.payment(order))["captured_amount"] == 0


@pytest.mark.parametrize(
    ("wrong", "sqlstate"),
    [
        ({}, "DP015"),
        ([1], "DP015"),
        ([{"kind": "shipping", "label": "A"}], "DP015"),
        ([{"kind": "shipping", "amount": 1}], "DP015"),
        ([{"kind": "tip", "label": "A", "amount": 1}], "DP015"),
        ([{"label": "A", "amount": 1}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": "NaN"}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 1e15}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 1, "item": 1}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 1, "item": -1}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 1, "rate": 23}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 0.001}], "DP015"),
        ([{"kind": "tax", "label": "A", "amount": 1}] * 1001, "DP015"),
        ([{"kind": "discount", "label": "A", "amount": 1}], "23514"),
        ([{"kind": "shipping", "label": "A", "amount": -1}], "23514"),
        ([{"kind": "fee", "label": " ", "amount": 1}], "23514"),
        ([{"kind": "fee", "label": "x" * 256, "amount": 1}], "23514"),
        ([{"kind": "discount", "label": "A", "amount": -10.01}], "DP041"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    shop: Shop, product: UUID, wrong: Any, sqlstate: str
) -> None:
    """No such order is placed, and none costs less than nothing."""
    with shop.refused(sqlstate):
        await shop.order((product, 1), p_adjustments=Jsonb(wrong))
    assert await shop.values("select id from orders") == []


async def test_a_currency_has_its_decimals(shop: Shop) -> None:
    """An adjustment is one that can be paid in the currency of its order."""
    yen = await shop.product("1000", currency="JPY", on_hand=9)
    shipping = {"kind": "shipping", "label": "A", "amount": 500}
    await shop.order((yen, 1), p_currency="JPY", p_adjustments=Jsonb([shipping]))
    with shop.refused("DP015"):
        half = [{**shipping, "amount": 0.5}]
        await shop.order((yen, 1), p_currency="JPY", p_adjustments=Jsonb(half))


async def test_what_an_order_costs_is_frozen(shop: Shop, product: UUID) -> None:
    """Only the transaction that places an order says what it costs; nothing is changed later."""
    order = await shop.order((product, 1), p_adjustments=Jsonb(ADJUSTMENTS[:1]))
    with shop.refused("DP012"):
        await shop.run(INSERT, order, shop.lisbon, "fee", 1)
    with shop.refused("DP010"):
        await shop.run(INSERT, uuid4(), shop.lisbon, "fee", 1)
    with shop.refused("DP010"):
        await shop.run(INSERT, order, shop.rotterdam, "fee", 1)
    for change in (
        "update order_adjustments set amount = 0",
        "delete from order_adjustments",
        "truncate order_adjustments",
    ):
        with shop.refused("DP005"):
            await shop.run(change)
    assert (await costs(shop, order))["total_amount"] == Decimal("14.90")


async def test_an_adjustment_is_of_a_line_of_its_order(shop: Shop, product: UUID) -> None:
    """The line of another order is none."""
    other = await shop.order((product, 1))
    line = await shop.value("select id from order_items where order_id = %s", other)
    insert = INSERT.replace("amount)", "amount, item_id)").replace("%s)", "%s, %s)")
    with shop.refused("DP010"):
        async with shop.connection.transaction():
            order = await shop.order((product, 1))
            await shop.run(insert, order, shop.lisbon, "fee", 1, line)


async def test_customers_say_nothing_of_what_it_costs(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]], product: UUID
) -> None:
    """They read the adjustments of their own orders."""
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    place = "select id from place_order(%s, %s, p_adjustments => %s)"
    with shop.refused("42501"):
        await as_customer("ann", place, shop.lisbon, items, Jsonb(ADJUSTMENTS[:1]))
    await shop.order((product, 1), p_customer_id="ann", p_adjustments=Jsonb(ADJUSTMENTS[:1]))
    look = "select label from order_adjustments"
    assert await as_customer("ann", look) == [{"label": "Express"}]
    assert await as_customer("eve", look) == []


@pytest.fixture
async def paid(shop: Shop, product: UUID) -> UUID:
    """A fulfilled order of two lines over 38.05."""
    order = await shop.order((product, 1), (product, 2), p_adjustments=Jsonb(ADJUSTMENTS))
    await shop.settle(await shop.advance(), APPROVED)
    return order


async def parts_of(shop: Shop, order: UUID) -> tuple[list[int], list[int]]:
    """The ids of an order's lines, and of its adjustments."""
    ids = "select id from {} where order_id = %s order by id"
    return (
        await shop.values(ids.format("order_items"), order),
        await shop.values(ids.format("order_adjustments"), order),
    )


async def test_a_refund_says_what_it_gives_back(shop: Shop, paid: UUID) -> None:
    """Of lines and adjustments, a discount among them; it adds up, and is kept as it was said."""
    lines, adjustments = await parts_of(shop, paid)
    breakdown = [
        {"item_id": lines[0], "quantity": 1, "amount": 10},
        {"adjustment_id": adjustments[1], "amount": -3},
        {"adjustment_id": adjustments[0], "amount": 4.9},
    ]
    refund = uuid4()
    give = "select breakdown from refund_order(%s, 11.90, p_refund_id => %s, p_breakdown => %s)"
    async with shop.acting_as("darkpearl_app"):
        for _ in range(2):
            assert await shop.value(give, paid, refund, Jsonb(breakdown)) == breakdown
    with shop.refused("DP011"):
        await shop.run(give, paid, refund, Jsonb(breakdown[:1]))
    assert await shop.values("select breakdown from order_refunds") == [breakdown]


@pytest.mark.parametrize(
    ("wrong", "sqlstate"),
    [
        ("{}", "DP015"),
        ("[]", "DP015"),
        ("[1]", "DP015"),
        ('[{"amount": 5}]', "DP015"),
        ('[{"item_id": :line, "adjustment_id": :shipping, "amount": 5}]', "DP015"),
        ('[{"item_id": :line, "amount": "much"}]', "DP015"),
        ('[{"item_id": "a", "amount": 5}]', "DP015"),
        ('[{"item_id": :line, "amount": 4.99}]', "DP041"),
        ('[{"item_id": :line, "amount": 6}, {"item_id": :line, "amount": -1}]', "DP041"),
        ('[{"item_id": :line, "amount": 2}, {"item_id": :line, "amount": 3}]', "DP041"),
        ('[{"item_id": :line, "quantity": 2, "amount": 5}]', "DP041"),
        ('[{"item_id": 0, "amount": 5}]', "DP041"),
        ('[{"adjustment_id": :shipping, "amount": 5}]', "DP041"),
        ('[{"adjustment_id": 0, "amount": 5}]', "DP041"),
    ],
)
async def test_a_breakdown_adds_up(shop: Shop, paid: UUID, wrong: str, sqlstate: str) -> None:
    """One of a refund of 5.00 that doesn't, or names what isn't there or too much, is refused."""
    lines, adjustments = await parts_of(shop, paid)
    text = wrong.replace(":line", str(lines[0])).replace(":shipping", str(adjustments[0]))
    with shop.refused(sqlstate):
        await shop.run("select refund_order(%s, 5, p_breakdown => %s)", paid, text)
    assert await shop.values("select id from refunds") == []


# What goes back of lines that have adjustments.


async def money_back(shop: Shop, order: UUID, sql: str, product: UUID, units: int) -> Decimal:
    """Takes units out of an order, or back with their money, twice alike; what is refunded."""
    name, items = uuid4(), json.dumps([{"product_id": str(product), "quantity": units}])
    given = "select coalesce(sum(amount), 0) from refunds where order_id = %s"
    before = await shop.value(given, order)
    async with shop.acting_as("darkpearl_app"):
        for _ in range(2):
            await shop.run(sql, order, items, name)
    await shop.settle(await shop.advance(), APPROVED)
    after = await shop.value(given, order)
    assert (await shop.payment(order))["refunded_amount"] == after
    return Decimal(after - before)


TAKE_OUT = "select cancel_items(%s, %s, p_cancellation_id => %s)"
BRING_BACK = "select return_and_refund(%s, %s, p_return_id => %s)"
THIRDS = pytest.mark.parametrize(
    ("currency", "parts"), [("USD", ["9.67", "9.66", "9.67"]), ("JPY", ["10", "9", "10"])]
)


async def place(
    shop: Shop, *lines: tuple[UUID, int], currency: str = "USD", packed: bool = True, **amounts: int
) -> UUID:
    """A paid order, to be packed or fulfilled: `spring` off its last line, `voucher` off all."""
    method = "on_shipment" if packed else "automatic"
    await shop.run("update warehouses set fulfilment_method = %s", method)
    adjustments = [
        {"kind": "discount", "label": label, "amount": -amount}
        | ({"item": len(lines) - 1} if label == "spring" else {})
        for label, amount in amounts.items()
    ]
    adjustments.append({"kind": "shipping", "label": "Express", "amount": 5})
    async with shop.acting_as("darkpearl_app"):
        order = await shop.order(*lines, p_currency=currency, p_adjustments=Jsonb(adjustments))
    await shop.settle(await shop.advance(), APPROVED)
    return order


@THIRDS
async def test_a_discount_goes_with_units_that_are_taken_out(
    shop: Shop, currency: str, parts: list[str]
) -> None:
    """Of a line of three, one by one, it adds up to the line, in what its currency can pay."""
    one, three = [await shop.product("10", on_hand=9, currency=currency) for _ in range(2)]
    order = await place(shop, (one, 2), (three, 3), currency=currency, spring=1)
    ship = "select ship_items(%s, %s)"
    await shop.run(ship, order, json.dumps([{"product_id": str(one), "quantity": 1}]))
    for part in parts:
        assert await money_back(shop, order, TAKE_OUT, three, 1) == Decimal(part)
    assert (await shop.payment(order))["captured_amount"] == 54
    await shop.run(ship, order, None)
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.refund(order))["amount"] == 25


@THIRDS
async def test_a_discount_goes_with_units_that_come_back(
    shop: Shop, currency: str, parts: list[str]
) -> None:
    """With their money, one by one, they add up to their line; shipping stays."""
    one, three = [await shop.product("10", on_hand=9, currency=currency) for _ in range(2)]
    order = await place(shop, (one, 2), (three, 3), currency=currency, packed=False, spring=1)
    for part in parts:
        assert await money_back(shop, order, BRING_BACK, three, 1) == Decimal(part)
    assert await money_back(shop, order, BRING_BACK, one, 2) == 20
    assert (await shop.refund(order))["amount"] == 5


async def test_units_taken_out_and_come_back_add_up(shop: Shop) -> None:
    """Of one line, the last taken out and the first two come back, in whatever parts."""
    three = await shop.product("10", on_hand=9)
    order = await place(shop, (three, 3), spring=1)
    ship, one = "select ship_items(%s, %s)", [{"product_id": str(three), "quantity": 1}]
    await shop.run(ship, order, json.dumps(one))
    parts = [await money_back(shop, order, TAKE_OUT, three, 1)]
    await shop.run(ship, order, None)
    parts += [await money_back(shop, order, BRING_BACK, three, 1) for _ in range(2)]
    assert parts == [Decimal("9.67"), Decimal("9.67"), Decimal("9.66")]


async def test_a_line_below_zero_costs_nothing(shop: Shop) -> None:
    """Its units go for nothing, and what they took off the rest isn't paid out for it."""
    one, cheap = [await shop.product("10", on_hand=9) for _ in range(2)]
    packed = await place(shop, (one, 3), (cheap, 1), spring=30)
    first = json.dumps([{"product_id": str(one), "quantity": 1}])
    await shop.run("select ship_items(%s, %s)", packed, first)
    sent = await place(shop, (one, 3), (cheap, 1), packed=False, spring=30)
    for order, sql in (packed, TAKE_OUT), (sent, BRING_BACK):
        parts = [await money_back(shop, order, sql, each, 1) for each in (cheap, one, one)]
        assert parts == [0, 10, 5]
    assert await money_back(shop, sent, BRING_BACK, one, 1) == 0


async def test_no_more_goes_back_than_was_paid(shop: Shop) -> None:
    """A discount of the whole order stays, and the units' prices are more than was paid."""
    product = await shop.product("10", on_hand=9)
    order = await place(shop, (product, 3), voucher=30)
    one = json.dumps([{"product_id": str(product), "quantity": 1}])
    await shop.run("select ship_items(%s, %s)", order, one)
    assert await money_back(shop, order, TAKE_OUT, product, 1) == 5
    with shop.refused("DP019"):
        await shop.refund(order)
    await shop.run("select ship_items(%s)", order)
    assert await money_back(shop, order, BRING_BACK, product, 2) == 0
