"""routines/90_access.sql: who may do what, as the catalogue says and as it turns out.

ACCESS, CALLS and DEFINERS are the page read back. What the catalogue has and they don't is an
error, so a new table, view, column grant or function needs its line here.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from shop import Shop

LogIn = Callable[[str], Awaitable[AsyncConnection[Any]]]

ROLES = (
    "anon",
    "authenticated",
    "service_role",
    "darkpearl_app",
    "darkpearl_listener",
    "darkpearl_reader",
    "darkpearl_api",
)
CUSTOMERS, STAFF, APP, READER = (
    "anon authenticated",
    "service_role",
    "darkpearl_app",
    "darkpearl_reader",
)
INSIDERS = f"{STAFF} {APP} {READER}"
EVERYBODY = f"{CUSTOMERS} {INSIDERS}"
PLACE = f"authenticated {STAFF} {APP}"
ALL = "*"

Grants = list[tuple[str, str]]  # (roles, columns), each a list of words

ACCESS: dict[str, dict[str, Grants]] = {
    "cells": {"select": [(INSIDERS, ALL)]},
    "moved_warehouses": {"select": [(INSIDERS, ALL)]},
    "cell_overview": {"select": [(INSIDERS, ALL)]},
    "products": {
        "select": [(EVERYBODY, ALL)],
        "insert": [(STAFF, ALL)],
        "update": [(STAFF, ALL)],
        "delete": [(STAFF, ALL)],
    },
    "warehouses": {
        "select": [(EVERYBODY, ALL)],
        "insert": [(STAFF, ALL)],
        "update": [(STAFF, ALL)],
        "delete": [(STAFF, ALL)],
    },
    "inventory": {
        "select": [
            (INSIDERS, ALL),
            (CUSTOMERS, "id product_id warehouse_id quantity_sellable created_at"),
        ],
        "insert": [(STAFF, "product_id warehouse_id reorder_point reorder_quantity")],
        "update": [(STAFF, "reorder_point reorder_quantity")],
        "delete": [(STAFF, ALL)],
    },
    "stock_movements": {
        "select": [(INSIDERS, ALL)],
        "insert": [
            (
                f"{STAFF} {APP}",
                (
                    "correlation_id warehouse_id product_id movement_type quantity"
                    " reference_type reference_id notes"
                ),
            ),
        ],
    },
    "movement_reasons": {"select": [(INSIDERS, ALL)], "insert": [(f"{STAFF} {APP}", ALL)]},
    "transfers": {"select": [(INSIDERS, ALL)]},
    "transfer_arrivals": {"select": [(INSIDERS, ALL)]},
    "stock_in_transit": {"select": [(INSIDERS, ALL)]},
    "transfer_states": {"select": [(INSIDERS, ALL)]},
    "transfer_ends": {"select": [(f"{STAFF} {READER}", ALL)]},
    "adjustment_reasons": {
        "select": [(INSIDERS, ALL)],
        "insert": [(STAFF, ALL)],
        "update": [(STAFF, ALL)],
        "delete": [(STAFF, ALL)],
    },
    "orders": {
        "select": [(f"authenticated {INSIDERS}", ALL)],
        "insert": [
            (PLACE, "id warehouse_id customer_id currency notes"),
            (f"{STAFF} {APP}", "pay_by"),
        ],
        "update": [(f"{STAFF} {APP}", "notes")],
    },
    "grouped_orders": {
        "select": [(f"authenticated {INSIDERS}", ALL)],
        "insert": [(PLACE, "order_id warehouse_id group_id")],
    },
    "order_items": {
        "select": [(f"authenticated {INSIDERS}", ALL)],
        "insert": [
            (PLACE, "order_id warehouse_id product_id quantity unit_price"),
            (f"{STAFF} {APP}", "metadata"),
        ],
    },
    "order_adjustments": {
        "select": [(f"authenticated {INSIDERS}", ALL)],
        "insert": [(f"{STAFF} {APP}", "order_id warehouse_id item_id kind label amount")],
    },
    "return_metadata": {"select": [(INSIDERS, ALL)]},
    "order_particulars": {
        "select": [(f"authenticated {INSIDERS}", ALL)],
        "insert": [
            (
                f"{STAFF} {APP}",
                ("order_id warehouse_id reference email shipping_address billing_address metadata"),
            ),
        ],
        "update": [
            (f"{STAFF} {APP}", "reference email shipping_address billing_address metadata"),
        ],
    },
    "shipments": {
        "select": [
            (INSIDERS, ALL),
            (
                "authenticated",
                (
                    "id order_id warehouse_id carrier tracking_number tracking_url created_at"
                    " shipped_at"
                ),
            ),
        ]
    },
    "shipment_items": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "payments": {
        "select": [
            (INSIDERS, ALL),
            (
                "authenticated",
                (
                    "order_id warehouse_id status currency requested_amount authorized_amount"
                    " captured_amount refunded_amount voided_amount gateway gateway_reference"
                    " created_at updated_at client_action"
                ),
            ),
        ]
    },
    "sagas": {
        "select": [
            (INSIDERS, ALL),
            (
                "authenticated",
                (
                    "id warehouse_id saga_type plan_version status position attempts"
                    " cancel_requested ready_at created_at updated_at"
                ),
            ),
        ]
    },
    "saga_events": {
        "select": [
            (INSIDERS, ALL),
            (
                "authenticated",
                (
                    "id saga_id warehouse_id event_type step_name attempt error_code"
                    " next_attempt_at actor started_at created_at"
                ),
            ),
        ]
    },
    "saga_steps": {
        "select": [
            (INSIDERS, ALL),
            ("authenticated", "saga_type plan_version position step_name undo_name forward_only"),
        ],
    },
    "step_settings": {
        "select": [(INSIDERS, ALL)],
        "update": [(STAFF, "give_up_seconds stuck_seconds backoff_seconds timeout_seconds")],
    },
    "saga_signals": {"select": [(INSIDERS, ALL)]},
    "saga_overview": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "low_stock": {"select": [(INSIDERS, ALL)]},
    "reorder_suggestions": {"select": [(INSIDERS, ALL)]},
    "order_overview": {"select": [(INSIDERS, ALL)]},
    "orders_to_ship": {"select": [(INSIDERS, ALL)]},
    "stuck_sagas": {"select": [(INSIDERS, ALL)]},
    "engine_health": {"select": [(INSIDERS, ALL)]},
    "sagas_from_events": {"select": [(INSIDERS, ALL)]},
    "audit": {"select": [(f"{STAFF} {READER}", ALL)]},
    "sellable_inventory": {"select": [(EVERYBODY, ALL)]},
    "inventory_levels": {"select": [(INSIDERS, ALL)]},
    "exported_products": {"select": [(INSIDERS, ALL)]},
    "exported_inventory": {"select": [(INSIDERS, ALL)]},
    "exported_movements": {"select": [(INSIDERS, ALL)]},
    "exported_orders": {"select": [(INSIDERS, ALL)]},
    "stock_ledger": {"select": [(INSIDERS, ALL)]},
    "recorded_movements": {"select": [(INSIDERS, ALL)]},
    "order_returns": {"select": [(INSIDERS, ALL)]},
    "order_shipments": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_cancellations": {"select": [(INSIDERS, ALL)]},
    "saga_history": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_refunds": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "saga_states": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_groups": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_payments": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_lines": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_terms": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_summaries": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_confirmations": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "order_details": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "idempotency_keys": {},
    "payment_tokens": {"insert": [(PLACE, "order_id warehouse_id token")]},
    "refunds": {
        "select": [
            (INSIDERS, ALL),
            (
                "authenticated",
                (
                    "id order_id warehouse_id status amount currency reason despite_dispute"
                    " gateway gateway_reference created_at updated_at metadata breakdown"
                ),
            ),
        ]
    },
    "disputes": {"select": [(f"authenticated {INSIDERS}", ALL)]},
    "payment_attempts": {"select": [(INSIDERS, ALL)]},
    "disputed_payments": {"select": [(INSIDERS, ALL)]},
    "failed_refunds": {"select": [(INSIDERS, ALL)]},
    "action_log": {"select": [(f"{STAFF} {READER}", ALL)]},
    "retention": {
        "select": [(f"{STAFF} {READER}", ALL)],
        "update": [(STAFF, "keep_days export_first")],
    },
    "retention_exports": {"select": [(f"{STAFF} {READER}", ALL)]},
    "spent_ids": {"select": [(f"{STAFF} {READER}", ALL)]},
    "spent_up_to": {"select": [(f"{STAFF} {READER}", ALL)]},
    "audit_runs": {"select": [(f"{STAFF} {READER}", ALL)]},
    "audit_rules": {"select": [(f"{STAFF} {READER}", ALL)]},
    "feed": {"select": [(INSIDERS, ALL)]},
    "stock_alerts": {"select": [(INSIDERS, ALL)]},
    "webhook_endpoints": {
        "select": [
            (
                f"{STAFF} {READER}",
                (
                    "id url topics is_enabled off_because position failing_since last_error"
                    " created_at updated_at version is_from_home"
                ),
            ),
        ],
        "update": [(STAFF, "url topics is_enabled")],
        "delete": [(STAFF, ALL)],
    },
    "webhook_retries": {"select": [(f"{STAFF} {READER}", ALL)]},
    "listeners": {"select": [(INSIDERS, ALL)]},
    "step_minutes": {"select": [(INSIDERS, ALL)]},
    "batches": {"select": [(INSIDERS, ALL)]},
    "batch_items": {"select": [(INSIDERS, ALL)]},
    "listener_activity": {"select": [(INSIDERS, ALL)]},
    "queue_health": {"select": [(INSIDERS, ALL)]},
    "stuck_by_cause": {"select": [(INSIDERS, ALL)]},
    "batch_overview": {"select": [(INSIDERS, ALL)]},
    "webhook_overview": {"select": [(f"{STAFF} {READER}", ALL)]},
    "webhook_health": {"select": [(f"{STAFF} {READER}", ALL)]},
    "gateway_events": {
        "select": [(f"{STAFF} {READER}", ALL), (APP, "disposition received_at")],
    },
}
"""Partitions have no grants of their own: who may read saga_events reads them through it."""

TABLES = {
    "products",
    "warehouses",
    "inventory",
    "stock_movements",
    "movement_reasons",
    "adjustment_reasons",
    "transfers",
    "transfer_arrivals",
    "orders",
    "grouped_orders",
    "order_items",
    "order_adjustments",
    "order_particulars",
    "return_metadata",
    "shipments",
    "shipment_items",
    "payments",
    "sagas",
    "saga_events",
    "saga_steps",
    "step_settings",
    "saga_signals",
    "idempotency_keys",
    "payment_tokens",
    "payment_attempts",
    "refunds",
    "disputes",
    "gateway_events",
    "action_log",
    "retention",
    "retention_exports",
    "spent_ids",
    "spent_up_to",
    "audit_runs",
    "stock_alerts",
    "webhook_endpoints",
    "webhook_retries",
    "listeners",
    "step_minutes",
    "batches",
    "batch_items",
}
EVERYBODYS = {
    "clock",
    "this_cell",
    "new_id",
    "minor_units",
    "is_visible_throughout",
    "is_visible",
    "is_postal_address",
    "words_of",
    "search_words",
    "refuse",
    "refuse_unpayable",
    "read_items",
    "merge_patch",
    "read_adjustments",
    "current_actor",
    "current_customer",
    # Parts of imports, which run as their caller on the caller's own tables.
    "staging_table",
    "read_uuid",
    "read_integer",
    "read_amount",
    "read_moment",
    "is_units",
    "referred_order_id",
    "asked_movement",
    "resolve_lines",
    "check_movement_lines",
    "find_imported_orders",
    "check_order_lines",
}
CALLS = {
    "cell_of_id": INSIDERS,
    "known_cells": f"{INSIDERS} darkpearl_api darkpearl_listener",
    "closed_warehouses": INSIDERS,
    "moved_cells": EVERYBODY,
    "refuse_id_elsewhere": f"{EVERYBODY} darkpearl_api",
    "refuse_elsewhere": PLACE,
    "search_query": EVERYBODY,
    "find_products": EVERYBODY,
    "find_payments": INSIDERS,
    "find_orders": f"authenticated {INSIDERS}",
    "place_order": PLACE,
    "place_sourced_order": PLACE,
    "source_items": PLACE,
    "offer_of_cell": PLACE,
    "quote_order": PLACE,
    "summed_quote": PLACE,
    "quote_lines": PLACE,
    "quote_adjustments": PLACE,
    "refuse_odd_deadline": PLACE,
    "order_is_decided": PLACE,
    "pay_order": PLACE,
    "cancel_payment": PLACE,
    "record_manual_payment": f"{STAFF} {APP}",
    "share_of_adjustments": PLACE,
    "cancel_order": PLACE,
    "update_order": PLACE,
    "erase_customer": STAFF,
    "receive_stock": STAFF,
    "adjust_stock": STAFF,
    "count_stock": STAFF,
    "transfer_stock": STAFF,
    "call_back_transfer": STAFF,
    "decide_arrival": "darkpearl_listener",
    "stock_at": INSIDERS,
    "is_remembered": INSIDERS,
    "retention_to_do": "darkpearl_listener",
    "apply_retention": "darkpearl_listener",
    "retention_due": f"{STAFF} {READER}",
    "record_export": STAFF,
    "is_spent": f"{STAFF} {READER}",
    "time_of_id": f"{STAFF} {READER}",
    "audit_since": f"{STAFF} {READER}",
    "run_audit": f"{STAFF} {READER}",
    "record_upkeep": f"{STAFF} {READER}",
    "sparse_event_indexes": "darkpearl_listener",
    "prepare_dense_index": "darkpearl_listener",
    "retry_saga": STAFF,
    "turn_back_saga": STAFF,
    "signal_saga": f"{STAFF} {APP}",
    "skip_step": STAFF,
    "resume_saga": STAFF,
    "retry_sagas": STAFF,
    "skip_steps": STAFF,
    "cancel_orders": STAFF,
    "resume_sagas": STAFF,
    "ack_gateway_events": STAFF,
    "dismiss_listener": STAFF,
    "stop_batch": STAFF,
    "fork_order": STAFF,
    "note_fork": STAFF,
    "cause_of": INSIDERS,
    "last_failure": INSIDERS,
    "queue_by_step": INSIDERS,
    "causes_of_stuck": INSIDERS,
    "count_causes": INSIDERS,
    "bucket_seconds": INSIDERS,
    "step_statistics": INSIDERS,
    "step_durations": INSIDERS,
    "has_listener": EVERYBODY,
    "saga_timeline": f"authenticated {INSIDERS}",
    "report_listener": "darkpearl_listener",
    "forget_listener": "darkpearl_listener",
    "fill_step_minutes": "darkpearl_listener",
    "work_batches": "darkpearl_listener",
    "refund_order": f"{STAFF} {APP}",
    "record_manual_refund": STAFF,
    "return_items": f"{STAFF} {APP}",
    "describe_return": f"{STAFF} {APP}",
    "ship_items": f"{STAFF} {APP}",
    "cancel_items": f"{STAFF} {APP}",
    "goods_to_ship": INSIDERS,
    "return_and_refund": f"{STAFF} {APP}",
    "refund_of_return": INSIDERS,
    "refundable": INSIDERS,
    "told_returns": f"authenticated {INSIDERS}",
    "returned_units": f"authenticated {INSIDERS}",
    "record_gateway_event": STAFF,
    "knows_call": STAFF,
    "ack_gateway_event": STAFF,
    "pause_external_steps": STAFF,
    "advance": "darkpearl_listener",
    "advance_elsewhere": "darkpearl_listener",
    "settle": "darkpearl_listener",
    "take_idle_lock": "darkpearl_listener",
    "release_idle_lock": "darkpearl_listener",
    "idle_lock_key": f"darkpearl_listener {STAFF} {READER}",
    "correct_future_waits": "darkpearl_listener",
    "ensure_event_partitions": "darkpearl_listener",
    "place_events": "darkpearl_listener",
    "forget_idempotency_keys": "darkpearl_listener",
    "forget_payment_tokens": "darkpearl_listener",
    "trace_contexts": "darkpearl_listener",
    "begin_request": PLACE,
    "find_request": PLACE,
    "hold_names": PLACE,
    "law_of_names": PLACE,
    "end_request": PLACE,
    "expect_version": STAFF,
    "events_out_of_place": INSIDERS,
    "blocking_sessions": INSIDERS,
    "engine_state": f"darkpearl_listener {STAFF} {READER}",
    "stuck_state": f"darkpearl_listener {STAFF} {READER}",
    "upkeep_state": f"darkpearl_listener {STAFF} {READER}",
    "step_tally": f"darkpearl_listener {STAFF} {READER}",
    "told_message": f"authenticated {INSIDERS}",
    "told_decline_code": f"authenticated {INSIDERS}",
    "follow_saga": f"{CUSTOMERS} {STAFF}",
    "stock_product": f"{CUSTOMERS} {STAFF}",
    "import_rows": f"{STAFF} {APP}",
    "cell_of_rows": f"{STAFF} {APP}",
    "open_import": f"{STAFF} {APP}",
    "record_movements": f"{STAFF} {APP}",
    "import_movements": f"{STAFF} {APP}",
    "place_imported_orders": f"{STAFF} {APP}",
    "import_products": STAFF,
    "count_shelves": STAFF,
    "import_inventory": STAFF,
    "look_for_horizon": f"darkpearl_listener {INSIDERS}",
    "end_of_look": INSIDERS,
    "read_feed": INSIDERS,
    "follow_feed": INSIDERS,
    "create_webhook_endpoint": STAFF,
    "rotate_webhook_secret": STAFF,
    "replay_webhooks": STAFF,
    "oldest_undelivered": f"{STAFF} {READER}",
    "catalogue_state": f"darkpearl_listener {STAFF} {READER}",
    "webhook_state": f"darkpearl_listener {STAFF} {READER}",
    "webhooks_lock_key": "darkpearl_listener",
    "webhooks_to_do": "darkpearl_listener",
    "next_webhooks": "darkpearl_listener",
    "webhooks_of_home": "darkpearl_listener",
    "keep_webhook_endpoints": "darkpearl_listener",
    "due_webhooks": "darkpearl_listener",
    "settle_webhooks": "darkpearl_listener",
    "monitor_state": f"{STAFF} {READER}",
    "monitor_overview": f"{STAFF} {READER}",
    "monitor_lately": f"{STAFF} {READER}",
    "monitor_orders": f"{STAFF} {READER}",
    "monitored_orders": f"{STAFF} {READER}",
    "monitor_order": f"{STAFF} {READER}",
    "monitor_sagas": f"{STAFF} {READER}",
    "monitored_sagas": f"{STAFF} {READER}",
    "monitor_saga": f"{STAFF} {READER}",
    "monitor_stuck": f"{STAFF} {READER}",
    "monitor_stock": f"{STAFF} {READER}",
    "monitor_shelf": f"{STAFF} {READER}",
    "monitor_listeners": f"{STAFF} {READER}",
    "monitor_activity": f"{STAFF} {READER}",
    "monitor_batch": f"{STAFF} {READER}",
    "monitor_audits": f"{STAFF} {READER}",
    "monitor_subject": f"{STAFF} {READER}",
    "open_gateway_books": READER,
    "reconcile_payments": READER,
}
"""Who may call what; what isn't here, nobody may."""

