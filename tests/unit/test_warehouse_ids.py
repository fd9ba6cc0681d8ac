"""The house's rule: whatever touches a warehouse's table names the warehouse.

That is what lets warehouses live in several databases, and move. The files are read as they are
written: a table is always given a name, and its columns are spoken of by that.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SQL = Path(__file__).parents[2] / "sql"
KEY = "warehouse_id"

EXCEPTIONS: dict[str, str] = {
    "16_cells": "become_cell 2",
    "31_movements": "complete_movements 2",
    "37_particulars": "erase_customer 2, update_order",
    "40_orders": "refuse_group_of_strangers",
    "47_order_imports": "check_order_lines, find_imported_orders",
    "52_plans": "functions_in_use 2",
    "55_engine": "refuse_id_of_saga, settle_what_can_be_had, trace_contexts",
    "57_operators": (
        "backs_off, has_turned_back, last_failure 2, lock_saga, lock_stuck_saga, "
        "pause_external_steps"
    ),
    "60_payments": "begin_payments, find_payments",
    "61_order_fulfilment": "cancel_order 3",
    "62_refunds": (
        "amount_to_refund, fail_refund 2, goes_back_by_void, left_to_refund, "
        "lock_payment, money_of_cancelled 2, money_of_returned, money_of_units 3, "
        "owed_refunds, refund_again, refund_order, refuse_wrong_breakdown 2"
    ),
    "63_returns": (
        "describe_return, goods_out_there 3, is_same_return, lock_fulfilled_order, "
        "return_items, value_of_return 3"
    ),
    "64_gateway_events": (
        "apply_to_earlier_attempt, apply_to_other_attempt, contradicts_books 2, knows_call, "
        "record_gateway_event, redo_void"
    ),
    "65_shipments": (
        "await_parcel, cancel_items, cancellation_again, goods_to_ship 3, is_paid, "
        "lock_shippable_order 2, refuse_id_of_movements, ship_items, shipment_again 2"
    ),
    "66_forked_orders": "fork_order, note_fork 2",
    "66_held_orders": (
        "cancel_payment 2, lock_held_order 2, pay_order 4, record_manual_payment 2, "
        "refuse_unpayable_order 2"
    ),
    "66_transfers": "call_back_transfer",
    "67_batches": "act_on_item, find_sagas_to 2",
    "68_step_minutes": "fill_step_minutes",
    "70_requests": "law_of_names 2",
    "71_removal": (
        "fold_movements 3, lock_orders_that_are_over 6, movements_that_are_over, "
        "orders_that_are_over 6, payments_that_are_over 4, remove_next_alerts 2, "
        "remove_next_movements 3, remove_next_orders, remove_next_payments 8, "
        "remove_orders 17"
    ),
    "72_retention": "retention_due 7",
    "73_feed": "end_of_look 2, feed 3",
    "74_webhooks": "feed_place_at 2, oldest_undelivered 2",
    "80_views": (
        "engine_health, failed_refunds, may_know_of, orders_to_ship 4, saga_history, "
        "saga_overview 3, sagas_from_events 2, told_decline_code 2, told_message"
    ),
    "81_resources": (
        "find_orders 5, follow_saga, order_is_decided 2, order_lines, order_refunds, "
        "order_returns 2, order_shipments, returned_units, summed_quote"
    ),
    "83_audit": "audit_rules, audit_since 6",
    "84_timeline": "records_of_order 6, saga_timeline 3",
    "85_operators": "count_causes, queue_by_step",
    "86_monitor": (
        "monitor_order, monitor_orders, monitor_saga 3, monitor_sagas 3, "
        "monitor_subject 3, monitored_orders 2, monitored_sagas 2"
    ),
}
"""How often a function or view of a file doesn't, for a reason that it shares with the others of
its file: it looks something up by an id, which is one in the whole database and is given without a
warehouse, or it goes through all warehouses at once. The lists may only shrink."""

TABLE = re.compile(r"^create table (\w+) \((.*?)^\)", re.MULTILINE | re.DOTALL)
OBJECT = re.compile(
    r"^create or replace (?:function|view) (\w+)(.*?)(?=^comment on (?:function|view) \1|\Z)",
    re.MULTILINE | re.DOTALL,
)
NO_CODE = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
NO_NAME = "where|set|values|on|order|group|limit|inner|left|full|cross|union|for|default|returning"


def tables() -> list[str]:
    """The tables that have a warehouse."""
    found = (
        each
        for file in sorted((SQL / "schema").glob("*.sql"))
        for each in TABLE.findall(file.read_text())
    )
    return [name for name, columns in found if re.search(rf"^    {KEY} ", columns, re.MULTILINE)]


USE = re.compile(
    rf"(\bfrom|\busing|\bjoin|\bupdate|\binto|,)\s+({'|'.join(tables())})\b(?!\[|\.|;)"
    rf"(?:\s+as\s+(\w+)|\s+(?!as\b|(?:{NO_NAME})\b)(\w+))?"
)


def strays(statement: str) -> Iterator[str]:
    """The tables of a warehouse that a statement touches without a word of which warehouse."""
    for verb, table, alias, bare_alias in USE.findall(statement):
        name = alias or bare_alias
        if verb == "," and not name:
            continue  # an argument's type, or a column
        names_it = rf"\b{name}\.{KEY}\b" if name else rf"\b{KEY}\b"
        if verb == "into":
            names_it = rf"\binto\s+{table}\b[^()]*\([^)]*\b{KEY}\b"
        if not re.search(names_it, statement):
            yield table


def strays_of(text: str) -> Counter[str]:
    """How often each function or view of a file touches a warehouse's table without it."""
    found: Counter[str] = Counter()
    for name, body in OBJECT.findall(text):
        for statement in NO_CODE.sub("''", body).split(";"):
            found[name] += sum(1 for _ in strays(statement))
    return +found


@pytest.mark.parametrize(
    "file", sorted((SQL / "routines").glob("*.sql")), ids=lambda file: file.stem
)
def test_statements_name_the_warehouse(file: Path) -> None:
    """What touches a table of warehouses says of which; who mends one is off the list."""
    listed = EXCEPTIONS.get(file.stem, "")
    expected = {
        name: int(count or 1) for name, count in re.findall(r"([a-z]\w*)(?: (\d+))?", listed)
    }
    assert strays_of(file.read_text()) == expected


def test_the_tables_are_those_of_the_schema() -> None:
    """What belongs to a warehouse is found by its column, in each file of the schema."""
    assert {"inventory", "stock_movements", "orders", "sagas", "payments", "refunds"} <= set(
        tables()
    )
    assert not {"products", "warehouses", "saga_steps"} & set(tables())


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("select from orders as o where o.id = p_id", ["orders"]),
        ("select from orders as o where (o.id, o.warehouse_id) = (p_id, p_warehouse_id)", []),
        ("select from sagas where id = p_id", ["sagas"]),
        ("select warehouse_id from sagas where id = p_id", []),
        ("update sagas as s set position = 1 where s.id = p_id", ["sagas"]),
        ("delete from refunds as r using payments as p where r.warehouse_id = 1", ["payments"]),
        ("insert into orders (id, warehouse_id) values (1, 2)", []),
        ("insert into orders (id) select w.warehouse_id from w", ["orders"]),
        ("select from products as p, sagas as s where p.id = s.id", ["sagas"]),
        ("select from products as p where p.id = any(array[p_id])", []),
    ],
)
def test_strays_are_found(statement: str, found: list[str]) -> None:
    """In reads and writes, by the name that the table has in the statement."""
    assert list(strays(statement)) == found
