"""sql/schema: where the bounds of columns are. Each takes its last value, and none beyond it."""

from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb
from shop import Shop

ID = {"order_id": uuid4(), "warehouse_id": uuid4()}
ROWS: dict[str, dict[str, Any]] = {
    "products": {"sku": "a", "name": "b"},
    "warehouses": {"code": "a", "name": "b"},
    "inventory": {"product_id": uuid4(), "warehouse_id": uuid4()},
    "stock_movements": {
        "correlation_id": uuid4(),
        "product_id": uuid4(),
        "warehouse_id": uuid4(),
        "movement_type": "adjust",
        "quantity": 1,
        "available_after": 1,
        "reserved_after": 0,
    },
    "orders": {"warehouse_id": uuid4()},
    "order_particulars": ID,
    "order_adjustments": {**ID, "kind": "fee", "label": "a", "amount": 1},
    "order_items": {**ID, "product_id": uuid4(), "quantity": 1, "unit_price": 1},
    "step_settings": {
        "saga_type": "a",
        "step_name": "b",
        "give_up_seconds": 0,
        "stuck_seconds": 0,
        "backoff_seconds": 0,
        "timeout_seconds": 1,
    },
    "payments": {
        **ID,
        "currency": "USD",
        "requested_amount": 10,
        "authorized_amount": 10,
        "idempotency_key": "k",
    },
    "payment_tokens": {**ID, "token": "t"},
    "refunds": {**ID, "amount": 1, "currency": "USD"},
    "gateway_events": {
        "gateway": "g",
        "event_id": "e",
        "answer": Jsonb({}),
        "disposition": "stale",
    },
    "saga_signals": {
        "saga_id": uuid4(),
        "warehouse_id": uuid4(),
        "step_name": "s",
        "event_id": "e",
        "payload": Jsonb({}),
    },
    "idempotency_keys": {
        "caller": "c",
        "idempotency_key": "k",
        "request_hash": b"h" * 32,
        "response": "{}",
    },
}
"""A row of each table that is as it should be."""

BOUNDS: list[tuple[str, str, Any, Any]] = [
    *(
        (table, column, "x" * longest, "x" * (longest + 1))
        for table, column, longest in [
            ("products", "sku", 100),
            ("products", "name", 255),
            ("products", "description", 10_000),
            ("warehouses", "code", 50),
            ("warehouses", "name", 255),
            ("warehouses", "address", 1000),
            ("stock_movements", "reference_type", 50),
            ("stock_movements", "notes", 2000),
            ("orders", "notes", 2000),
            ("orders", "customer_id", 255),
            ("order_adjustments", "label", 255),
            ("order_particulars", "reference", 100),
            ("payment_tokens", "token", 500),
            ("gateway_events", "gateway", 50),
            ("gateway_events", "event_id", 255),
            ("gateway_events", "idempotency_key", 255),
            ("saga_signals", "event_id", 255),
            ("idempotency_keys", "idempotency_key", 255),
        ]
    ),
    ("order_adjustments", "amount", "999999999999.9999", "1000000000000"),
    ("order_adjustments", "amount", 0, "-0.01"),
    ("order_particulars", "email", "a" * 252 + "@b", "a" * 253 + "@b"),
    ("order_particulars", "shipping_address", '{"city": "A"}', "{}"),
    (
        "order_particulars",
        "metadata",
        Jsonb({"a": "x" * (16384 - len('{"a": ""}'))}),
        Jsonb({"a": "x" * (16385 - len('{"a": ""}'))}),
    ),
    ("payment_tokens", "token", "t", ""),
    ("gateway_events", "event_id", "e", ""),
    ("saga_signals", "event_id", "e", ""),
    ("idempotency_keys", "idempotency_key", "k", ""),
    ("idempotency_keys", "request_hash", b"h" * 32, b"h" * 33),
    ("products", "unit_price", 0, -1),
    ("products", "unit_price", "999999999999.99", "1000000000000"),
    ("products", "currency", "EUR", "EURO"),
    ("products", "currency", "EUR", "eur"),
    ("inventory", "quantity_available", 1_000_000_000, 1_000_000_001),
    ("inventory", "reorder_point", 1_000_000_000, 1_000_000_001),
    ("inventory", "reorder_quantity", 0, -1),
    ("stock_movements", "quantity", -1, 0),
    ("order_items", "quantity", 1, 0),
    ("order_items", "quantity", 1_000_000, 1_000_001),
    ("step_settings", "give_up_seconds", 0, -1),
    ("step_settings", "give_up_seconds", 2_592_000, 2_592_001),
    ("step_settings", "stuck_seconds", 0, -1),
    ("step_settings", "stuck_seconds", 2_592_000, 2_592_001),
    ("step_settings", "backoff_seconds", 0, "-0.1"),
    ("step_settings", "backoff_seconds", 3600, "3600.1"),
    ("step_settings", "timeout_seconds", "0.01", "0.009"),
    ("step_settings", "timeout_seconds", 31_622_400, 31_622_401),
    ("payments", "captured_amount", 10, "10.01"),
    ("payments", "refunded_amount", 0, "0.01"),
    ("payments", "voided_amount", 10, "10.01"),
    ("refunds", "amount", "0.01", 0),
]


@pytest.mark.parametrize(("table", "column", "last", "beyond"), BOUNDS)
async def test_a_bound_is_where_it_is(
    shop: Shop, table: str, column: str, last: Any, beyond: Any
) -> None:
    """What is just within is stored, even for a superuser what is just beyond is refused."""
    row = ROWS[table] | {column: last}
    insert = f"insert into {table} ({', '.join(row)}) values ({', '.join(['%s'] * len(row))})"
    async with shop.unguarded():
        with shop.refused("23514"):
            await shop.run(insert, *(row | {column: beyond}).values())
        await shop.run(insert, *row.values())