DEFINERS = {
    "refuse_elsewhere",
    "refuse_id_elsewhere",
    "known_cells",
    "moved_cells",
    "refuse_away_from_home",
    "refuse_moved",
    "refuse_to_drop_what_is_shared",
    "refuse_odd_cell",
    "retry_sagas",
    "skip_steps",
    "cancel_orders",
    "resume_saga",
    "resume_sagas",
    "ack_gateway_events",
    "stop_batch",
    "note_fork",
    "saga_timeline",
    "report_listener",
    "forget_listener",
    "dismiss_listener",
    "has_listener",
    "fill_step_minutes",
    "work_batches",
    "find_orders",
    "find_products",
    "ack_gateway_event",
    "add_up_adjustments",
    "add_up_order_items",
    "adjust_stock",
    "advance",
    "advance_elsewhere",
    "apply_retention",
    "begin_request",
    "find_request",
    "hold_names",
    "law_of_names",
    "blocking_sessions",
    "cancel_items",
    "cancel_order",
    "compile_new_calls",
    "correct_future_waits",
    "describe_return",
    "count_inventory_version",
    "count_shelves",
    "count_stock",
    "refuse_reason_of_nothing",
    "drop_event_partitions",
    "end_request",
    "erase_customer",
    "engine_state",
    "stuck_state",
    "upkeep_state",
    "ensure_event_partitions",
    "place_events",
    "pay_order",
    "cancel_payment",
    "order_is_decided",
    "record_manual_payment",
    "prepare_dense_index",
    "events_out_of_place",
    "forget_idempotency_keys",
    "forget_payment_tokens",
    "is_remembered",
    "note_retention",
    "move_inserted_stock",
    "note_step_settings",
    "pause_external_steps",
    "receive_stock",
    "record_export",
    "record_gateway_event",
    "knows_call",
    "record_manual_refund",
    "record_movements",
    "record_upkeep",
    "refund_order",
    "refundable",
    "refuse_empty_order",
    "refuse_late_particulars",
    "refuse_to_drop_history",
    "refuse_to_drop_stock",
    "retention_due",
    "retention_to_do",
    "retry_saga",
    "return_items",
    "return_and_refund",
    "told_returns",
    "source_items",
    "offer_of_cell",
    "returned_units",
    "ring_bell",
    "ring_bell_for_new_sagas",
    "run_audit",
    "settle",
    "ship_items",
    "skip_step",
    "start_order_sagas",
    "signal_saga",
    "step_tally",
    "take_in_movement",
    "told_decline_code",
    "told_message",
    "trace_contexts",
    "turn_back_saga",
    "transfer_stock",
    "call_back_transfer",
    "decide_arrival",
    "update_order",
    "begin_webhooks_anew",
    "create_webhook_endpoint",
    "due_webhooks",
    "look_for_horizon",
    "next_webhooks",
    "webhooks_of_home",
    "keep_webhook_endpoints",
    "note_low_stock",
    "replay_webhooks",
    "rotate_webhook_secret",
    "settle_webhooks",
    "webhooks_to_do",
    "oldest_undelivered",
    "catalogue_state",
    "webhook_state",
}
"""Functions that run as darkpearl_owner, past what their callers may do themselves."""

