"""routines/41_quotes.sql: a quote says what placing would do, writes and promises nothing."""

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from shop import Row, Shop

QUOTE = "select * from quote_order(%s, %s, %s, %s)"


@pytest.fixture
async def goods(shop: Shop) -> tuple[UUID, UUID]:
    """Ten units at 10.00, none at 2.50."""
    return await shop.product(on_hand=10), await shop.product("2.5")


def lines(*items: tuple[Any, int] | Row) -> str:
    """Lines as JSON."""
    named = [
        each if isinstance(each, dict) else {"product_id": str(each[0]), "quantity": each[1]}
        for each in items
    ]
    return json.dumps(named)


async def quote(
    shop: Shop, items: Any, adjustments: Any = None, currency: str = "USD", warehouse: Any = 0
) -> list[Row]:
    """An application asks for a quote, in Lisbon if it says nothing else."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.rows(
            QUOTE,
            *(shop.lisbon if warehouse == 0 else warehouse, items, currency),
            json.dumps(adjustments) if adjustments is not None else None,
        )


async def test_what_an_order_costs_and_whether_it_fits(
    shop: Shop, goods: tuple[UUID, UUID]
) -> None:
    """Line by line, by the catalogue's prices and what can be sold now; nothing is written."""
    (row,) = await quote(
        shop,
        lines((goods[0], 3), (goods[1], 2)),
        [
            {"kind": "shipping", "label": "Express", "amount": 4.9},
            {"kind": "discount", "label": "Spring", "amount": -5, "item": 0},
        ],
    )
    assert [
        (each["quantity"], each["unit_price"], each["line_total"], each["fits"])
        for each in row["items"]
    ] == [(3, 10, 30, True), (2, 2.5, 5, False)]
    assert [each["quantity_sellable"] for each in row["items"]] == [10, 0]
    assert (row["subtotal"], float(row["shipping_total"]), row["discount_total"]) == (35, 4.9, -5)
    assert (float(row["total_amount"]), row["fits"]) == (34.9, False)
    assert row["adjustments"][1]["item"] == 0
    for table in ("orders", "order_items", "order_adjustments", "sagas", "stock_movements"):
        where = " where movement_type <> 'receive'" if table == "stock_movements" else ""
        assert await shop.rows(f"select * from {table}{where}") == []


async def test_lines_of_one_product_fit_together(shop: Shop, goods: tuple[UUID, UUID]) -> None:
    """Each alone would."""
    (row,) = await quote(shop, lines((goods[0], 6), (goods[0], 5)))
    assert [each["fits"] for each in row["items"]] == [False, False]
    (row,) = await quote(shop, lines((goods[0], 6), (goods[0], 4)))
    assert row["fits"]


async def test_what_is_reserved_does_not_fit(shop: Shop, goods: tuple[UUID, UUID]) -> None:
    """It is promised to somebody else."""
    await shop.order((goods[0], 8))
    await shop.advance()
    (row,) = await quote(shop, lines((goods[0], 3)))
    assert not row["fits"]


async def test_a_quote_is_what_would_be_placed(shop: Shop, goods: tuple[UUID, UUID]) -> None:
    """The same orders, by the same warehouses, for the same money."""
    await shop.receive(goods[0], 5, shop.rotterdam)
    adjustments = [
        {"kind": "tax", "label": "VAT", "amount": 7},
        {"kind": "discount", "label": "x", "amount": -3, "item": 1},
    ]
    items = lines((goods[0], 8), (goods[0], 5))
    quoted = await quote(shop, items, adjustments, warehouse=None)
    async with shop.acting_as("darkpearl_app"):
        await shop.run(
            "select place_order(p_items => %s, p_adjustments => %s)", items, json.dumps(adjustments)
        )
    placed = await shop.rows(
        "select warehouse_id, subtotal, total_amount, discount_total, tax_total"
        " from order_confirmations order by order_number"
    )
    assert len(placed) == 2
    assert [{name: row[name] for name in placed[0]} for row in quoted] == placed
    assert all(row["fits"] for row in quoted)


async def test_it_needs_no_writing(shop: Shop, goods: tuple[UUID, UUID]) -> None:
    """A standby, or a transaction that may only read, says it too."""
    await shop.run("begin read only")
    (row,) = await quote(shop, lines((goods[0], 1)))
    await shop.run("rollback")
    assert row["total_amount"] == 10


