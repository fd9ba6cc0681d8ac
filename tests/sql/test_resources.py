"""routines/81_resources.sql: what a row of the API consists of, and what it costs to read."""

import json
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from shop import APPROVED, Shop, of_cell

from darkpearl.models.catalogue import Product, Warehouse
from darkpearl.models.orders import Order, OrderDetails, OrderGroup
from darkpearl.models.payments import Refund
from darkpearl.models.sagas import Saga, SagaEvent
from darkpearl.models.stock import (
    AdjustmentReason,
    CreatedStockMovement,
    Inventory,
    ReorderSuggestion,
    Return,
    StockMovement,
)

SHAPES: dict[str, type[msgspec.Struct]] = {
    "products": Product,
    "warehouses": Warehouse,
    "inventory_levels": Inventory,
    "adjustment_reasons": AdjustmentReason,
    "reorder_suggestions": ReorderSuggestion,
    "stock_ledger": StockMovement,
    "recorded_movements": CreatedStockMovement,
    "order_returns": Return,
    "saga_states": Saga,
    "saga_history": SagaEvent,
    "order_refunds": Refund,
    "order_summaries": Order,
    "order_details": OrderDetails,
    "order_groups": OrderGroup,
}
LISTED = ["sellable_inventory", "inventory_levels", "stock_ledger", "order_summaries"]


@pytest.mark.parametrize("relation", SHAPES)
async def test_a_shape_has_the_fields_of_its_json(shop: Shop, relation: str) -> None:
    """Its columns are the fields that a client gets, no more and no fewer."""
    columns = await shop.values(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0", relation
    )
    assert sorted(columns) == sorted(SHAPES[relation].__struct_fields__)


@pytest.mark.parametrize("view", LISTED)
async def test_counting_reads_the_table_alone(shop: Shop, view: str) -> None:
    """What a list adds to its rows is looked up for the rows of a page, not for all there are."""
    (plan,) = (await shop.value(f"explain (format json) select count(*) from {view}"))[:1]
    assert json.dumps(plan).count('"Relation Name"') == 1


async def test_a_transfer_is_told_with_its_counterpart(shop: Shop) -> None:
    """Each movement of it has the other; one that only looks like it has none."""
    product, operation = await shop.product(on_hand=9), uuid4()
    transfer = "select transfer_stock(%s, %s, %s, %s, %s)"
    await shop.run(transfer, shop.lisbon, shop.rotterdam, product, 3, operation)
    await shop.run(transfer, shop.rotterdam, shop.lisbon, product, 1, operation)
    await shop.run(
        "select receive_stock(%s, %s, 1, %s, 'found', 'warehouse', %s)",
        shop.lisbon,
        product,
        operation,
        shop.rotterdam,
    )
    told = await shop.rows(
        "select movement_type, quantity, counterpart from recorded_movements"
        " where correlation_id = %s order by id",
        operation,
    )

    def short(row: dict[str, Any] | None) -> tuple[str, int] | None:
        return (row["movement_type"], row["quantity"]) if row else None

    assert [(short(row), short(row["counterpart"])) for row in told] == [
        (("transfer_out", 3), ("transfer_in", 3)),
        (("transfer_in", 3), ("transfer_out", 3)),
        (("transfer_out", 1), ("transfer_in", 1)),
        (("transfer_in", 1), ("transfer_out", 1)),
        (("receive", 1), None),
    ]


async def test_a_saga_is_followed_from_any_event_on(shop: Shop) -> None:
    """In the order of its events, some at most; of a saga that isn't there, not even a row."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    look = "select * from follow_saga(%s, %s, %s)"
    whole = await shop.row(look, order, 0, 100)
    ids = [event["id"] for event in whole["events"]]
    assert whole["ended"]
    assert ids == sorted(ids)
    assert len(ids) == len(await shop.events(order))
    part = await shop.row(look, order, ids[1], 2)
    assert [event["id"] for event in part["events"]] == ids[2:4]
    assert (await shop.row(look, order, ids[-1], 100))["events"] == []
    assert await shop.rows(look, uuid4(), 0, 100) == []


async def test_stocking_a_product_stocks_it_alone(shop: Shop) -> None:
    """Opening stock is of one product in one warehouse, however much or little it is."""
    old, new = await shop.product(on_hand=5), await shop.product()
    await shop.receive(new, 3, shop.rotterdam)
    await shop.run("select stock_product(%s, %s, 7, 1, 2)", new, shop.lisbon)
    assert await shop.stock(old) == (5, 0)
    assert await shop.stock(new) == (7, 0)
    assert await shop.stock(new, shop.rotterdam) == (3, 0)
    assert await shop.value("select count(*) from inventory") == 3
    for quantity in (0, 1):
        product = await shop.product()
        await shop.run("select stock_product(%s, %s, %s, 1, 2)", product, shop.lisbon, quantity)
        assert await shop.stock(product) == (quantity, 0)


async def test_an_order_is_told_with_its_own(shop: Shop) -> None:
    """Beside another of its warehouse, each has its own lines, payment, disputes, refunds, saga."""
    product = await shop.product("10", on_hand=9)
    orders = [await shop.fulfilled((product, quantity)) for quantity in (1, 2)]
    for order in orders:
        await shop.told(
            of_cell(f"{order}:process_payment"),
            APPROVED | {"outcome": "disputed", "dispute": "won", "reference": str(order)},
        )
        await shop.refund(order, 5)
    told = await shop.rows("select * from order_details order by total_amount")
    assert [each["id"] for each in told] == orders
    for quantity, each in zip((1, 2), told, strict=True):
        assert [line["quantity"] for line in each["items"]] == [quantity]
        assert each["payment"]["captured_amount"] == 10 * quantity
        assert [one["reference"] for one in each["payment"]["disputes"]] == [str(each["id"])]
        assert [refund["order_id"] for refund in each["refunds"]] == [str(each["id"])]
        assert each["saga"]["id"] == str(each["id"])