COLUMNS = """
    select c.relname as relation, array_agg(a.attname::text order by a.attnum) as columns,
        array_agg(a.attname::text order by a.attnum)
            filter (where a.attgenerated = '' and a.attidentity = '') as writable
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
        and a.attnum > 0 and not a.attisdropped
    group by c.relname
"""


def may(role: str, relation: str, command: str, column: str = ALL) -> bool:
    """Whether ACCESS lets a role do that with a column; ALL asks for the table as a whole."""
    return any(
        role in roles.split() and (columns == ALL or column in columns.split())
        for roles, columns in ACCESS.get(relation, {}).get(command, [])
    )


def attempts(relation: str, columns: list[str], writable: list[str]) -> Iterator[tuple[str, ...]]:
    """Every command on every column, as (command, column, statement); none would touch a row."""
    for column in columns:
        yield "select", column, f"select {column} from {relation} where false"
    for column in writable:
        yield "insert", column, f"insert into {relation} ({column}) select null where false"
        yield "update", column, f"update {relation} set {column} = default where false"
    yield "delete", ALL, f"delete from {relation} where false"
    yield "truncate", ALL, f"truncate {relation}"


async def test_every_relation_has_its_line(shop: Shop) -> None:
    """A new table or view is refused here until somebody has said who may do what with it."""
    relations = {row["relation"] for row in await shop.rows(COLUMNS)}
    partitions = await shop.values("select inhrelid::regclass::text from pg_inherits")
    assert relations - set(partitions) == ACCESS.keys()


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_its_lines_say(shop: Shop, role: str) -> None:
    """Each command on each column of each relation is tried: allowed or refused as it says."""
    tried, wrong = 0, []
    for row in await shop.rows(COLUMNS):
        relation = row["relation"]
        is_view = relation in ACCESS and relation not in TABLES
        async with shop.acting_as(role):
            for command, column, statement in attempts(relation, row["columns"], row["writable"]):
                if is_view and command != "select":
                    continue  # asked of the catalogue below: views can't all be written to
                try:
                    await shop.run(statement)
                    allowed = True
                except psycopg.errors.InsufficientPrivilege:
                    allowed = False
                except psycopg.errors.RaiseException as error:
                    raise AssertionError(statement) from error
                tried += 1
                if allowed != may(role, relation, command, column):
                    wrong.append(statement)
    assert wrong == []
    assert tried > 300