ODD: dict[str, tuple[str, Any, Any, str]] = {
    "no items": ("{}", None, 0, "USD"),
    "empty": ("[]", None, 0, "USD"),
    "null": ("", None, 0, "USD"),
    "no product": ('[{"product_id": "%(unknown)s", "quantity": 1}]', None, 0, "USD"),
    "no sku": ('[{"sku": "nobody", "quantity": 1}]', None, 0, "USD"),
    "retired": ('[{"product_id": "%(retired)s", "quantity": 1}]', None, 0, "USD"),
    "none": ('[{"product_id": "%(one)s", "quantity": 0}]', None, 0, "USD"),
    "too many": ('[{"product_id": "%(one)s", "quantity": 1000001}]', None, 0, "USD"),
    "odd key": ('[{"product_id": "%(one)s", "quantity": 1, "x": 1}]', None, 0, "USD"),
    "own price": ('[{"product_id": "%(one)s", "quantity": 1, "unit_price": 9}]', None, 0, "USD"),
    "negative price": (
        '[{"product_id": "%(one)s", "quantity": 1, "unit_price": -9}]', None, 0, "USD",
    ),
    "another currency": ('[{"product_id": "%(one)s", "quantity": 1}]', None, 0, "EUR"),
    "no currency": ('[{"product_id": "%(one)s", "quantity": 1}]', None, 0, "euro"),
    "no warehouse": ('[{"product_id": "%(one)s", "quantity": 1}]', None, "unknown", "USD"),
    "closed warehouse": ('[{"product_id": "%(one)s", "quantity": 1}]', None, "closed", "USD"),
    "too much anywhere": ('[{"product_id": "%(one)s", "quantity": 99}]', None, None, "USD"),
    "adjustments": ('[{"product_id": "%(one)s", "quantity": 1}]', {}, 0, "USD"),
    "no kind": ('[{"product_id": "%(one)s", "quantity": 1}]', [{"kind": "tip"}], 0, "USD"),
    "no such line": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "fee", "label": "x", "amount": 1, "item": 1}], 0, "USD",
    ),
    "sign": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "discount", "label": "x", "amount": 1}], 0, "USD",
    ),
    "label": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "fee", "label": " ", "amount": 1}], 0, "USD",
    ),
    "decimals": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "fee", "label": "x", "amount": 1.001}], 0, "USD",
    ),
    "below zero": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "discount", "label": "x", "amount": -10.01}], 0, "USD",
    ),
    "too many adjustments": (
        '[{"product_id": "%(one)s", "quantity": 1}]',
        [{"kind": "fee", "label": "x", "amount": 0}] * 1001, 0, "USD",
    ),
}  # fmt: skip
"""What can't be placed: items, adjustments, warehouse and currency."""


@pytest.mark.parametrize("name", ODD)
async def test_it_refuses_what_placing_refuses(
    shop: Shop, goods: tuple[UUID, UUID], name: str
) -> None:
    """With the same SQLSTATE and the same law, whatever it is."""
    items, adjustments, warehouse, currency = ODD[name]
    retired = await shop.product(on_hand=1)
    await shop.run("update products set is_active = false where id = %s", retired)
    closed = await shop.value(
        "insert into warehouses (code, name, is_active) values ('CLO', 'x', false) returning id"
    )
    named = {"one": goods[0], "retired": retired, "unknown": uuid4()}
    arguments = (
        {0: shop.lisbon, "unknown": uuid4(), "closed": closed, None: None}[warehouse],
        (items % named) or None,
        currency,
        json.dumps(adjustments) if adjustments is not None else None,
    )
    told = []
    for call in (
        "select place_order(%s, %s, p_currency => %s, p_adjustments => %s)",
        QUOTE,
    ):
        async with shop.acting_as("darkpearl_app"):
            with pytest.raises(psycopg.Error) as raised:
                await shop.run(call, *arguments)
        told.append((raised.value.sqlstate, raised.value.diag.constraint_name))
    assert told[0] == told[1]


async def test_customers_ask_for_what_they_may_place(
    shop: Shop, goods: tuple[UUID, UUID], as_customer: Any
) -> None:
    """Goods, but neither adjustments nor prices nor metadata."""
    items = lines((goods[0], 1))
    (row,) = await as_customer("ann", QUOTE, shop.lisbon, items, "USD", None)
    assert (row["total_amount"], row["fits"]) == (10, True)
    fee = json.dumps([{"kind": "fee", "label": "x", "amount": 1}])
    with shop.refused("42501"):
        await as_customer("ann", QUOTE, shop.lisbon, items, "USD", fee)
    product = str(goods[0])
    with shop.refused("DP002"):
        cheap = lines({"product_id": product, "quantity": 1, "unit_price": 1})
        await as_customer("ann", QUOTE, shop.lisbon, cheap, "USD", None)
    with shop.refused("42501"):
        engraved = lines({"product_id": product, "quantity": 1, "metadata": {}})
        await as_customer("ann", QUOTE, shop.lisbon, engraved, "USD", None)
