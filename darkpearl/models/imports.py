"""Rows that are imported, many in one body; what may be left out leaves what is there."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from darkpearl.models.common import Amount, Request

MAX_ROWS = 1000

Text = str | None


class ProductRow(Request, omit_defaults=True):
    """A product, new or changed, known by its SKU."""

    sku: Text = None
    name: Text = None
    description: Text = None
    unit_price: Amount | None = None
    currency: Text = None
    is_active: bool | None = None


class _Placed(Request, omit_defaults=True):
    """A product by SKU or id, and a warehouse by code or id."""

    sku: Text = None
    product_id: UUID | None = None
    warehouse: Text = None
    warehouse_id: UUID | None = None


class InventoryRow(_Placed, omit_defaults=True):
    """A shelf: what was counted, and when to reorder."""

    quantity_available: int | None = None
    reorder_point: int | None = None
    reorder_quantity: int | None = None


class MovementRow(_Placed, omit_defaults=True):
    """A movement, or with `to_warehouse` both of a transfer."""

    movement_type: Text = None
    quantity: int | None = None
    to_warehouse: Text = None
    correlation_id: UUID | None = None
    reference_type: Text = None
    reference_id: UUID | None = None
    reason_code: Text = None
    notes: Text = None


class OrderRow(_Placed, omit_defaults=True):
    """A line of an order; those with one `order_id` or `reference` are one order."""

    order_id: UUID | None = None
    reference: Text = None
    customer_id: Text = None
    currency: Text = None
    notes: Text = None
    pay_by: (
        Annotated[datetime, Meta(tz=True, description="Until then its stock is held for a payment")]
        | None
    ) = None
    quantity: int | None = None
    unit_price: Amount | None = None


class ImportProducts(Request):
    """Products to import."""

    rows: Annotated[list[ProductRow], Meta(max_length=MAX_ROWS)]


class ImportInventory(Request):
    """Shelves to import."""

    rows: Annotated[list[InventoryRow], Meta(max_length=MAX_ROWS)]


class ImportMovements(Request):
    """Movements to import, in their order."""

    rows: Annotated[list[MovementRow], Meta(max_length=MAX_ROWS)]


class ImportOrders(Request):
    """Orders to import, line by line."""

    rows: Annotated[list[OrderRow], Meta(max_length=MAX_ROWS)]


class ImportedRow(Struct):
    """What became of a row: its place in the array, from 1, or its line in the file."""

    row: int
    problem: Annotated[str | None, Meta(description="Why it was left out; null: it wasn't")]


class Imported(Struct):
    """What became of the rows."""

    lines: Annotated[int, Meta(description="How many rows there were")]
    bad: Annotated[int, Meta(description="How many of them were left out")]
    changed: Annotated[int, Meta(description="How many made or changed something; orders placed")]
    results: list[ImportedRow]