async def test_no_privilege_hides_behind_others(shop: Shop) -> None:
    """PUBLIC has nothing, nobody has what isn't tried above, on views and sequences neither."""
    kinds = ["TRUNCATE", "TRIGGER", "REFERENCES"]
    if shop.connection.info.server_version >= 170_000:
        kinds.append("MAINTAIN")
    held = await shop.rows(
        "select c.relname, r.role, p.kind from pg_class as c,"
        " unnest(%s::text[]) as r (role), unnest(%s::text[]) as p (kind)"
        " where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')"
        " and case when p.kind in ('TRUNCATE', 'TRIGGER', 'MAINTAIN', 'DELETE')"
        " then has_table_privilege(r.role, c.oid, p.kind)"
        " else has_any_column_privilege(r.role, c.oid, p.kind) end",
        [*ROLES, "public"],
        kinds,
    )
    assert held == []
    views = await shop.values(
        "select c.relname from pg_class as c, unnest(%s::text[]) as r"
        " where c.relnamespace = 'darkpearl'::regnamespace and c.relkind = 'v'"
        " and (has_any_column_privilege(r, c.oid, 'INSERT, UPDATE')"
        " or has_table_privilege(r, c.oid, 'DELETE'))",
        [*ROLES],
    )
    public = await shop.values(
        "select c.relname from pg_class as c where c.relnamespace = 'darkpearl'::regnamespace"
        " and c.relkind in ('r', 'p', 'v', 'm')"
        " and (has_any_column_privilege('public', c.oid, 'SELECT, INSERT, UPDATE')"
        " or has_table_privilege('public', c.oid, 'DELETE'))"
    )
    sequences = await shop.values(
        "select c.relname from pg_class as c, unnest(%s::text[]) as r"
        " where c.relnamespace = 'darkpearl'::regnamespace and c.relkind = 'S'"
        " and has_sequence_privilege(r, c.oid, 'USAGE, SELECT, UPDATE')",
        [*ROLES, "public"],
    )
    assert (views, public, sequences) == ([], [], [])


async def test_every_function_is_called_by_whom_it_is_for(shop: Shop) -> None:
    """The whole list of who may call what; a new function starts with nobody."""
    rows = await shop.rows(
        "select proname::text as name, array(select r from unnest(%s::text[]) as r"
        " where has_function_privilege(r, oid, 'EXECUTE')) as roles from pg_proc"
        " where pronamespace = 'darkpearl'::regnamespace",
        [*ROLES, "public"],
    )
    real = {row["name"]: set(row["roles"]) for row in rows if row["roles"]}
    expected = {name: set(roles.split()) for name, roles in CALLS.items()}
    assert real == expected | {name: {*ROLES, "public"} for name in EVERYBODYS}


async def test_definers_functions_pin_their_search_path(shop: Shop) -> None:
    """What runs as its owner is on the list, darkpearl_owner's, and finds what it was made for."""
    definers = await shop.rows(
        "select proname, proconfig, pg_get_userbyid(proowner) as owner from pg_proc"
        " where pronamespace = 'darkpearl'::regnamespace and prosecdef"
    )
    assert {each["proname"] for each in definers} == DEFINERS
    for each in definers:
        assert "search_path=darkpearl, pg_temp" in (each["proconfig"] or []), each["proname"]
        assert each["owner"] == "darkpearl_owner", each["proname"]


async def test_no_function_finds_what_its_caller_put_there(shop: Shop) -> None:
    """Every function pins its search path, is bound to its objects when it is made, or is internal.

    Nobody but the owner may call an internal one, so it goes by the path of whoever is called: a
    function that pins it.
    """
    loose = await shop.rows(
        "select proname, prosecdef, array(select grantee::regrole::text from aclexplode(proacl))"
        " as callers from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and prosqlbody is null"
        " and not coalesce('search_path=darkpearl, pg_temp' = any(proconfig), false)"
    )
    for each in loose:
        assert each["callers"] == ["darkpearl_owner"], each["proname"]
        assert not each["prosecdef"], each["proname"]


async def test_row_security_is_on_and_forced(shop: Shop) -> None:
    """Every table has row-level security, its owner is under it too, and so are new partitions."""
    tables = (
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and relkind in ('r', 'p') and not (relrowsecurity and relforcerowsecurity)"
    )
    assert await shop.values(tables) == []
    await shop.turn_clock(400 * 86400)
    assert await shop.values("select ensure_event_partitions()") != []
    assert await shop.values(tables) == []


async def test_views_show_what_the_caller_may_see(shop: Shop) -> None:
    """No view lends its owner's eyes."""
    lending = await shop.values(
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and relkind = 'v' and not coalesce('security_invoker=true' = any(reloptions), false)"
    )
    assert lending == []


async def test_the_owner_is_no_login_and_no_superuser(shop: Shop) -> None:
    """Everything belongs to a role that can't log in, and no role of ours is more than a role."""
    owner = await shop.row("select * from pg_roles where rolname = 'darkpearl_owner'")
    assert not owner["rolcanlogin"]
    mighty = await shop.values(
        "select rolname from pg_roles where rolname = any(%s)"
        " and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)",
        [*ROLES, "darkpearl_owner"],
    )
    assert mighty == []
    others = await shop.values(
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and pg_get_userbyid(relowner) <> 'darkpearl_owner'"
    )
    assert others == []


async def test_nobody_creates_in_the_schema(shop: Shop) -> None:
    """None of the roles may put an object where our functions look for theirs."""
    for role in ROLES:
        allowed = "select has_schema_privilege(%s, 'darkpearl', 'CREATE')"
        assert not await shop.value(allowed, role), role


async def test_the_apis_login_can_do_nothing_by_itself(shop: Shop) -> None:
    """Its rights are those of the role it takes on, and it may take on its callers' roles."""
    roles = await shop.rows(
        "select r.rolname, a.rolinherit from pg_auth_members as m"
        " inner join pg_roles as r on r.oid = m.roleid"
        " inner join pg_roles as a on a.oid = m.member where a.rolname = 'darkpearl_api'"
    )
    assert {row["rolname"] for row in roles} == {
        "anon", "authenticated", "service_role", "darkpearl_reader",
    }  # fmt: skip
    assert not any(row["rolinherit"] for row in roles)
    async with shop.acting_as("darkpearl_api"):
        with shop.refused("42501"):
            await shop.run("select * from products")


async def test_the_listener_runs_the_engine_and_sees_nothing(shop: Shop) -> None:
    """advance works for the listener though it can read none of the tables that it moves."""
    await shop.order((await shop.product(on_hand=1), 1))
    assert len(await shop.advance()) == 1
    async with shop.acting_as("darkpearl_listener"):
        for table in sorted(TABLES):
            with shop.refused("42501"):
                await shop.run(f"select from {table}")


@pytest.mark.parametrize(
    "statement",
    [
        "update inventory set quantity_available = 1000",
        (
            "insert into inventory (product_id, warehouse_id, quantity_available)"
            " values (:product, :warehouse, 1)"
        ),
        (
            "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
            " quantity, available_after, reserved_after)"
            " values (new_id(), :warehouse, :product, 'receive', 1, 1, 0)"
        ),
        (
            "insert into saga_events (saga_id, warehouse_id, event_type)"
            " values (new_id(), :warehouse, 'retried')"
        ),
        (
            "insert into sagas (id, warehouse_id, saga_type)"
            " values (new_id(), :warehouse, 'order_fulfilment')"
        ),
        "update sagas set status = 'completed'",
        "update orders set status = 'fulfilled'",
    ],
    ids=lambda statement: " ".join(statement.split()[:3]),
)
async def test_only_functions_write_what_is_the_engines(shop: Shop, statement: str) -> None:
    """Quantities, ledger, sagas and events are out of every role's direct reach."""
    product = await shop.product()
    statement = statement.replace(":product", f"'{product}'")
    statement = statement.replace(":warehouse", f"'{shop.lisbon}'")
    for role in ROLES:
        with shop.refused("42501"):
            async with shop.acting_as(role):
                await shop.run(statement)


async def test_visitors_see_what_can_be_sold_and_no_more(shop: Shop) -> None:
    """anon sees what is sold and how many can be had, and not how many are promised."""
    product = await shop.product(on_hand=5)
    retired = await shop.product(on_hand=7, is_active=False)
    await shop.receive(product, 4, shop.rotterdam)
    await shop.order((product, 2))
    await shop.advance()
    await shop.run("update warehouses set is_active = false where id = %s", shop.rotterdam)
    async with shop.acting_as("anon"):
        assert await shop.values("select id from products") == [product] != [retired]
        assert await shop.values("select id from warehouses") == [shop.lisbon]
        assert await shop.values("select quantity_sellable from inventory") == [3]
        for column in ("quantity_reserved", "quantity_available", "*"):
            with shop.refused("42501"):
                await shop.run(f"select {column} from inventory")


def items(product: UUID, **more: Any) -> str:
    """One line, as place_order() takes it."""
    return json.dumps([{"product_id": str(product), "quantity": 1, **more}])


async def test_customers_see_their_own(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """A customer sees its order with lines, payment, saga and events; of others' not a row."""
    alice, bob = str(uuid4()), str(uuid4())
    product = await shop.product(on_hand=5)
    place = "select id from place_order(%s, %s, %s)"
    (hers,) = await as_customer(alice, place, shop.lisbon, items(product), alice)
    (his,) = await as_customer(bob, place, shop.lisbon, items(product), bob)
    await shop.order((product, 1))
    await shop.advance()
    for table, column in [
        ("orders", "id"),
        ("order_items", "order_id"),
        ("payments", "order_id"),
        ("sagas", "id"),
        ("saga_events", "saga_id"),
    ]:
        seen = f"select distinct {column} as id from {table}"
        assert await as_customer(alice, seen) == [hers], table
        assert await as_customer(bob, seen) == [his], table
        assert await as_customer(None, seen) == [], table


async def test_customers_act_for_themselves_alone(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """An order is its customer's own; nobody adds to another's order, or sets a price."""
    alice, bob = str(uuid4()), str(uuid4())
    product = await shop.product()
    place = "select id from place_order(%s, %s, %s)"
    with shop.refused("42501"):
        await as_customer(alice, place, shop.lisbon, items(product), bob)
    (order,) = await as_customer(alice, place, shop.lisbon, items(product), None)
    owner = "select customer_id from orders where id = %s"
    assert await shop.value(owner, order["id"]) == alice
    with shop.refused("42501"):
        await as_customer(None, place, shop.lisbon, items(product), alice)
    with shop.refused("DP002"):
        await as_customer(alice, place, shop.lisbon, items(product, unit_price=1), alice)
    order = await shop.order((product, 1), p_customer_id=bob)
    with shop.refused("42501"):
        await as_customer(
            alice,
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " values (%s, %s, %s, 1)",
            order,
            shop.lisbon,
            product,
        )


async def test_customers_dont_order_what_isnt_sold(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """What a customer doesn't see, because it isn't sold or is closed, is refused as such."""
    alice = str(uuid4())
    retired = await shop.product(is_active=False)
    place = "select id from place_order(%s, %s, %s)"
    with shop.refused("DP003"):
        await as_customer(alice, place, shop.lisbon, items(retired), alice)
    product = await shop.product()
    await shop.run("update warehouses set is_active = false where id = %s", shop.rotterdam)
    with shop.refused("DP003"):
        await as_customer(alice, place, shop.rotterdam, items(product), alice)


async def test_reports_change_nothing(shop: Shop) -> None:
    """The reader reads what is on its lines whole, and can't write one of the tables."""
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    empty = {
        *(
            "audit",
            "stuck_sagas",
            "refunds",
            "disputes",
            "payment_attempts",
            "disputed_payments",
            "failed_refunds",
            "order_refunds",
            "gateway_events",
            "order_returns",
            "order_adjustments",
            "order_particulars",
            "return_metadata",
            "shipments",
            "shipment_items",
            "orders_to_ship",
            "order_shipments",
            "order_cancellations",
            "movement_reasons",
            "transfers",
            "transfer_arrivals",
            "stock_in_transit",
            "transfer_states",
            "transfer_ends",
            "grouped_orders",
            "order_groups",
            "saga_signals",
            "action_log",
            "retention_exports",
            "spent_ids",
            "spent_up_to",
            "audit_runs",
            "audit_rules",
            "stock_alerts",
            "webhook_endpoints",
            "webhook_retries",
            "webhook_overview",
            "listeners",
            "listener_activity",
            "step_minutes",
            "batches",
            "batch_items",
            "batch_overview",
            "moved_warehouses",
            "queue_health",
            "stuck_by_cause",
        ),
    }
    async with shop.acting_as("darkpearl_reader"):
        for relation in sorted(each for each in ACCESS if may(READER, each, "select")):
            rows = await shop.rows(f"select * from {relation}")
            assert bool(rows) == (relation not in empty), relation
        for table in sorted(TABLES):
            with shop.refused("42501"):
                await shop.run(f"delete from {table}")


async def test_staff_run_the_warehouse(shop: Shop) -> None:
    """service_role edits the catalogue, moves stock by the functions and sets reorder points."""
    async with shop.acting_as("service_role"):
        product = await shop.product(on_hand=4)
        await shop.run("update products set unit_price = 11 where id = %s", product)
        await shop.run("update inventory set reorder_point = 3 where product_id = %s", product)
        await shop.run("select count_stock(%s, %s, 3)", shop.lisbon, product)
        assert await shop.stock(product) == (3, 0)
        spare = await shop.product()
        await shop.run("delete from products where id = %s", spare)
        with shop.refused("DP016"):
            await shop.run("delete from products where id = %s", product)
